//! Binding memory and asking where pages are, on this machine's own nodes.

// Clippy knows `#[test]` functions as tests, but not the functions that they call.
#![allow(clippy::unwrap_used)]

use std::io::{self, ErrorKind};
use std::process::{Command, Stdio};
use std::{fs, ptr};

use numerge_topology::{Nid, Topology, TopologyError, nodes_of_pages, nodes_of_process_pages};

const PAGE: usize = 4096;
/// More than fit in one system call, and not a multiple of that.
const PAGES: usize = 2500;

/// Memory of this test's own, none of it touched yet; unmapped when dropped.
struct Mapping {
    address: usize,
}

impl Mapping {
    fn new() -> Self {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, placed by the kernel, takes nothing from anybody.
        let start = unsafe { libc::mmap(ptr::null_mut(), PAGES * PAGE, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        // SAFETY: the range was just mapped. Without huge pages, so that touching one page gives
        // one page.
        let failed = unsafe { libc::madvise(start, PAGES * PAGE, libc::MADV_NOHUGEPAGE) };
        // EINVAL: a kernel without huge pages, which is as good.
        assert!(failed == 0 || io::Error::last_os_error().kind() == ErrorKind::InvalidInput);
        Self { address: start.expose_provenance() }
    }

    fn touch(&self, page: usize) {
        assert!(page < PAGES);
        let at = ptr::with_exposed_provenance_mut::<u8>(self.address + page * PAGE);
        // SAFETY: the byte is within the mapping, writable, and only this thread knows of it.
        unsafe { at.write_volatile(1) };
    }

    fn addresses(&self) -> Vec<usize> {
        (0..PAGES).map(|page| self.address + page * PAGE + 17).collect()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let start = ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: `new` mapped the range and nobody keeps a reference into it.
        unsafe { libc::munmap(start, PAGES * PAGE) };
    }
}

/// This machine; none, with the reason printed, if nodes can't be asked for here.
fn machine() -> Option<Topology> {
    let topology = Topology::discover().unwrap();
    if !topology.is_this_machine() {
        println!("SKIPPED: HWLOC_ variables describe another machine");
        return None;
    }
    match nodes_of_pages(&[ptr::from_ref(&topology).addr()], &mut Vec::new()) {
        Ok(()) => Some(topology),
        Err(error) => {
            println!("SKIPPED: {error}");
            None
        }
    }
}

#[test]
fn pages_are_where_their_memory_is_bound() {
    let Some(machine) = machine() else { return };
    for node in machine.nodes().iter().filter(|node| node.memory_bytes > 0) {
        let mapping = Mapping::new();
        machine.bind_memory(mapping.address, PAGES * PAGE, node.nid).unwrap();
        assert_eq!(policy(mapping.address), format!("bind:{}", node.nid));

        let mut nodes = vec![Some(Nid(77))];
        nodes_of_pages(&mapping.addresses(), &mut nodes).unwrap();
        assert_eq!(nodes, vec![None; PAGES], "not touched, so nowhere");

        for page in (0..PAGES).step_by(2) {
            mapping.touch(page);
        }
        nodes_of_pages(&mapping.addresses(), &mut nodes).unwrap();
        let expected: Vec<_> = (0..PAGES).map(|page| (page % 2 == 0).then_some(node.nid)).collect();
        assert_eq!(nodes, expected);
    }
}

/// The memory policy that the kernel shows for the mapping that starts here.
fn policy(address: usize) -> String {
    let maps = fs::read_to_string("/proc/self/numa_maps").unwrap();
    let start = format!("{address:08x} ");
    let line = maps.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
    line.split(' ').next().unwrap().to_owned()
}

#[test]
fn memory_that_is_not_there_can_not_be_bound() {
    let Some(machine) = machine() else { return };
    let node = machine.nodes().iter().find(|node| node.memory_bytes > 0).unwrap();
    let mapping = Mapping::new();
    let within = mapping.address + 1;
    for address in [within, 0] {
        let error = machine.bind_memory(address, PAGE, node.nid).unwrap_err();
        assert!(matches!(error, TopologyError::BindMemory { bytes: PAGE, .. }), "{error}");
    }
    let error = machine.bind_memory(mapping.address, PAGE, Nid(u32::MAX)).unwrap_err();
    assert!(matches!(error, TopologyError::UnknownNode { .. }), "{error}");
}

#[test]
fn pages_that_are_not_mapped_are_nowhere() {
    let Some(_) = machine() else { return };
    let mut nodes = Vec::new();
    nodes_of_pages(&[], &mut nodes).unwrap();
    assert_eq!(nodes, []);
    nodes_of_pages(&[0, PAGE, usize::MAX], &mut nodes).unwrap();
    assert_eq!(nodes, [None; 3]);
}

#[test]
fn pages_of_another_process_can_be_asked_for() {
    let Some(machine) = machine() else { return };
    // Waits for input until it is killed.
    let mut child =
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    let mut nodes = Vec::new();
    let answer = nodes_of_process_pages(pid, &[top_of_stack(pid)], &mut nodes);
    child.kill().unwrap();
    child.wait().unwrap();
    if let Err(error) = answer {
        println!("SKIPPED: {error}");
        return;
    }
    let nid = nodes[0].expect("the page with the program's arguments is there");
    assert!(machine.node(nid).is_some());
}

/// An address in the highest page of a process's stack.
fn top_of_stack(pid: libc::pid_t) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let (_, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
    usize::from_str_radix(end, 16).unwrap() - 1
}

#[test]
fn a_process_that_is_not_there_is_an_error() {
    let Some(_) = machine() else { return };
    let mut nodes = vec![None];
    // Above the largest pid Linux can be configured for.
    let error = nodes_of_process_pages(1 << 23, &[0], &mut nodes).unwrap_err();
    let TopologyError::QueryPages { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.raw_os_error(), Some(libc::ESRCH));
    assert_eq!(nodes, []);
}
