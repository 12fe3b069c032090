//! Processes of Python with arrays of numpy's, equal in all of them.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::bed::{Host, Running, can_merge};

const PROCESSES: u64 = 3;
const ROUNDS: usize = 10;
/// Of one process: 2^20 numbers, and a matrix of 512 * 512.
const ARRAY_BYTES: u64 = (1 << 23) + (1 << 21);
/// Debian's, which has its numpy.
const PYTHON: &str = "/usr/bin/python3";

/// One process, asked round by round.
struct Python {
    ask: Option<ChildStdin>,
    said: Lines<BufReader<ChildStdout>>,
    process: Running,
}

impl Python {
    fn start(mut run: Command) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/arrays.py");
        run.arg(PYTHON).arg(script);
        let mut process: Child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { ask: process.stdin.take(), said, process: Running(process) }
    }

    fn ask(&mut self) {
        writeln!(self.ask.as_mut().unwrap(), "a round").unwrap();
    }

    fn answers(&mut self, round: usize) {
        assert_eq!(self.said.next().unwrap().unwrap(), format!("round {round}"));
    }

    fn end(mut self) {
        self.ask = None;
        assert!(self.process.0.wait().unwrap().success());
    }
}

fn has_numpy() -> bool {
    let mut python = Command::new(PYTHON);
    let found = python.args(["-c", "import numpy"]).output().is_ok_and(|ran| ran.status.success());
    if !found {
        println!("SKIPPED: {PYTHON} has no numpy: tools/setup installs it");
    }
    found
}

/// Processes side by side compute and rewrite, and save nearly all but one's arrays whenever they rest.
#[test]
fn s1_1_arrays_in_memory_that_python_maps() {
    if !can_merge() || !has_numpy() {
        return;
    }
    let mut host = Host::new();
    let mut processes: Vec<Python> =
        (0..PROCESSES).map(|_| Python::start(host.run("mapped"))).collect();
    for round in 0..ROUNDS {
        processes.iter_mut().for_each(Python::ask);
        processes.iter_mut().for_each(|process| process.answers(round));
        // They wait for their next rounds, now and then until all is merged again.
        if round % 3 == 0 {
            host.wait_saved((PROCESSES - 1) * ARRAY_BYTES * 95 / 100);
        }
    }
    println!("{}", host.client.status().unwrap());
    processes.into_iter().for_each(Python::end);
}
