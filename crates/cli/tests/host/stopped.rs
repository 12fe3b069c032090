//! Programs that are stopped at any moment, also while pages of theirs are out of view.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::bed::{Host, Running, c_program, can_merge};

/// At least; and until so many were in the midst of a merge, or there were this many.
const STOPS: u64 = 300;
const IN_A_MERGE: u64 = 5;
const MOST_STOPS: u64 = 6000;
/// Longer than a merge waits for an answer.
const LONG: Duration = Duration::from_millis(400);
/// Seconds that the first stop in the midst of a merge takes, if there is such a variable: as `tools/torture` has it.
const SECONDS: &str = "NUMERGE_TEST_STOPPED_SECONDS";
/// While one is stopped, something of the other's is merged within this time.
const LONGEST: Duration = Duration::from_secs(5);
/// As in renews.c.
const PIECES: usize = 12;
const PIECE: usize = 64;
const PAGE: usize = 4096;

/// A running renews.c, and the file that says what it does.
struct Renews {
    run: Running,
    state: File,
    pid: Pid,
}

impl Renews {
    fn new(host: &Host, program: &Path) -> Self {
        let state = tempfile::NamedTempFile::new().unwrap();
        state.as_file().set_len(4096).unwrap();
        let mut command = host.run("advised");
        command.arg(program).arg(state.path());
        let mut run = Running(command.spawn().unwrap());
        let word = || read_word(state.as_file(), 1);
        while word() == 0 {
            assert!(run.0.try_wait().unwrap().is_none(), "it has ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        let pid = Pid::from_raw(i32::try_from(word()).unwrap()).unwrap();
        Self { run, state: state.into_file(), pid }
    }

    fn rounds(&self) -> u64 {
        read_word(&self.state, 2)
    }

    /// How long it takes until something is merged that it maps from now on.
    fn until_merged(&self) -> Duration {
        let merged = || read_word(&self.state, 3);
        let (begun, since) = (self.rounds(), Instant::now());
        let mut before = None;
        while before.is_none_or(|before| before == merged()) {
            assert!(
                since.elapsed() < LONGEST,
                "not merged for {LONGEST:?} while another is stopped"
            );
            // What was there is given up first.
            if before.is_none() && self.rounds() > begun + PIECES as u64 {
                before = Some(merged());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        since.elapsed()
    }

    /// Stops it, and waits until all of its threads are.
    fn stop(&self) {
        kill_process(self.pid, Signal::STOP).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while !self.threads().iter().all(|state| *state == 'T') {
            assert!(Instant::now() < end, "its threads are {:?}", self.threads());
        }
    }

    fn go_on(&self) {
        kill_process(self.pid, Signal::CONT).unwrap();
    }

    /// The state of each of its threads.
    fn threads(&self) -> Vec<char> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
        // One that ends meanwhile has none.
        let stats =
            tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok());
        stats.map(|stat| stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()).collect()
    }

    /// Pages that it has filled and that are neither in its memory nor mapped to frames. It is stopped.
    fn out_of_view(&self) -> usize {
        let frames = self.frames();
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid)).unwrap();
        let mut missing = 0;
        for piece in 0..PIECES {
            let start = usize::try_from(read_word(&self.state, 4 + piece)).unwrap();
            if start == 0 {
                continue;
            }
            let mut entries = [0; PIECE * 8];
            pagemap.read_exact_at(&mut entries, (start / PAGE * 8) as u64).unwrap();
            for (n, entry) in entries.as_chunks::<8>().0.iter().enumerate() {
                // Present, or swapped out.
                let is_there = u64::from_ne_bytes(*entry) >> 62 != 0;
                let page = start + n * PAGE;
                let is_merged = frames.iter().any(|frames| frames.contains(&page));
                missing += usize::from(!is_there && !is_merged);
            }
        }
        missing
    }

    /// Its mappings of frames.
    fn frames(&self) -> Vec<std::ops::Range<usize>> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap();
        let frames = maps.lines().filter(|line| line.contains("numerge-frames"));
        let hex = |text| usize::from_str_radix(text, 16).unwrap();
        let ranges = frames.map(|line| line.split(' ').next().unwrap().split_once('-').unwrap());
        ranges.map(|(start, end)| hex(start)..hex(end)).collect()
    }

    /// Has it end, which it does well only if all its memory was right at all times.
    fn end(mut self) {
        self.state.write_all_at(&1_u64.to_ne_bytes(), 0).unwrap();
        let status = self.run.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

/// The n-th word of a file.
fn read_word(file: &File, n: usize) -> u64 {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, (n * 8) as u64).unwrap();
    u64::from_ne_bytes(word)
}

/// Whatever a program was doing when it was stopped, it finds its memory as it left it, and another that is
/// served by the same daemon goes on being merged.
#[test]
fn s6_a_program_stopped_in_the_midst_of_a_merge_holds_nobody_up() {
    if !can_merge() {
        return;
    }
    let program = c_program("renews.c");
    let mut host = Host::new();
    let (one, other) = (Renews::new(&host, &program), Renews::new(&host, &program));
    host.wait_saved(1 << 20);
    let (mut stops, mut staged, mut longest) = (0, 0, Duration::ZERO);
    let mut random = 1_u64;
    let mut below = |n: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % n
    };
    let seconds = std::env::var(SECONDS).map_or(0, |seconds| seconds.parse().unwrap());
    let first_in_a_merge = Duration::from_secs(seconds).max(LONG);
    while stops < STOPS || staged < IN_A_MERGE && stops < MOST_STOPS {
        std::thread::sleep(Duration::from_micros(below(2000)));
        one.stop();
        let out_of_view = one.out_of_view();
        let rounds = one.rounds();
        // In the midst of a merge, and in any case now and then, longer than anybody waits.
        if out_of_view > 0 || stops % 100 == 0 {
            let is_first = out_of_view > 0 && staged == 0;
            let (until, since) = (if is_first { first_in_a_merge } else { LONG }, Instant::now());
            longest = longest.max(other.until_merged());
            while since.elapsed() + LONG < until {
                longest = longest.max(other.until_merged());
            }
            std::thread::sleep(until.saturating_sub(since.elapsed()));
            assert_eq!(one.out_of_view(), out_of_view, "somebody touched it");
        } else {
            std::thread::sleep(Duration::from_micros(below(2000)));
        }
        assert_eq!(one.rounds(), rounds, "it was not stopped");
        one.go_on();
        stops += 1;
        staged += u64::from(out_of_view > 0);
    }
    println!(
        "{stops} stops, {staged} of them with pages out of view; pages of the other were merged within {longest:?}"
    );
    one.end();
    other.end();
    assert!(staged >= IN_A_MERGE, "only {staged} of {stops} stops were in the midst of a merge");
}
