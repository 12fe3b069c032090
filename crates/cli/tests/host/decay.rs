//! What is written after it was merged is merged again, for ever.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use numerge::control::{Client, path_beside};

use crate::bed::{can_merge, example, numerge};

const MIB: u64 = 32;
const ROUNDS: usize = 10;

/// Ended when it is dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Pages saved once nothing is left that could still be merged.
fn at_rest(client: &mut Client) -> u64 {
    let end = Instant::now() + Duration::from_secs(120);
    // What was just written is not seen before the next scans.
    let mut scans = None;
    loop {
        let now = client.status().unwrap();
        let number = |name: &str| now[name].as_u64().unwrap();
        let seen = *scans.get_or_insert(number("full_scans") + 3);
        if number("full_scans") >= seen && number("pages_volatile") == 0 {
            return number("pages_sharing");
        }
        assert!(Instant::now() < end, "not at rest: {now}");
        std::thread::sleep(Duration::from_millis(20));
    }
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
    println!("pages saved after each round: {saved:?}, {}", client.status().unwrap());
    drop(ask);
    assert!(program.wait().unwrap().success());
    // Three of four pages are equal to another.
    assert!(saved[0] * 100 >= MIB * 256 * 74, "{saved:?}");
    assert!(saved.iter().all(|now| now * 100 >= saved[0] * 95), "{saved:?}");
}
