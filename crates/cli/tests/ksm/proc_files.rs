//! What `--as-ksm` shows in `/proc/PID`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use numerge_server::{Listener, Socket};

use crate::bed::{c_program, can_merge, numerge};
use crate::{KERNELS_RUNS, by_ksmd, can_be_ksm};

/// What `proc_user.c` sees with Linux 6.18.
const KERNELS: &str = "\
at first: 0, 0 merging, 0 zero, 0 items, any no, mergeable no
filled: 0, 0 merging, 0 zero, 0 items, any no, mergeable no
marked: 0, 0 merging, 0 zero, 0 items, any no, mergeable yes
merged: 200, 200 merging, 0 zero, 250 items, any no, mergeable yes
written to: 180, 180 merging, 0 zero, 250 items, any no, mergeable yes
half of it unmergeable: 100, 100 merging, 0 zero, 150 items, any no, mergeable yes
stopped: 100, 100 merging, 0 zero, 150 items, any no, mergeable yes
a child by fork: 0, 0 merging, 0 zero, 0 items, any no
the parent of a child: 100, 100 merging, 0 zero, 150 items, any no, mergeable yes
a child that executed: 0, 0 merging, 0 zero, 0 items, any no, mergeable no
unmerged: 0, 0 merging, 0 zero, 0 items, any no, mergeable yes
merged again: 100, 100 merging, 0 zero, 150 items, any no, mergeable yes
unmergeable: 0, 0 merging, 0 zero, 0 items, any no, mergeable no
all is to be merged: 0, 0 merging, 0 zero, 0 items, any yes, mergeable yes
a child of whom all is to be merged: 0, 0 merging, 0 zero, 0 items, any yes
one by a system call: 0, 0 merging, 0 zero, 0 items, any yes
a child, by its number: 0, 0 merging, 0 zero, 0 items, any yes
a child that is no more: No such process
their parent: 0, 0 merging, 0 zero, 0 items, any yes, mergeable yes
not any more: 0, 0 merging, 0 zero, 0 items, any no, mergeable no
zeros: 0, 0 merging, 10 zero, 0 items, any no, mergeable yes
fewer zeros: 0, 0 merging, 9 zero, 1 items, any no, mergeable yes
no zeros: 0, 0 merging, 0 zero, 0 items, any no, mergeable yes
";

/// How long nobody takes that waits five seconds.
const LONG: Duration = Duration::from_secs(30);

