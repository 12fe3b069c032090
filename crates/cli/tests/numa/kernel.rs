//! What the kernel says, asked without numerge wherever that can be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::process::Command;

use numerge::Nid;
use numerge_topology::{Topology, move_pages, nodes_of_pages};

use crate::bed::PAGE;

/// The machine, with everything off that moves memory by itself.
pub(crate) fn quiet() -> Topology {
    set_balancing(false);
    // Of a huge page no part can be moved alone.
    fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "never").unwrap();
    let topology = Topology::discover().unwrap();
    assert!(topology.nodes().len() > 1, "these tests need a machine with several nodes");
    topology
}

/// Sets automatic NUMA balancing.
pub(crate) fn set_balancing(on: bool) {
    fs::write("/proc/sys/kernel/numa_balancing", if on { "1" } else { "0" }).unwrap();
}

/// A line of /proc/vmstat.
pub(crate) fn vmstat(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap();
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name).map_or(0, |(_, value)| value.parse().unwrap())
}

/// Runs a program of the guest, which must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {text}", output.status);
}

/// Moves all of this process's memory on one node to another, as an operator would.
pub(crate) fn migratepages(from: Nid, to: Nid) {
    run("migratepages", &[&std::process::id().to_string(), &from.to_string(), &to.to_string()]);
}

/// The node of each of these pages, which must have been touched.
pub(crate) fn nodes_of(addresses: &[usize]) -> Vec<Option<Nid>> {
    let mut nids = Vec::new();
    nodes_of_pages(addresses, &mut nids).unwrap();
    nids
}

/// Moves pages, those of files too. True if they are there now; one that is in use for a moment, or
/// on a CPU's list, stays where it is.
pub(crate) fn move_to(addresses: &[usize], nid: Nid) -> bool {
    move_pages(addresses, nid).unwrap();
    nodes_of(addresses).iter().all(|found| *found == Some(nid))
}

/// The inodes of the files that are mapped at any of these addresses.
pub(crate) fn files(addresses: &[usize]) -> BTreeSet<u64> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let inode = |line: &str| -> Option<u64> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap());
        let inode = fields.nth(3)?.parse().ok()?;
        let is_there = addresses.iter().any(|at| (start..end).contains(at));
        (is_there && inode != 0).then_some(inode)
    };
    maps.lines().filter_map(inode).collect()
}

/// Page frames, by the kernel's own numbers, and how many of the addresses are mapped to each.
pub(crate) fn page_frames(addresses: &[usize]) -> BTreeMap<u64, u64> {
    const PRESENT: u64 = 1 << 63;
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let mut frames = BTreeMap::new();
    for address in addresses {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, (address / PAGE * 8) as u64).unwrap();
        let entry = u64::from_le_bytes(entry);
        assert!(entry & PRESENT != 0, "no page at {address:#x}");
        *frames.entry(entry & ((1 << 55) - 1)).or_default() += 1;
    }
    frames
}

/// Pages by node in /proc/self/numa_maps, of the mappings that begin in a range of addresses.
pub(crate) fn numa_maps(addresses: &Range<usize>) -> BTreeMap<Nid, u64> {
    let mut pages = BTreeMap::new();
    for line in fs::read_to_string("/proc/self/numa_maps").unwrap().lines() {
        let mut words = line.split(' ');
        let start = usize::from_str_radix(words.next().unwrap(), 16).unwrap();
        if addresses.contains(&start) {
            for (nid, count) in words.filter_map(|word| word.strip_prefix('N')?.split_once('=')) {
                *pages.entry(Nid(nid.parse().unwrap())).or_default() +=
                    count.parse::<u64>().unwrap();
            }
        }
    }
    pages
}

/// The engine's threads by name, and the CPUs that each may run on.
pub(crate) fn threads() -> BTreeMap<String, BTreeSet<u32>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        // It may have ended since it was listed.
        let Ok(status) = fs::read_to_string(task.join("status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().to_owned()
        };
        let name = field("Name:");
        if name.starts_with("numerge-") && node_of_thread(&name).is_some() {
            threads.insert(name, cpus(&field("Cpus_allowed_list:")));
        }
    }
    threads
}

/// The node that a thread of the engine is for, by its name: `numerge-1` and `numerge-1-0`.
pub(crate) fn node_of_thread(name: &str) -> Option<Nid> {
    let rest = name.strip_prefix("numerge-")?;
    rest.split('-').next()?.parse().ok().map(Nid)
}

fn cpus(list: &str) -> BTreeSet<u32> {
    let mut cpus = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>().unwrap()..=last.parse().unwrap());
    }
    cpus
}
