//! The machine's nodes, for the engine.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use numerge_engine::machine::{CpuClock, Nodes, PAGE_SIZE, Vpn};
use numerge_topology::{AllowedCpus, Nid, Topology, nodes_of_pages};

use crate::host;
use crate::looker::{self, Used};
use crate::num::{address, pointer, size};
use crate::sys;
use crate::uffd::Span;

/// This machine.
#[derive(Clone, Debug)]
pub struct Machine {
    topology: Arc<Topology>,
    /// A node that comes back gets its threads from a thread of another node, and they inherit that
    /// one's CPUs. None: unknown, and threads keep to what they inherit.
    allowed: Option<AllowedCpus>,
}

impl Machine {
    /// The machine with these nodes, for threads on the CPUs that the calling thread may use.
    #[must_use]
    pub fn new(topology: Arc<Topology>) -> Self {
        Self { topology, allowed: AllowedCpus::of_current_thread().ok() }
    }
}

impl Nodes for Machine {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn run_on(&self, nid: Nid) -> io::Result<()> {
        let pinned = match &self.allowed {
            Some(allowed) => self.topology.pin_current_thread_within(nid, allowed),
            None => self.topology.pin_current_thread(nid),
        };
        looker::dismiss();
        pinned.map_err(io::Error::other)
    }

    fn migrations(&self) -> io::Result<u64> {
        host::pages_moved()
    }

    fn online(&self) -> io::Result<Vec<Nid>> {
        if !self.topology.is_this_machine() {
            return Ok(self.topology.nodes().iter().map(|node| node.nid).collect());
        }
        numerge_topology::online_nodes().map_err(io::Error::other)
    }

    fn place(&self, bytes: Range<*const u8>, nid: Nid) -> io::Result<()> {
        let pages = whole_pages(&bytes);
        if pages.is_empty() || self.topology.nodes().len() == 1 {
            return Ok(());
        }
        // No policy: this is the allocator's memory, and something else's tomorrow.
        let addresses: Vec<usize> = pages.step_by(PAGE_SIZE).collect();
        numerge_topology::move_pages(&addresses, nid).map_err(io::Error::other)
    }

    fn places(&self, bytes: Range<*const u8>) -> io::Result<Vec<(Nid, u64)>> {
        let addresses: Vec<usize> = whole_pages(&bytes).step_by(PAGE_SIZE).collect();
        let (mut nids, mut count) = (Vec::new(), BTreeMap::new());
        of_pages(&addresses, &mut nids)?;
        for nid in nids.into_iter().flatten() {
            *count.entry(nid).or_insert(0) += 1;
        }
        Ok(count.into_iter().collect())
    }

    fn thread_cpu_time(&self) -> Duration {
        looker::thread_cpu_time() + Used::of_current_thread().get()
    }

    fn cpu_clock(&self) -> CpuClock {
        let mut clock = 0;
        // SAFETY: no safe binding gives a thread's clock to others. The calling thread exists, and `clock` is
        // written to only here.
        let known = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        let lookers = Used::of_current_thread();
        Box::new(move || lookers.get() + if known == 0 { time_of(clock) } else { Duration::ZERO })
    }
}

/// What a clock tells; nothing if there is no such clock (any more).
fn time_of(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to `time` alone, and refuses a number that is no clock's.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if failed != 0 {
        return Duration::ZERO;
    }
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The addresses of the pages that lie in these bytes as a whole.
fn whole_pages(bytes: &Range<*const u8>) -> Range<usize> {
    bytes.start.addr().next_multiple_of(PAGE_SIZE)..bytes.end.addr() / PAGE_SIZE * PAGE_SIZE
}

/// Appends the node of the page at each address; None where there is no page.
pub(crate) fn of_pages(addresses: &[usize], out: &mut Vec<Option<Nid>>) -> io::Result<()> {
    let mut found = Vec::new();
    nodes_of_pages(addresses, &mut found).map_err(io::Error::other)?;
    out.append(&mut found);
    Ok(())
}