#[test]
fn s5_5_a_process_sees_in_proc_what_it_sees_with_the_kernel() {
    if !can_be_ksm() {
        return;
    }
    let user = c_program("proc_user.c");
    let output = numerge(&["run", "--as-ksm", "--", user.to_str().unwrap(), "2"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let ours = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{errors}{ours}");
    assert_eq!(ours, KERNELS);
}

#[test]
fn the_kernels_files_are_what_ours_are_compared_with() {
    if !can_be_ksm() {
        return;
    }
    let user = c_program("proc_user.c");
    let mut last = String::new();
    for _ in 0..KERNELS_RUNS {
        // With the kernel, what is written in the midst of a scan takes some more.
        let Some(seen) = by_ksmd(&user, &["6"]) else { return };
        if seen == KERNELS {
            return;
        }
        last = seen;
    }
    assert_eq!(last, KERNELS);
}

/// What the file system is that a file is in.
fn device(path: &str) -> u64 {
    fs::metadata(path).unwrap().dev()
}

/// A command below `numerge run --as-ksm` that one can talk to.
struct Talking {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Talking {
    fn start(script: &str) -> Self {
        let mut run = numerge(&["run", "--as-ksm", "--", "sh", "-c", script]);
        let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Lets a `read` of the script's return.
    fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn end(mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Talking {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn files_in_proc_are_in_the_commands_namespace_alone_and_go_with_the_process() {
    if !can_be_ksm() {
        return;
    }
    let in_proc = device("/proc/self/status");
    // A process that lives on, and one that has ended when the line is there.
    let script = "cat /proc/self/ksm_merging_pages; echo $$; read go; grep -c ksm_ /proc/mounts";
    let mut command = Talking::start(script);
    assert_eq!(command.line(), "0", "nothing of it is marked");
    let pid = command.line();
    for file in ["ksm_stat", "ksm_merging_pages"] {
        let outside = device(&format!("/proc/{pid}/{file}"));
        assert_eq!(outside, in_proc, "{file}: the kernel's own");
        let inside = device(&format!("/proc/{pid}/root/proc/{pid}/{file}"));
        assert_ne!(inside, in_proc, "{file}: ours");
        let other = fs::read_to_string(format!("/proc/{pid}/root/proc/self/{file}")).unwrap();
        assert_eq!(other, fs::read_to_string(format!("/proc/self/{file}")).unwrap());
    }
    let of_thread = device(&format!("/proc/{pid}/root/proc/{pid}/task/{pid}/ksm_stat"));
    assert_eq!(of_thread, in_proc, "those of threads stay the kernel's");
    command.go_on();
    assert_eq!(command.line(), "4", "those of the shell and of grep: cat's went with it");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("ksm_stat") && !mounts.contains("ksm_merging_pages"), "{mounts}");
    command.end();
}

#[test]
fn many_programs_that_begin_at_a_time_have_files_in_proc_all_of_them() {
    if !can_be_ksm() {
        return;
    }
    let script = "for n in $(seq 60); do stat -c %d /proc/self/ksm_stat & done; wait";
    let output = numerge(&["run", "--as-ksm", "--", "sh", "-c", script]).output().unwrap();
    let devices = String::from_utf8(output.stdout).unwrap();
    let in_proc = device("/proc/self/status").to_string();
    assert_eq!(devices.lines().filter(|device| *device != in_proc).count(), 60, "{devices}");
}

/// Where the processes of a command ask.
fn socket_of(pid: &str) -> String {
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let found = environment.split('\0').find_map(|set| set.strip_prefix("NUMERGE_AS_KSM="));
    found.unwrap().to_owned()
}

#[test]
fn who_asks_for_files_and_says_nothing_or_nonsense_gets_none_and_holds_up_nobody_for_long() {
    if !can_be_ksm() {
        return;
    }
    let script = "echo $$; read go; stat -c %d /proc/self/ksm_stat /proc/self/status";
    let mut command = Talking::start(script);
    let pid = command.line();
    let socket = socket_of(&pid);
    let connect = || Socket::connect(socket.as_ref()).unwrap();
    let [_silent, nonsense, long, right] = [(); 4].map(|()| connect());
    let say = |to: &Socket, bytes: &[u8]| {
        rustix::net::send(to, bytes, rustix::net::SendFlags::NOSIGNAL).unwrap();
    };
    let wait = |to: &Socket| {
        let end = rustix::net::recv(to, &mut [0_u8; 1][..], rustix::net::RecvFlags::empty());
        assert_eq!(end.unwrap().0, 0, "the end is the answer");
    };
    let has_files = || {
        let own = format!("/proc/{pid}/root/proc/{}", std::process::id());
        device(&format!("{own}/ksm_stat")) != device(&format!("{own}/status"))
    };
    say(&nonsense, &[7]);
    say(&long, &[0; 100]);
    wait(&nonsense);
    wait(&long);
    assert!(!has_files());
    say(&right, &[0]);
    wait(&right);
    assert!(has_files(), "this process has asked for its own, which are in the namespace there");
    command.go_on();
    let [ours, kernels] = [command.line(), command.line()];
    assert_ne!(ours, kernels, "who comes after them has files");
    command.end();
}

#[test]
fn a_program_goes_on_where_nobody_shows_it_files() {
    if !can_merge() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let deaf = place.path().join("deaf");
    let _listener = Listener::bind(&deaf, 0o600).unwrap();
    let other = place.path().join("other");
    let _other = UnixListener::bind(&other).unwrap();
    let nobody = place.path().join("nobody");
    for (socket, least) in [(deaf, 5), (other, 0), (nobody, 0)] {
        let set = format!("NUMERGE_AS_KSM={}", socket.display());
        let began = Instant::now();
        assert!(numerge(&["run", "--", "env", &set, "true"]).status().unwrap().success());
        let took = began.elapsed();
        assert!((Duration::from_secs(least)..LONG).contains(&took), "{socket:?}: {took:?}");
    }
}
