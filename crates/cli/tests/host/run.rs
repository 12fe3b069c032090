//! The command of `numerge run` does not notice it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use crate::bed::{by_way_of, numerge};

#[test]
fn the_commands_exit_status_is_ours() {
    for code in [0, 1, 7, 255] {
        let status = numerge(&["run", "--", "sh", "-c", &format!("exit {code}")]).status().unwrap();
        assert_eq!(status.code(), Some(code));
    }
}

#[test]
fn a_command_killed_by_a_signal_is_so_for_us() {
    for signal in [9, 15, 6] {
        let kill = format!("kill -{signal} $$");
        let status = numerge(&["run", "--", "sh", "-c", &kill]).status().unwrap();
        assert_eq!(status.signal(), Some(signal), "{status}");
    }
}

#[test]
fn a_command_that_cannot_be_run_ends_as_in_a_shell() {
    let code = |program: &str| numerge(&["run", "--", program]).status().unwrap().code();
    assert_eq!(code("/no/such/program"), Some(127));
    assert_eq!(code("/"), Some(126));
}

/// As `kill` has it, which sends real-time signals too.
fn send(signal: i32, child: &std::process::Child) {
    let kill = format!("kill -{signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

#[test]
fn signals_go_to_the_command() {
    let real_time = [libc::SIGRTMIN(), libc::SIGRTMIN() + 1, libc::SIGRTMAX()];
    let named = [libc::SIGTERM, libc::SIGUSR1, libc::SIGALRM, libc::SIGPROF, libc::SIGIO];
    for signal in named.into_iter().chain(real_time) {
        let script = format!(
            "trap 'echo got {signal}; exit 3' {signal}; echo ready; for i in $(seq 1000); do sleep 0.01; done"
        );
        let mut run = numerge(&["run", "--", "sh", "-c", &script]);
        let mut child = run.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        send(signal, &child);
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, format!("got {signal}\n"));
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}

#[test]
fn a_command_that_ends_by_a_signal_passed_on_has_us_end_by_it() {
    for signal in [libc::SIGTERM, libc::SIGIO, libc::SIGPWR, libc::SIGRTMIN(), libc::SIGRTMAX()] {
        let mut run = numerge(&["run", "--", "sh", "-c", "echo ready; exec sleep 10"]);
        let mut child = run.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        send(signal, &child);
        assert_eq!(child.wait().unwrap().signal(), Some(signal));
    }
}

/// A timer outlives an exec: who sets one limits what it executes.
#[test]
fn a_timer_from_before_ends_the_command() {
    let script = "trap 'exit 3' ALRM; for i in $(seq 1000); do sleep 0.01; done";
    let run = numerge(&["run", "--", "sh", "-c", script]);
    let mut timed = Command::new("perl");
    timed.args(["-e", "alarm 2; exec @ARGV"]);
    let mut timed = by_way_of(timed, &run);
    assert_eq!(timed.status().unwrap().code(), Some(3));
}

#[test]
fn a_signal_that_comes_while_copies_are_started_goes_to_all() {
    let scratch = tempfile::tempdir().unwrap();
    // The first that is there signals, most likely before the last is started.
    let script = "trap 'exit 3' TERM; mkdir first 2>/dev/null && kill -TERM $PPID; \
                  for i in $(seq 1000); do sleep 0.01; done; mkdir missed";
    let mut run = numerge(&["run", "-n", "32", "--", "sh", "-c", script]);
    let status = run.current_dir(scratch.path()).status().unwrap();
    assert!(!status.success());
    assert!(!scratch.path().join("missed").exists());
}

#[test]
fn a_signal_that_is_ignored_stays_so() {
    let mut sh = Command::new("sh");
    sh.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    let run = numerge(&["run", "--", "sh", "-c", "kill -HUP $$; echo alive"]);
    let output = by_way_of(sh, &run).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "alive\n");
}

#[test]
fn standard_error_is_the_commands_unless_a_log_is_wanted() {
    let said = |log: &[&str]| {
        // Long enough that the engine has come to know of it.
        let command = ["--", "sh", "-c", "echo mine >&2; sleep 0.3"];
        let output = numerge(&[&["run"], log, &command].concat()).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(said(&[]), "mine\n");
    assert_eq!(said(&["--log", "error"]), "mine\n");
    let log = said(&["--log", "info"]);
    assert!(
        log.contains("mine\n") && log.contains(" INFO ") && log.contains("set knob=run"),
        "{log}"
    );
    assert!(!log.contains("DEBUG"), "{log}");
    let log = said(&["--log", "debug"]);
    assert!(log.contains("DEBUG") && log.contains("to be set knob=run"), "{log}");
}

#[test]
fn copies_run_side_by_side_and_the_first_bad_end_counts() {
    let output = numerge(&["run", "-n", "3", "--", "echo", "here"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "here\nhere\nhere\n");
    let bad = numerge(&["run", "-n", "2", "--", "sh", "-c", "exit 5"]).status().unwrap();
    assert_eq!(bad.code(), Some(5));
}

#[test]
fn bad_arguments_are_named_with_what_is_allowed() {
    let cases: [(&[&str], &str); 10] = [
        (&["run", "--", "/no/such/program"], "can't run /no/such/program"),
        (&["run", "--set", "nonsense=1", "--", "true"], "no knob 'nonsense': there are run,"),
        (&["run", "--set", "run=x", "--", "true"], "run can't be 'x': allowed is 0 to 2"),
        (&["run", "--set", "max_page_sharing=1", "--", "true"], "allowed is 2 to"),
        (&["run", "--socket", "/no/such/socket", "--", "true"], "no numerge daemon answers at"),
        (&["run", "--domain", "a b", "--", "true"], "only A-Z, a-z, 0-9, '.', '_' and '-'"),
        (&["run", "--domain", "", "--", "true"], "0, where 1 to 64 are allowed"),
        (&["run", "--log", "loud", "--", "true"], "[possible values: error, warn, info, debug]"),
        (&["run", "--log", "info", "--socket", "x", "--", "true"], "--log is for an engine of"),
        (&["run", "--stats", "/no/such/place/x", "--", "true"], "can't write statistics to"),
    ];
    for (arguments, said) in cases {
        let output = numerge(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
    let output =
        numerge(&["run", "--", "true"]).env("NUMERGE_AGENT", "/no/agent").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/agent"));
}
