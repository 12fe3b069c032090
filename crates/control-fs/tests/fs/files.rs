//! Which files there are, and how they come and go.

use std::ffi::CStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use numerge_control_fs::{ControlFs, MountError, Source};
use numerge_engine::machine::Vpn;
use numerge_engine::{Knob, Nid};

use crate::bed::{Bed, NIDS, mount, until};

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The kernel's files of a kind, by what they may be used for.
fn kernel_files(mode: &str) -> impl Iterator<Item = &'static str> {
    let facts = include_str!("../facts/linux-6.18.txt").lines();
    let files = facts.filter_map(|line| line.split_once(": mode 100"));
    files.filter(move |(_, its)| its.starts_with(mode)).map(|(name, _)| name)
}

/// The kernel's counters: they can't be written.
fn kernel_counters() -> impl Iterator<Item = &'static str> {
    kernel_files("444")
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

#[test]
fn s5_5_counters_are_the_engines_at_the_moment_of_reading() {
    let Some(bed) = Bed::new(600) else { return };
    (0..600).for_each(|page| bed.machine.write(Vpn(page), 1 + page / 300, Nid(0)));
    bed.source.0.set(Knob::PagesToScan, 10_000).unwrap();
    bed.source.0.full_scan();
    bed.source.0.full_scan();
    let c = bed.source.counters();
    assert_eq!(c.pages_shared + c.pages_sharing, 600);
    for (name, value) in [
        ("pages_shared", c.pages_shared),
        ("pages_sharing", c.pages_sharing),
        ("pages_unshared", c.pages_unshared),
        ("pages_scanned", c.pages_scanned),
        ("full_scans", c.full_scans),
        ("stable_node_chains", c.stable_node_chains),
        ("stable_node_dups", c.stable_node_dups),
        ("general_profit", c.general_profit().cast_unsigned()),
        ("numerge/bytes_saved", c.bytes_saved()),
        ("numerge/metadata_bytes", c.metadata_bytes),
        ("numerge/pages_registered", 600),
        ("nodes/0/pages_shared", c.pages_shared),
        ("nodes/0/pages_sharing", c.pages_sharing),
        ("nodes/0/online", 1),
        ("nodes/5/pages_shared", 0),
    ] {
        assert_eq!(bed.number(name), value, "{name}");
    }
    for name in kernel_counters().filter(|name| !["full_scans", "general_profit"].contains(name)) {
        let of_node = |nid: Nid| bed.number(&format!("nodes/{nid}/{name}"));
        assert_eq!(NIDS.map(of_node).iter().sum::<u64>(), bed.number(name), "{name}");
    }
    for nid in NIDS {
        let of_node = |name: &str| bed.number(&format!("nodes/{nid}/{name}"));
        assert_eq!(of_node("full_scans"), c.full_scans);
        let saved = 4096 * (of_node("pages_sharing") + of_node("ksm_zero_pages"));
        let metadata = of_node("metadata_bytes") + of_node("metadata_bytes_remote");
        assert_eq!(of_node("general_profit"), saved - metadata);
    }
    // Nothing is cached: what is read next is what is then.
    let mut open = fs::File::open(bed.path("full_scans")).unwrap();
    let mut before = String::new();
    open.read_to_string(&mut before).unwrap();
    bed.source.0.full_scan();
    assert_eq!(bed.number("full_scans"), c.full_scans + 1);
    std::io::Seek::rewind(&mut open).unwrap();
    let mut after = String::new();
    open.read_to_string(&mut after).unwrap();
    assert_ne!(before, after, "a reader that begins again reads anew");
}

#[test]
fn there_are_nodes_and_counters_of_our_own_beside_the_kernels_files() {
    let Some(bed) = Bed::new(1) else { return };
    let top = names(bed.directory());
    let mut expected: Vec<&str> = kernel_files("").chain(["nodes", "numerge"]).collect();
    expected.sort_unstable();
    assert_eq!(top, expected);
    assert_eq!(names(&bed.path("nodes")), ["0", "5"]);
    for node in ["nodes/0", "nodes/5"] {
        let there = names(&bed.path(node));
        assert!(kernel_counters().all(|name| there.iter().any(|it| it == name)), "{there:?}");
    }
    assert_eq!(kernel_counters().count(), 11);
    for place in ["numerge", "nodes/0", "nodes/5"] {
        for name in names(&bed.path(place)) {
            let path = bed.path(place).join(&name);
            assert_eq!(fs::metadata(&path).unwrap().mode(), 0o100_444, "{path:?}");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.trim_end().parse::<i64>().is_ok(), "{path:?}: {text:?}");
        }
    }
}

#[test]
fn files_go_with_their_mount_and_a_reader_left_in_them_gets_an_error() {
    let Some(mut bed) = Bed::new(1) else { return };
    let path = bed.directory().to_owned();
    let mut open = fs::File::open(path.join("run")).unwrap();
    assert!(is_mounted(&path));
    bed.unmount();
    assert!(!is_mounted(&path));
    assert!(!path.exists(), "a directory that was made for them goes with them");
    let error = open.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
}

#[test]
fn a_directory_in_use_is_refused_and_a_stale_one_replaced() {
    let Some(bed) = Bed::new(1) else { return };
    let source: Arc<dyn Source> = bed.source.clone();
    let again = ControlFs::mount(bed.directory(), Arc::clone(&source));
    assert!(matches!(again, Err(MountError::InUse(_))));
    assert_eq!(bed.read("run"), "0\n");

    let place = tempfile::tempdir().unwrap();
    let stale = place.path().canonicalize().unwrap();
    leave_stale(&stale, c"fuse.numerge");
    let error = fs::metadata(&stale).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
    let files = mount(&stale, source).unwrap();
    assert_eq!(fs::read_to_string(stale.join("run")).unwrap(), "0\n");
    drop(files);
    assert!(!is_mounted(&stale));
    assert!(stale.exists(), "a directory that was there stays");
}

/// A dead mount that somebody else has to look after stays where it is.
#[test]
fn a_dead_mount_of_somebody_elses_is_named_and_stays() {
    let Some(bed) = Bed::new(1) else { return };
    let place = tempfile::tempdir().unwrap();
    let dead = place.path().canonicalize().unwrap();
    leave_stale(&dead, c"fuse.other");
    let source: Arc<dyn Source> = bed.source.clone();
    let error = ControlFs::mount(&dead, source).err().unwrap();
    assert!(matches!(&error, MountError::Foreign { kind, .. } if kind == "fuse.other"), "{error}");
    assert!(is_mounted(&dead));
    rustix::mount::unmount(&dead, rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// Whoever takes its files away leaves what was mounted at their place since.
#[test]
fn only_what_was_mounted_is_taken_away() {
    let Some(bed) = Bed::new(1) else { return };
    let place = tempfile::tempdir().unwrap();
    let path = place.path().canonicalize().unwrap();
    let source: Arc<dyn Source> = bed.source.clone();
    let first = mount(&path, Arc::clone(&source)).unwrap();
    rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).unwrap();
    let second = mount(&path, source).unwrap();
    drop(first);
    assert_eq!(fs::read_to_string(path.join("run")).unwrap(), "0\n");
    drop(second);
    assert!(!is_mounted(&path));
}

/// What a process leaves that is killed.
fn leave_stale(path: &Path, kind: &CStr) {
    use std::os::fd::AsRawFd;
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("numerge", path, kind, flags, options.as_c_str()).unwrap();
    drop(device);
    until("it is stale", || fs::metadata(path).is_err());
}
