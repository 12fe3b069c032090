//! The system calls of a daemon, which the unit's filter must let through: one that it does not fails, and
//! only on a machine with systemd.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use numerge::control::path_beside;
use rustix::net::SocketType;

use crate::bed::{Bed, By, Program, is_root, until};
use crate::systemd::{listening, pass};

const PAGES: u64 = 200;
/// Nobody's, as the unit's user is.
const USER: &str = "65534";

const NODES_CALLS: [&str; 4] = ["get_mempolicy", "mbind", "move_pages", "set_mempolicy"];

/// A set of system calls, as systemd has it.
fn set(name: &str) -> BTreeSet<String> {
    let mut command = Command::new("systemd-analyze");
    let output = command.args(["--no-pager", "syscall-filter", name]).output();
    let output = output.expect("systemd-analyze, which tools/setup installs");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    // Its name and what it is for come first.
    let members = said.lines().skip(1).map(str::trim).filter(|line| !line.starts_with('#'));
    members.filter(|member| !member.is_empty()).flat_map(members_of).collect()
}

/// What a word of a filter stands for.
fn members_of(word: &str) -> BTreeSet<String> {
    if word.starts_with('@') { set(word) } else { [word.to_owned()].into() }
}

/// What a unit allows: its SystemCallFilter= in order, of which the first says that it is a list of what is
/// allowed.
fn allowed(unit: &str) -> BTreeSet<String> {
    let mut allowed = set("@default");
    for filter in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (takes_away, words) = match filter.strip_prefix('~') {
            Some(words) => (true, words),
            None => (false, filter),
        };
        for call in words.split(' ').flat_map(members_of) {
            if takes_away {
                allowed.remove(&call);
            } else {
                allowed.insert(call);
            }
        }
    }
    allowed
}

/// The calls in what strace has written, each line of which begins with a thread's number.
fn called(trace: &str) -> BTreeSet<String> {
    let calls = trace.lines().filter_map(|line| line.split_once(' ')).map(|(_, call)| call.trim());
    calls
        .filter(|call| !call.starts_with("<... ") && !call.starts_with(['+', '-']))
        .map(|call| call.split_once('(').expect(call).0.to_owned())
        .collect()
}

#[test]
fn the_unit_lets_through_each_system_call_of_a_daemon() {
    let Some(bed) = Bed::new() else { return };
    if !is_root() {
        return;
    }
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/systemd/numerge.service");
    let allowed = allowed(&fs::read_to_string(unit).unwrap());
    // Else it would let through anything.
    assert!(allowed.contains("read") && !allowed.contains("mount") && !allowed.contains("setuid"));

    let trace = bed.path("trace");
    let daemon = bed.daemon_command(&["--at-end", "unmerge"]);
    let mut command = Command::new("strace");
    // The daemon stays the child, and the tracer is the grandchild.
    command.args(["-D", "-f", "--output"]).arg(&trace);
    // As the unit starts it.
    command.args(["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups"]);
    command.args(["--inh-caps", "-all,+sys_ptrace,+dac_read_search"]);
    command.args(["--ambient-caps", "-all,+sys_ptrace,+dac_read_search"]);
    command.args(["--bounding-set", "-all,+sys_ptrace,+dac_read_search", "--no-new-privs"]);
    command.arg(daemon.get_program()).args(daemon.get_args());
    let agents = listening(&bed.socket(), SocketType::SEQPACKET);
    let control = listening(&path_beside(&bed.socket()), SocketType::STREAM);
    let daemon = bed.start(pass(&command, &[&agents, &control]));

    let mut programs = [(), ()].map(|()| bed.program(&By::me(), PAGES, 1));
    daemon.until_merged(PAGES, PAGES);
    assert_eq!(programs[0].ask("write 3 7777"), "ok");
    daemon.scan_twice();
    let mut client = daemon.client();
    client.set("run", 2).unwrap();
    assert_eq!(daemon.number("pages_shared"), 0);
    client.set("run", 1).unwrap();
    assert_eq!(programs[1].ask("exec"), "ready");
    daemon.until_merged(PAGES - 1, PAGES - 1);
    programs.iter_mut().for_each(Program::is_whole);
    let pid = daemon.child.id();
    daemon.end();
    programs.iter_mut().for_each(Program::is_whole);

    let read = || fs::read_to_string(&trace).unwrap();
    // Short numbers are followed by more than one blank.
    let is_end = |line: &str| {
        let (thread, what) = line.split_once(' ').unwrap_or_default();
        thread.parse() == Ok(pid) && what.trim() == "+++ exited with 0 +++"
    };
    until(|| read().lines().any(is_end), || "strace does not end".into());
    let trace = read();
    let (_, trace) = trace.rsplit_once("execve(").expect("it was executed");
    // What is left of that line is its end.
    let (_, trace) = trace.split_once('\n').unwrap();
    let called = called(trace);
    // Else it would not be seen what it does.
    for call in ["pread64", "ioctl", "fallocate", "recvmsg", "sched_setaffinity"] {
        assert!(called.contains(call), "{call}: {called:?}");
    }
    // It makes some only where there are several nodes.
    let on_nodes = NODES_CALLS.map(str::to_owned).into();
    let missing: Vec<_> = called.union(&on_nodes).filter(|call| !allowed.contains(*call)).collect();
    assert!(missing.is_empty(), "tools/systemd/numerge.service must allow {missing:?}");
}
