//! Users of KSM as Debian packages them, unmodified: node_exporter's collector, and ksmtuned.

use std::path::{Path, PathBuf};

use crate::bed::{built, numerge};
use crate::can_be_ksm;

/// A program that is installed, or that `tools/setup` has unpacked; None, and why, if it is neither.
fn packaged(name: &str) -> Option<PathBuf> {
    let unpacked = built().parent().unwrap().join("ksm-users").join(name).join("usr");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).collect::<Vec<_>>();
    places.extend([unpacked.join("bin"), unpacked.join("sbin")]);
    let found = places.into_iter().map(|place| place.join(name)).find(|program| program.is_file());
    if found.is_none() {
        println!("SKIPPED: {name} is missing; tools/setup unpacks it");
    }
    found
}

fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ksm").join(name)
}

/// A command below `numerge run --as-ksm`: what it printed.
fn printed(command: &[&Path]) -> String {
    let output = numerge(&["run", "--as-ksm", "--"]).args(command).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn s5_4_node_exporter_serves_what_is_in_the_files() {
    let Some(exporter) = packaged("prometheus-node-exporter") else { return };
    if !can_be_ksm() {
        return;
    }
    let script = beside("exporter.py");
    let printed = printed(&[Path::new("/usr/bin/python3"), &script, &exporter]);
    let mut served = 0;
    for line in printed.lines() {
        let [name, metric, file] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{printed}")
        };
        let [metric, file] = [metric, file].map(|number| number.parse::<f64>().unwrap());
        let expected = if name == "sleep_millisecs" { file / 1000.0 } else { file };
        assert!((metric - expected).abs() < 1e-9, "{printed}");
        served += 1;
    }
    assert_eq!(served, 10, "{printed}");
    // 508 pages of each of two contents, at most 256 a frame.
    for line in ["pages_shared 4 4", "pages_sharing 1012 1012", "pages_to_scan 777 777"] {
        assert!(printed.lines().any(|found| found == line), "{line}: {printed}");
    }
}

#[test]
fn s5_4_ksmtuned_steers_by_the_files() {
    let Some(ksmtuned) = packaged("ksmtuned") else { return };
    if !can_be_ksm() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let printed = printed(&[&beside("tuner.sh"), &ksmtuned, scratch.path()]);
    let numbers: Vec<u64> = printed.lines().map(|line| line.parse().unwrap()).collect();
    let (paces, ends) = numbers.split_at(numbers.len().saturating_sub(4));
    // From what is there at the beginning on, by 300 each second. Who looks may miss some.
    let expected = [100, 300, 600, 900, 1200, 1250];
    let mut rest = expected.iter();
    assert!(paces.iter().all(|pace| rest.any(|expected| expected == pace)), "{printed}");
    assert!(paces.len() > 2 && paces.last() == Some(&1250), "{printed}");
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.lines().next().and_then(|line| line.split_whitespace().nth(1));
    let kib: u64 = total.unwrap().parse().unwrap();
    // As it has it: 10 ms for 16 GiB, more for less.
    let sleep = (10 * 16 * 1024 * 1024 / kib).max(10);
    assert_eq!(ends, [1, sleep, 0, 1250], "{printed}");
}
