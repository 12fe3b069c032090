//! What the tests share: the preload library, client programs in C, and an engine that merges whatever it
//! is told of.
#![allow(
    dead_code,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

pub mod engine;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use numerge_linux::{Error, check_kernel};

/// Whether merging is possible here; if not, why is printed.
pub fn can_merge() -> bool {
    match check_kernel() {
        Ok(()) => true,
        Err(error @ (Error::NotPermitted { .. } | Error::KernelTooOld { .. })) => {
            println!("SKIPPED: {error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// Where cargo puts what it builds for these tests, and the profile's name.
fn target() -> (PathBuf, String) {
    // .../PROFILE/deps/THIS
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    let name = profile.file_name().unwrap().to_str().unwrap().to_owned();
    (profile.to_owned(), name)
}

/// The preload library.
pub fn preload() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| built(&["-p", "numerge-agent-preload"]).join("libnumerge_agent.so"))
}

/// Has cargo build something anew if need be, for it does not build what another package's tests use, nor
/// examples for a single test; gives where that is.
pub fn built(what: &[&str]) -> PathBuf {
    let (directory, profile) = target();
    let profile = if profile == "debug" { "dev" } else { &profile };
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--profile", profile])
        .args(what)
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"))
        .arg("--target-dir")
        .arg(directory.parent().unwrap())
        .status()
        .unwrap();
    assert!(status.success(), "{what:?} could not be built");
    directory
}

/// A client program, compiled.
pub fn program(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
    // A name of its own for each test binary and test: they may compile at the same time.
    let made = tempfile::Builder::new().prefix(name).tempfile().unwrap();
    let path = made.into_temp_path().keep().unwrap();
    let status = Command::new("cc")
        .args(["-O1", "-g", "-Wall", "-Werror", "-pthread", "-o"])
        .arg(&path)
        .arg(source.join(format!("{name}.c")))
        .status()
        .unwrap();
    assert!(status.success(), "{name}.c could not be compiled");
    path
}

/// The command with the agent, which goes to the engine at `socket`.
pub fn with_agent(program: &Path, socket: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", preload()).env("NUMERGE_SOCKET", socket);
    command
}

/// What the command wrote, if it ended well.
pub fn output(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    assert_eq!(stderr, "", "{command:?}");
    stdout
}
