//! Programs that link the agent, in Rust and in C: they say themselves what is to be merged.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::engine::{Engine, nobody};
use common::{built, can_merge, output, preload};
use numerge_agent::{Agent, Error};

fn ends_well(command: &mut Command, engine: &Engine) {
    let said = output(command.arg(engine.socket()));
    assert_eq!(said.lines().last(), Some("fine"), "{said}");
    let counts = engine.counts();
    println!("{said}{counts:?}");
    assert!(counts.merged >= 2048, "{counts:?}");
    assert_eq!(counts.lies, 0, "{counts:?}");
}

/// A program in C, linked with one of the libraries and what that needs.
fn compiled(source: &str, library: &Path, with: &[&str]) -> PathBuf {
    let agent = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path().keep().unwrap();
    let status = Command::new("cc")
        .args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&path)
        .arg("-I")
        .arg(agent.join("include"))
        .arg(agent.join(source))
        .arg(library)
        .args(with)
        .status()
        .unwrap();
    assert!(status.success(), "{source} could not be compiled");
    path
}

fn c_library(name: &str) -> PathBuf {
    built(&["-p", "numerge-agent-capi"]).join(name)
}

#[test]
fn s1_1_a_program_in_rust() {
    if !can_merge() {
        return;
    }
    let engine = Engine::new();
    let example = built(&["-p", "numerge-agent", "--example", "vmm"]).join("examples/vmm");
    ends_well(&mut Command::new(example), &engine);
}

#[test]
fn s1_1_a_program_in_c() {
    if !can_merge() {
        return;
    }
    for (library, with) in [
        ("libnumerge_client.so", &[][..]),
        ("libnumerge_client.a", &["-lhwloc", "-lnuma", "-lgcc_s", "-lm", "-ldl", "-lpthread"]),
    ] {
        let library = c_library(library);
        let program = compiled("examples/vmm.c", &library, with);
        let engine = Engine::new();
        let mut command = Command::new(&program);
        ends_well(command.env("LD_LIBRARY_PATH", library.parent().unwrap()), &engine);
        std::fs::remove_file(program).unwrap();
    }
}

#[test]
fn a_program_in_c_ends_with_its_last_thread() {
    if !can_merge() {
        return;
    }
    let library = c_library("libnumerge_client.so");
    let program = compiled("tests/programs/last.c", &library, &["-lpthread"]);
    let engine = Engine::new();
    let said = output(
        Command::new(&program)
            .arg(engine.socket())
            .env("LD_LIBRARY_PATH", library.parent().unwrap()),
    );
    assert_eq!(said, "fine\n");
    std::fs::remove_file(program).unwrap();
}

#[test]
fn the_header_declares_what_the_library_has() {
    let output = Command::new("nm")
        .args(["--dynamic", "--defined-only", "--format=posix"])
        .arg(c_library("libnumerge_client.so"))
        .output()
        .unwrap();
    assert!(output.status.success());
    let listed = String::from_utf8(output.stdout).unwrap();
    let names = listed.lines().filter_map(|line| line.split(' ').next());
    let exported: BTreeSet<_> = names.map(str::to_owned).collect();
    let header = include_str!("../include/numerge.h");
    // A declaration begins at the line's first column.
    let declarations = header.lines().filter(|line| line.starts_with(|c: char| c.is_alphabetic()));
    let names = declarations.filter_map(|line| line.split('(').next()?.rsplit([' ', '*']).next());
    let declared: BTreeSet<_> =
        names.filter(|name| name.starts_with("numerge_")).map(str::to_owned).collect();
    assert!(declared.len() >= 10, "{declared:?}");
    let ours = |name: &&String| name.starts_with("numerge_");
    assert_eq!(exported.iter().filter(ours).cloned().collect::<BTreeSet<_>>(), declared);
    // The C library's functions are the program's own.
    for name in ["mmap", "munmap", "madvise", "fork", "syscall", "ioctl", "prctl"] {
        assert!(!exported.contains(name), "{name}");
    }
}

/// One process, one agent: all that can go wrong here, in order.
#[test]
fn errors_say_what_is_wrong_and_what_is_allowed() {
    if !can_merge() {
        return;
    }
    let says = |result: Result<Agent, Error>, words: &[&str]| {
        let error = result.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let nowhere = tempfile::tempdir().unwrap();
    let socket = nobody(nowhere.path());
    says(Agent::connect(Path::new(""), None), &["socket=\"\"", "1 to 107 bytes"]);
    says(Agent::connect(&socket, Some("a b")), &["domain=\"a b\"", "A-Z"]);
    let agent = Agent::connect(&socket, Some("a.b")).unwrap();
    says(Agent::connect(&socket, None), &["has an agent already", socket.to_str().unwrap()]);

    const PAGE: usize = 4096;
    let map = |protection: i32, flags: i32| {
        // SAFETY: new memory at a place of the kernel's choice.
        unsafe { libc::mmap(std::ptr::null_mut(), 4 * PAGE, protection, flags, -1, 0) }.cast::<u8>()
    };
    let usable = libc::PROT_READ | libc::PROT_WRITE;
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let refused = |start: *mut u8, bytes: usize, words: &[&str]| {
        // SAFETY: refused.
        let error = unsafe { agent.register(start, bytes) }.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let memory = map(usable, private);
    refused(memory.wrapping_add(1), PAGE, &["4096 bytes at", "whole pages"]);
    refused(memory, PAGE + 7, &["4103 bytes", "whole pages"]);
    refused(memory, 0, &["0 bytes", "one or more"]);
    refused(map(usable, libc::MAP_SHARED | libc::MAP_ANONYMOUS), PAGE, &["not private anonymous"]);
    refused(map(libc::PROT_READ, private), PAGE, &["permissions are r--p"]);
    let locked = map(usable, private);
    // SAFETY: memory of our own.
    assert_eq!(unsafe { libc::mlock(locked.cast(), 4 * PAGE) }, 0);
    refused(locked, 4 * PAGE, &["mlock"]);

    // SAFETY: nobody else has it; what is done to it goes by the agent.
    let region = unsafe { agent.register(memory, 4 * PAGE) }.unwrap();
    assert_eq!((region.start(), region.bytes()), (memory, 4 * PAGE));
    refused(memory.wrapping_add(PAGE), PAGE, &["registered already"]);
    let status = agent.status();
    assert_eq!((status.connected, status.pages_offered, status.problem), (false, 4, None));
    assert_eq!(region.unregister().unwrap(), 0);
    assert_eq!(agent.status().pages_offered, 0);
    // SAFETY: as above.
    drop(unsafe { agent.register(memory, 4 * PAGE) }.unwrap());
    assert_eq!(agent.status().pages_offered, 0);
    // SAFETY: as above.
    let region = unsafe { agent.register(memory, 4 * PAGE) }.unwrap();
    // SAFETY: nobody uses it any more.
    unsafe { agent.munmap(memory, 4 * PAGE) }.unwrap();
    assert_eq!(agent.status().pages_offered, 0);
    region.unregister().unwrap();
}

#[test]
fn with_the_preload_library_it_stands_back() {
    if !can_merge() {
        return;
    }
    let example = built(&["-p", "numerge-agent", "--example", "vmm"]).join("examples/vmm");
    let output =
        Command::new(example).arg("/nowhere").env("LD_PRELOAD", preload()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("Preloaded"), "{said}");
}