/// move_pages(2) without an allocation: moves pages that nobody else maps to nodes, or without any asks for
/// each page's. `status` gets a node or a negative errno for each.
pub(crate) fn move_pages(
    addresses: &[usize],
    nodes: Option<&[c_int]>,
    status: &mut [c_int],
) -> io::Result<()> {
    /// Only pages that nobody else maps (include/uapi/linux/mempolicy.h).
    const MPOL_MF_MOVE: c_int = 1 << 1;
    assert!(addresses.len() == status.len());
    assert!(nodes.is_none_or(|nodes| nodes.len() == status.len()));
    // SAFETY: the kernel reads as many addresses and nodes and writes as many statuses as it is told of,
    // which is the length of all slices, and it changes no byte of the pages.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            addresses.len(),
            addresses.as_ptr(),
            nodes.map_or(std::ptr::null(), <[c_int]>::as_ptr),
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        )
    };
    // Above 0: how many were not moved.
    if failed >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has new memory in `area` come from the node that `page` is on, if there is room. Without an allocation.
pub(crate) fn prefer_node_of(page: Vpn, area: Span) {
    let mut node = [-1];
    // A frame that nobody has looked at since it was mapped here is in no page table, and on no node.
    // SAFETY: changes no content.
    let _ = unsafe { sys::advise(pointer(page), PAGE_SIZE, libc::MADV_POPULATE_READ) };
    if move_pages(&[size(address(page))], None, &mut node).is_err() {
        return;
    }
    // As many as Linux can be configured for.
    let mut nodes = [0_u64; 1024 / 64];
    let Some(word) = usize::try_from(node[0]).ok().and_then(|node| nodes.get_mut(node / 64)) else {
        return;
    };
    *word = 1 << (node[0] % 64);
    // SAFETY: the kernel reads the bits of `nodes` and no byte of the area changes. It takes one off the
    // number of bits it is given.
    let _ = unsafe {
        let nodes = nodes.as_ptr().expose_provenance();
        let policy = libc::MPOL_PREFERRED.unsigned_abs() as usize;
        let arguments = [size(area.start), size(area.len), policy, nodes, 1024 + 1, 0];
        sys::system_call(libc::SYS_mbind, arguments)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s4_2_threads_run_on_their_node() {
        let topology = Arc::new(Topology::discover().expect("the machine's nodes"));
        let machine = Machine::new(Arc::clone(&topology));
        let nid = machine.topology().nodes()[0].nid;
        std::thread::spawn(move || machine.run_on(nid).expect("pinned")).join().expect("no panic");
    }

    #[test]
    fn nodes_of_pages_are_asked_of_the_machine() {
        let touched = vec![1_u8; 3 * 4096];
        let start = touched.as_ptr().addr();
        let mut out = vec![None];
        of_pages(&[start, start + 4096, 0], &mut out).expect("move_pages");
        assert_eq!(out.len(), 4, "appended");
        assert!(out[1].is_some() && out[2].is_some());
        assert_eq!(out[3], None, "no page there");
    }

    #[test]
    fn cpu_time_goes_on() {
        let machine = Machine::new(Arc::new(Topology::discover().expect("nodes")));
        let before = machine.thread_cpu_time();
        let mut n = 0_u64;
        while machine.thread_cpu_time() == before {
            n = std::hint::black_box(n + 1);
        }
    }

    #[test]
    fn s5_4_the_clock_of_a_thread_tells_others_what_that_thread_used() {
        let machine = Machine::new(Arc::new(Topology::discover().expect("nodes")));
        let (give, clock) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let machine = &machine;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let clock = machine.cpu_clock();
                let began = machine.thread_cpu_time();
                let mut n = 0_u64;
                while machine.thread_cpu_time() - began < Duration::from_millis(30) {
                    n = std::hint::black_box(n + 1);
                }
                give.send((clock, machine.thread_cpu_time())).expect("somebody listens");
                // Alive, but at rest, while its clock is read.
                let _ = ended.recv_timeout(Duration::from_secs(20));
            });
            let own = machine.cpu_clock();
            let before = own();
            let (clock, used) = clock.recv().expect("a clock");
            let told = clock();
            assert!(told >= used && told < used + Duration::from_millis(20), "{told:?}, {used:?}");
            assert!(own() - before < used, "the calling thread waited meanwhile");
            drop(end);
        });
    }
}
