//! `numerge run --as-ksm`: what uses the kernel's KSM does not notice the difference.
//!
//! Apart from the other tests, whose programs the kernel would merge, and count, beside its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../host/bed.rs"]
#[expect(dead_code, reason = "it is for others too")]
mod bed;
mod facts;
mod proc_files;
mod users;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::bed::{c_program, can_merge, numerge};

const KERNELS: &str = "/sys/kernel/mm/ksm";

/// The kernel counts what other programs of this machine mark meanwhile. So it has several tries; what is
/// wrong with ours is wrong beside each.
const KERNELS_RUNS: usize = 3;

/// `sh -c` below `numerge run --as-ksm`, in the directory: what it printed.
fn shell(options: &[&str], script: &str) -> String {
    let script = format!("set -e; cd {KERNELS}; {script}");
    let arguments = [&["run", "--as-ksm"], options, &["--", "sh", "-c", &script]].concat();
    let output = numerge(&arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether this machine has what the tests need; says so if not.
fn can_be_ksm() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root || !Path::new(KERNELS).is_dir() || !Path::new("/dev/fuse").exists() {
        println!("SKIPPED: --as-ksm needs root, /dev/fuse and {KERNELS}");
        return false;
    }
    can_merge()
}

fn lines_of_mounts() -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().filter(|line| line.contains("fuse.numerge")).map(Into::into).collect()
}

#[test]
fn s5_4_as_ksm_begins_with_the_kernels_defaults() {
    if !can_be_ksm() {
        return;
    }
    let read = shell(&[], "cat run pages_to_scan sleep_millisecs max_page_sharing full_scans");
    assert_eq!(read, "0\n100\n20\n256\n0\n");
    let read = shell(&["--set", "run=1", "--set", "pages_to_scan=7"], "cat run pages_to_scan");
    assert_eq!(read, "1\n7\n");
}

#[test]
fn as_ksm_is_seen_by_the_command_alone() {
    if !can_be_ksm() {
        return;
    }
    let kernels = std::fs::read_to_string(format!("{KERNELS}/sleep_millisecs")).unwrap();
    let before = lines_of_mounts();
    assert_eq!(shell(&[], "echo 12345 > sleep_millisecs; cat sleep_millisecs"), "12345\n");
    assert_eq!(std::fs::read_to_string(format!("{KERNELS}/sleep_millisecs")).unwrap(), kernels);
    let left: Vec<_> =
        lines_of_mounts().into_iter().filter(|line| !before.contains(line)).collect();
    assert!(left.iter().all(|line| !line.contains(KERNELS)), "{left:?}");
}

#[test]
fn s5_4_loops_of_echo_and_cat_work() {
    if !can_be_ksm() {
        return;
    }
    let script = "test -w run; echo 1250 > pages_to_scan; test `cat run` -eq 1 || echo 1 > run; \
        read pages < pages_to_scan; echo $pages `cat run`; echo 2 > run; cat run";
    assert_eq!(shell(&[], script), "1250 1\n2\n");
    // A loop that opens the files anew, and one that does not.
    let often = "i=0; while [ $i -lt 50 ]; do echo $i > sleep_millisecs; \
        [ `cat sleep_millisecs` = $i ]; i=$((i + 1)); done; \
        exec 3<> sleep_millisecs; echo 7 >&3; echo 8 >&3; cat sleep_millisecs";
    assert_eq!(shell(&[], often), "8\n");
}

/// As the kernel counts scans for them, whoever waits for two of them would wait for ever.
#[test]
fn s5_5_full_scans_are_counted_for_programs_that_have_nothing_to_merge() {
    if !can_be_ksm() {
        return;
    }
    let program = "/usr/bin/python3 -c 'if True:
        import ctypes, mmap, time
        memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.write(bytes([7]) * (1 << 20))
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), 1 << 20, 0) == 0
        memory.madvise(mmap.MADV_MERGEABLE)
        until = time.monotonic() + 30
        while int(open(\"full_scans\").read()) < 2 and time.monotonic() < until:
            time.sleep(0.01)'";
    let script = format!("echo 1 > run; {program}; test `cat full_scans` -ge 2; echo counted");
    assert_eq!(shell(&[], &script), "counted\n");
}

#[test]
fn s5_4_the_advisor_is_switched_on_and_off_by_its_file() {
    if !can_be_ksm() {
        return;
    }
    let advisor = "echo scan-time > advisor_mode; cat advisor_mode pages_to_scan; \
        if echo 200 > pages_to_scan 2> /dev/null; then exit 1; fi; \
        echo none > advisor_mode; cat advisor_mode pages_to_scan; \
        echo 200 > pages_to_scan; cat pages_to_scan";
    let read = shell(&[], advisor);
    assert_eq!(read, "none [scan-time]\n500\n[none] scan-time\n100\n200\n");
}

#[test]
fn s5_5_a_user_of_ksm_sees_what_it_sees_with_the_kernel() {
    if !can_be_ksm() {
        return;
    }
    // All of it takes minutes.
    let mib = std::env::var("NUMERGE_KSM_USER_MIB").unwrap_or_else(|_| "4".into());
    let user = c_program("ksm_user.c");
    let command = ["run", "--as-ksm", "--", user.to_str().unwrap(), "2", &mib];
    let output = numerge(&command).output().unwrap();
    let ours = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}{ours}");
    let mut differences = Vec::new();
    for _ in 0..KERNELS_RUNS {
        // With the kernel, what is written in the midst of a scan takes some more.
        let Some(kernels) = by_ksmd(&user, &["6", &mib]) else { return };
        if kernels == ours {
            assert!(kernels.lines().count() > 40, "{kernels}");
            return;
        }
        let pairs = kernels.lines().zip(ours.lines()).filter(|(kernels, ours)| kernels != ours);
        differences.push(pairs.map(|(a, b)| [a.to_owned(), b.to_owned()]).collect::<Vec<_>>());
    }
    panic!("the kernel's and ours: {differences:#?}");
}

/// Each page is a mapping of its own, half as many as a program may have, and there are more while they are merged
/// again: some have to wait for others.
#[test]
fn s5_5_what_is_written_to_at_the_limit_of_mappings_is_merged_within_two_full_scans() {
    if !can_be_ksm() {
        return;
    }
    let user = c_program("ksm_user.c");
    let command = ["run", "--as-ksm", "--", user.to_str().unwrap(), "2", "128", "contents"];
    let output = numerge(&command).output().unwrap();
    let [said, errors] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{errors}{said}");
    assert_eq!(said.lines().count(), 12, "{said}");
    for line in said.lines() {
        assert!(line.contains(" pages_volatile 0 "), "{said}");
    }
}

/// What it sees with ksmd, and what it finds wrong; None, with the reason printed, if that is in use.
fn by_ksmd(user: &Path, arguments: &[&str]) -> Option<String> {
    // There is one, and several tests ask for it.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let counter = |name: &str| std::fs::read_to_string(Path::new(KERNELS).join(name)).unwrap();
    if counter("run") != "0\n" || counter("pages_shared") != "0\n" {
        println!("SKIPPED: ksmd is in use");
        return None;
    }
    let ksm = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../perf/ksm");
    let output = Command::new(ksm).arg(user).args(arguments).output().unwrap();
    Some(String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}
