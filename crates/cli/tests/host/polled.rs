//! Counters, read all the time while a program does to its memory all that programs do.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use crate::bed::{c_program, can_merge, numerge};

/// Pages that come or go with the children of the program (`torture.c`), and may do so between two files that
/// are read one after the other: each of its threads has a child with all that it has itself.
const COME_AND_GO: i64 = 4 * 6 * 600;
/// More bytes than all tracking ever takes here.
const MOST_METADATA: i64 = 1 << 32;
/// What no more pages are, or frames, than are registered.
const KINDS: [&str; 12] = [
    "ksm_zero_pages",
    "pages_held",
    "pages_home",
    "pages_over_budget",
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_untouched",
    "pages_volatile",
    "sharers_remote",
    "stable_node_chains",
    "stable_node_dups",
];
const SECONDS: &str = "8";
/// Rounds of looks until two in a row are alike.
const PATIENCE: usize = 100;

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Whether this machine has what the tests need; says so if not.
fn can_show() -> bool {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        println!("SKIPPED: control files need root and /dev/fuse");
        return false;
    }
    can_merge()
}

/// Starts it, and gives the files it shows at `place`.
fn begin(command: &mut Command, place: &Path) -> (Child, Vec<PathBuf>) {
    let mut run = command.spawn().unwrap();
    while !place.join("run").exists() {
        assert!(run.try_wait().unwrap().is_none(), "numerge run has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    let all = files(place);
    (run, all)
}

/// What each file says; None once they are gone.
fn read_all(files: &[PathBuf]) -> Option<BTreeMap<String, i64>> {
    let mut read = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(file).ok()?;
        let mut name = file.file_name().unwrap().to_string_lossy().into_owned();
        if name != "advisor_mode" {
            let number = text.strip_suffix('\n').and_then(|number| number.parse().ok());
            if let Some(node) =
                file.parent().filter(|parent| parent.parent().is_some_and(|p| p.ends_with("nodes")))
            {
                name = format!("{name} of node {}", node.file_name().unwrap().to_string_lossy());
            }
            read.insert(name, number.unwrap_or_else(|| panic!("{}: {text:?}", file.display())));
        }
    }
    Some(read)
}

/// Looks at all counters, one round after the other.
#[derive(Default)]
struct Bounds {
    /// The last round's.
    last: BTreeMap<String, i64>,
    /// The most pages that were found registered at a time.
    registered: i64,
}

impl Bounds {
    /// A node's counters have the same bounds as all nodes' together.
    fn check(&mut self, read: BTreeMap<String, i64>) {
        self.registered = self.registered.max(read["pages_registered"]);
        let most = self.registered + COME_AND_GO;
        for (name, value) in &read {
            let counter = name.split(' ').next().unwrap();
            let (least, most) = match counter {
                "general_profit" => (-MOST_METADATA, 2 * most * 4096),
                "bytes_saved" => (0, 2 * most * 4096),
                "metadata_bytes" | "metadata_bytes_remote" => (0, MOST_METADATA),
                "frames_refused" => (0, 0),
                "stable_nodes_queued" => (0, most),
                // They only rise.
                "pages_scanned"
                | "pages_scanned_remote"
                | "pages_skipped"
                | "pages_broken"
                | "full_scans"
                | "fingerprint_collisions"
                | "stable_nodes_replaced"
                | "stable_nodes_left" => (self.last.get(name).copied().unwrap_or(0), i64::MAX),
                _ if KINDS.contains(&counter) => (0, most),
                // Knobs, and what else there is.
                _ => (0, 1 << 32),
            };
            assert!((least..=most).contains(value), "{name} is {value}: {read:?}, {:?}", self.last);
        }
        self.last = read;
    }
}

#[test]
fn s5_6_counters_are_never_out_of_bounds_whenever_they_are_read() {
    if !can_show() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().join("ksm");
    let mut command =
        numerge(&["run", "--set", "pages_to_scan=100000", "--set", "sleep_millisecs=0"]);
    command.args(["--set", "max_page_sharing=16", "--set", "use_zero_pages=1", "--control-dir"]);
    command.arg(&place).arg("--").arg(c_program("torture.c")).arg(SECONDS);
    let (mut run, all) = begin(command.current_dir(scratch.path()), &place);
    let (mut rounds, mut merged, mut broken) = (0_u32, 0, 0);
    let mut bounds = Bounds::default();
    while let Some(read) = read_all(&all) {
        rounds += 1;
        merged = merged.max(read["pages_sharing"]);
        broken = broken.max(read["pages_broken"]);
        bounds.check(read);
        if run.try_wait().unwrap().is_some() {
            break;
        }
    }
    println!(
        "{rounds} rounds over {} files; {merged} pages saved at most of {}, {broken} broken",
        all.len(),
        bounds.registered,
    );
    assert!(rounds > 10 && merged > 0 && broken > 0, "{rounds} {merged} {broken}");
    assert!(run.wait().unwrap().success(), "memory changed, or the program failed");
}

fn adds_up(read: &BTreeMap<String, i64>) {
    let parts = ["pages_shared", "pages_sharing", "pages_unshared", "pages_volatile"];
    let others = ["ksm_zero_pages", "pages_untouched"];
    let sum: i64 = parts.iter().chain(&others).map(|name| read[*name]).sum();
    assert_eq!(sum, read["pages_registered"], "{read:?}");
}

/// At rest the kinds of pages add up to all there are, wherever scanning was stopped.
#[test]
fn s5_6_counters_add_up_when_scanning_is_stopped_in_the_midst_of_it() {
    if !can_show() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().join("ksm");
    let mut command =
        numerge(&["run", "--set", "pages_to_scan=100000", "--set", "sleep_millisecs=0"]);
    command.arg("--control-dir").arg(&place).arg("--");
    // In a process group of its own, whose number it tells first.
    let script = "echo $$ > group; exec setsid \"$@\"";
    command.args(["sh", "-c", script, "sh"]).arg(c_program("torture.c")).arg(SECONDS);
    let (mut run, all) = begin(command.current_dir(scratch.path()), &place);
    let group = loop {
        let group = fs::read_to_string(scratch.path().join("group")).unwrap_or_default();
        if let Some(group) = group.strip_suffix('\n') {
            let group = Pid::from_raw(group.parse().unwrap()).unwrap();
            // It tells its number before it has a group.
            if test_kill_process_group(group).is_ok() {
                break group;
            }
        }
        assert!(run.try_wait().unwrap().is_none(), "numerge run has ended");
    };
    let mut compared = 0;
    while run.try_wait().unwrap().is_none() && kill_process_group(group, Signal::STOP).is_ok() {
        let stopped = fs::write(place.join("run"), "0\n");
        // What had begun ends.
        for _ in 0..PATIENCE {
            if let (Some(read), Some(again)) = (read_all(&all), read_all(&all))
                && read == again
            {
                adds_up(&read);
                compared += 1;
                break;
            }
        }
        let _ = stopped.and_then(|()| fs::write(place.join("run"), "1\n"));
        let _ = kill_process_group(group, Signal::CONT);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(compared > 10, "only {compared} times at rest");
    assert!(run.wait().unwrap().success(), "memory changed, or the program failed");
}
