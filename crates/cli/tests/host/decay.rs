//! What is written after it was merged is merged again, for ever.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use numerge::control::Client;

use crate::bed::{Host, can_merge, example};

const MIB: u64 = 32;
const ROUNDS: usize = 10;

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
    let mut host = Host::new();
    let mut run = host.run("advised");
    run.arg(example("rewrite")).arg(MIB.to_string());
    let mut program = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(program.stdout.take().unwrap()).lines();
    let mut ask = program.stdin.take().unwrap();
    let mut saved = Vec::new();
    for round in 0..ROUNDS {
        writeln!(ask, "again").unwrap();
        assert_eq!(said.next().unwrap().unwrap(), format!("round {round}"));
        saved.push(at_rest(&mut host.client));
    }
    println!("pages saved after each round: {saved:?}, {}", host.client.status().unwrap());
    drop(ask);
    assert!(program.wait().unwrap().success());
    // Three of four pages are equal to another.
    assert!(saved[0] * 100 >= MIB * 256 * 74, "{saved:?}");
    assert!(saved.iter().all(|now| now * 100 >= saved[0] * 95), "{saved:?}");
}
