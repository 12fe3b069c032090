//! What is written after it was merged is merged again, for ever.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use numerge::control::{Client, path_beside};

use crate::bed::{can_merge, example, numerge};

const MIB: u64 = 64;
const ROUNDS: usize = 10;

/// Ended when it is dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Pages saved once that has not changed for a second.
fn at_rest(client: &mut Client) -> u64 {
    let (mut last, mut since) = (0, Instant::now());
    let end = Instant::now() + Duration::from_secs(60);
    while since.elapsed() < Duration::from_secs(1) || last == 0 {
        assert!(Instant::now() < end, "not at rest: {}", client.status().unwrap());
        std::thread::sleep(Duration::from_millis(20));
        let now = client.status().unwrap()["pages_sharing"].as_u64().unwrap();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

#[test]
fn s3_6_savings_do_not_decay() {
    if !can_merge() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("socket");
    let daemon =
        numerge(&["daemon", "--set", "pages_to_scan=100000", "--set", "sleep_millisecs=0"])
            .arg("--socket")
            .arg(&socket)
            .spawn()
            .unwrap();
    let _daemon = Daemon(daemon);
    let end = Instant::now() + Duration::from_secs(20);
    let mut client = loop {
        match Client::connect(&path_beside(&socket)) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut run: Command = numerge(&["run", "--socket"]);
    run.arg(&socket).arg("--").arg(example("rewrite")).arg(MIB.to_string());
    let mut program = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(program.stdout.take().unwrap()).lines();
    let mut ask = program.stdin.take().unwrap();
    let mut saved = Vec::new();
    for round in 0..ROUNDS {
        writeln!(ask, "again").unwrap();
        assert_eq!(said.next().unwrap().unwrap(), format!("round {round}"));
        saved.push(at_rest(&mut client));
    }
    println!("pages saved after each round: {saved:?}");
    drop(ask);
    assert!(program.wait().unwrap().success());
    // Three of four pages are equal to another.
    assert!(saved[0] * 100 >= MIB * 256 * 74, "{saved:?}");
    assert!(saved.iter().all(|now| now * 100 >= saved[0] * 95), "{saved:?}");
}
