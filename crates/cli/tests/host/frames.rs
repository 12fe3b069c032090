//! Frames that nothing is mapped to are given back to the system.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::bed::{Host, Running, c_program, can_merge};

/// Of single frames that wait to be given back.
const SLACK_BYTES: u64 = 8 << 20;

/// What the files of a process's frames take of the host's memory.
fn frames_bytes(pid: Pid) -> u64 {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap() {
        let path = entry.unwrap().path();
        let named = |name: std::path::PathBuf| name.to_string_lossy().contains("numerge-frames");
        if fs::read_link(&path).is_ok_and(named)
            && let Ok(file) = fs::metadata(&path)
        {
            files.insert(file.ino(), file.blocks() * 512);
        }
    }
    files.values().sum()
}

/// Also after the engine did not listen for a while, and the program had to begin anew with it.
#[test]
fn s2_6_frames_are_given_back_though_a_program_came_twice() {
    if !can_merge() {
        return;
    }
    let mut host = Host::new();
    let mut run = host.run("advised");
    run.arg(c_program("discard.c")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut program = Running(run.spawn().unwrap());
    let mut said = BufReader::new(program.0.stdout.take().unwrap()).lines();
    let mut ask = program.0.stdin.take().unwrap();
    let mut wait = |what: &str| assert_eq!(said.next().unwrap().unwrap(), what);
    wait("merged");
    let daemon = host.daemon();
    kill_process(daemon, Signal::STOP).unwrap();
    writeln!(ask).unwrap();
    wait("dropped");
    kill_process(daemon, Signal::CONT).unwrap();
    writeln!(ask).unwrap();
    wait("again");
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let (used, there) = (host.number("pages_shared") * 4096, frames_bytes(daemon));
        if there <= used + SLACK_BYTES {
            println!("{there} bytes for {used} of frames");
            break;
        }
        assert!(Instant::now() < end, "{there} bytes for {used} of frames");
        std::thread::sleep(Duration::from_millis(50));
    }
    writeln!(ask).unwrap();
    wait("right");
    assert!(program.0.wait().unwrap().success());
}
