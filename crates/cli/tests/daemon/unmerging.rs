//! `run=2` over much merged memory, by the control files: everything else goes on meanwhile (S5.2).
//!
//! `NUMERGE_UNMERGE_MIB` says how much is merged; `tools/unmerge` runs this with 8 GiB.

use std::fs;
use std::io::Write;
use std::os::unix::thread::JoinHandleExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::bed::{Bed, By, Daemon, is_root};

/// After so long, what has not come about is not going to, however much memory there is.
const LONG: Duration = Duration::from_secs(900);

const TRIES: usize = 4;

fn mib() -> u64 {
    std::env::var("NUMERGE_UNMERGE_MIB").map_or(512, |mib| mib.parse().unwrap())
}

/// All files that can be read but `run`, whose reader would not know what it is to be.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else if !path.ends_with("run") {
            found.push(path);
        }
    }
    found
}

fn counter(files: &Path, name: &str) -> u64 {
    fs::read_to_string(files.join(name)).unwrap().trim_end().parse().unwrap()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LONG, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a daemon has mounted that a failed test has killed.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Not there any more, as a rule.
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Writes 2 to `run`, and gives what came of it when it is over.
fn unmerge(files: &Path) -> JoinHandle<std::io::Result<()>> {
    let run = files.join("run");
    std::thread::spawn(move || fs::write(run, "2\n"))
}

/// Unmerges by a thread that is sent a signal when it is time; what its write came to. No other test of this
/// program sends the signal.
fn unmerge_with_signal(files: &Path, is_time: impl Fn() -> bool) -> std::io::Error {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: all zeros is a value of it, with no flags and no signals blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    // SAFETY: the handler does nothing, which it may at any time.
    let set = unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    let run = files.join("run");
    // Once: `fs::write` does so again after a signal.
    let writer = std::thread::spawn(move || {
        fs::File::options().write(true).open(run).and_then(|mut run| run.write(b"2\n"))
    });
    until("it is time for the signal", || is_time() || writer.is_finished());
    // SAFETY: a thread that is not joined yet; it may have ended, and gets no signal then.
    unsafe { libc::pthread_kill(writer.as_pthread_t(), libc::SIGUSR1) };
    writer.join().unwrap().unwrap_err()
}

/// Between questions: who asks without a rest takes half the CPUs of a small machine from the unmerging.
const PACE: Duration = Duration::from_micros(250);

/// A thread that gives back what it is given: how long that takes is what this machine, as busy as it is, takes
/// for an answer of anybody's.
fn echo() -> (Sender<()>, Receiver<()>) {
    let (ask, asked) = channel();
    let (answer, answered) = channel();
    std::thread::spawn(move || {
        numerge_topology::take_first_turns();
        while let Ok(()) = asked.recv()
            && answer.send(()).is_ok()
        {}
    });
    (ask, answered)
}

/// The median of some times, how many are over 10 ms, and the longest.
fn figures(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let long = times.iter().filter(|time| **time > Duration::from_millis(10)).count();
    let [median, longest] = [times.len() / 2, times.len().saturating_sub(1)]
        .map(|place| times.get(place).copied().unwrap_or_default());
    format!(
        "{} answers, the median {median:?}, {long} over 10 ms, the slowest {longest:?}",
        times.len()
    )
}

/// Asks all files again and again for as long as `more` of the rounds so far says so. Prints how long answers took,
/// and those of a thread of the asker's at the same time; gives how many rounds there were.
fn ask(place: &Path, others: &[PathBuf], when: &str, mut more: impl FnMut(u32) -> bool) -> u32 {
    // How long an answer takes is asked, not how long the asker waits for a CPU afterwards.
    numerge_topology::take_first_turns();
    let (mut answers, mut echoes, mut rounds) = (Vec::new(), Vec::new(), 0);
    let (say, said) = echo();
    let mut timed = |what: &Path, work: &dyn Fn()| {
        let asked = Instant::now();
        work();
        let took = asked.elapsed();
        if took > Duration::from_millis(10) {
            println!("{when}: {}: {took:?}", what.display());
        }
        answers.push(took);
        let asked = Instant::now();
        say.send(()).unwrap();
        said.recv().unwrap();
        echoes.push(asked.elapsed());
        std::thread::sleep(PACE);
    };
    while more(rounds) {
        others.iter().for_each(|file| timed(file, &|| drop(fs::read(file).unwrap())));
        let knob = place.join("sleep_millisecs");
        timed(&knob, &|| fs::write(&knob, "1\n").unwrap());
        rounds += 1;
    }
    numerge_topology::take_ordinary_turns();
    println!(
        "{when}: files gave {}; a thread of the asker's {}",
        figures(&mut answers),
        figures(&mut echoes),
    );
    rounds
}

/// How many of the three threads that answer run before others.
fn first_of(daemon: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
    let policies = tasks.filter_map(|task| {
        let task = task.unwrap();
        // Gone by now, if it can't be read.
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let number = task.file_name().to_str()?.parse().ok()?;
        let answers = ["control-fs-in", "control-fs-out", "fuser-0"].contains(&name.trim_end());
        // SAFETY: asks for a number.
        answers.then(|| unsafe { libc::sched_getscheduler(number) })
    });
    let policies: Vec<i32> = policies.collect();
    assert_eq!(policies.len(), 3);
    policies.iter().filter(|policy| **policy == libc::SCHED_RR).count()
}

fn may_be_first() -> bool {
    let tried = std::thread::spawn(|| {
        numerge_topology::take_first_turns();
        // SAFETY: asks for a number.
        unsafe { libc::sched_getscheduler(0) }
    });
    tried.join().unwrap() == libc::SCHED_RR
}

/// Unmerges all, and gives how often all other files answered meanwhile.
fn unmerge_and_ask(daemon: u32, place: &Path, others: &[PathBuf]) -> u32 {
    let began = Instant::now();
    let writer = unmerge(place);
    until("it has begun", || counter(place, "run") == 2 || writer.is_finished());
    let mut ordinary = 0;
    let rounds = ask(place, others, "while run=2 unmerges", |rounds| {
        let is_finished = writer.is_finished();
        ordinary += u32::from(rounds > 0 && !is_finished && first_of(daemon) < 3);
        !is_finished
    });
    // A look may have been when it was over.
    if may_be_first() {
        assert!(
            ordinary <= 1 + rounds / 4,
            "{ordinary} of {rounds} times files waited for their turn"
        );
    } else {
        println!("SKIPPED: turns before others' need CAP_SYS_NICE");
    }
    writer.join().unwrap().unwrap_or_else(|error| panic!("run=2: {error}"));
    println!("run=2 over {} MiB: {:?}", mib(), began.elapsed());
    ask(place, others, "as often, with nothing to unmerge", |asked| asked < rounds.max(1));
    assert_eq!(first_of(daemon), 0, "with nothing to unmerge");
    // The last may have been over only afterwards.
    rounds.saturating_sub(1)
}

/// At rest, pages are one or the other (S5.6).
fn adds_up(daemon: &Daemon) {
    let status = daemon.status();
    let number = |name: &str| status[name].as_u64().unwrap();
    let parts = ["pages_shared", "pages_sharing", "pages_unshared", "pages_volatile"];
    let others = ["ksm_zero_pages", "pages_untouched"];
    let sum: u64 = parts.iter().chain(&others).map(|name| number(name)).sum();
    assert_eq!(sum, number("pages_registered"), "{status}");
}

#[test]
fn s5_2_all_files_answer_while_run_2_unmerges_and_it_can_be_ended() {
    if !is_root() {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        println!("SKIPPED: control files need /dev/fuse");
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let place = bed.path("ksm");
    let _mounted = Mounted(&place);
    let daemon = bed.daemon(&["--control-dir", place.to_str().unwrap()]);
    let pages = mib() * 256 / 2;
    let mut programs = [(); 2].map(|()| bed.program(&By::me(), pages, 1));
    let is_merged =
        || ["pages_shared", "pages_sharing"].map(|name| counter(&place, name)) == [pages, pages];
    until("all is merged", is_merged);
    let others = files(&place);
    // Those of nodes give what was counted last where that takes long; the first is waited for.
    others.iter().for_each(|file| drop(fs::read(file).unwrap()));
    assert!(others.len() > 40, "{others:?}");

    // All of it, and everything else answers.
    let rounds = (0..TRIES).map(|_| {
        fs::write(place.join("run"), "1\n").unwrap();
        until("all is merged", is_merged);
        unmerge_and_ask(daemon.child.id(), &place, &others)
    });
    // One is enough to show it; a busy machine may not get round all files the first time.
    assert!(rounds.into_iter().any(|rounds| rounds > 0), "not all files answered meanwhile");
    assert_eq!(counter(&place, "pages_shared") + counter(&place, "pages_sharing"), 0);
    adds_up(&daemon);
    programs.iter_mut().for_each(|program| program.is_whole());

    // Half of it: who ended it gets on, what is merged still stays so, and 1 merges all again.
    fs::write(place.join("run"), "1\n").unwrap();
    until("all is merged again", is_merged);
    let writer = unmerge(&place);
    until("half of it is unmerged", || {
        counter(&place, "pages_sharing") < pages / 2 || writer.is_finished()
    });
    let ended = Instant::now();
    fs::write(place.join("run"), "0\n").unwrap();
    println!(
        "ended halfway: {:?}, with {} pages saved still",
        ended.elapsed(),
        counter(&place, "pages_sharing")
    );
    let error = writer.join().unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED), "{error}");
    assert_eq!(counter(&place, "run"), 0);
    adds_up(&daemon);
    programs.iter_mut().for_each(|program| program.is_whole());

    // Half of it again, and the writer gets a signal that does nothing else.
    fs::write(place.join("run"), "1\n").unwrap();
    until("all is merged once more", is_merged);
    let error = unmerge_with_signal(&place, || counter(&place, "pages_sharing") < pages / 2);
    assert_eq!(error.raw_os_error(), Some(libc::EINTR), "{error}");
    assert_eq!(counter(&place, "run"), 0);
    assert!(counter(&place, "pages_sharing") > 0, "nothing is merged any more");
    adds_up(&daemon);
    programs.iter_mut().for_each(|program| program.is_whole());
    fs::write(place.join("run"), "1\n").unwrap();
    until("all is merged in the end", is_merged);
    programs.iter_mut().for_each(|program| program.is_whole());
    daemon.end();
}
