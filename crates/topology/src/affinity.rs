//! Pinning threads to the CPUs of a node: sched_setaffinity(2).

use std::ffi::c_ulong;
use std::io;

use crate::{Nid, Topology, TopologyError};

/// The largest machine Linux can be configured for (NR_CPUS); `libc::cpu_set_t` ends at 1024. The
/// kernel refuses to fill a mask that is smaller than the machine.
const MAX_CPUS: usize = 8192;
const BITS: usize = c_ulong::BITS as usize;

impl Topology {
    /// Lets the calling thread run only on the CPUs of a node, or of the nearest with CPUs, that it
    /// may run on now. Threads it starts inherit that; other threads are not affected.
    ///
    /// Since pinning only ever narrows, a thread can't be pinned to one node and then another.
    ///
    /// # Errors
    ///
    /// [`TopologyError::NotThisMachine`], [`TopologyError::UnknownNode`],
    /// [`TopologyError::NoAllowedCpus`] if none of the CPUs is in the thread's mask now, and
    /// [`TopologyError::Affinity`] if the kernel refuses. The mask is then as before.
    pub fn pin_current_thread(&self, nid: Nid) -> Result<(), TopologyError> {
        self.pin(nid, narrow)
    }

    /// The same for a thread that may have inherited the CPUs of another node, being started by one
    /// that was pinned: it may then run on all CPUs of the node that are among `allowed`.
    ///
    /// # Errors
    ///
    /// As for [`pin_current_thread`](Self::pin_current_thread).
    pub fn pin_current_thread_within(
        &self,
        nid: Nid,
        allowed: &AllowedCpus,
    ) -> Result<(), TopologyError> {
        self.pin(nid, |cpus| set_within(cpus, &allowed.0))
    }

    fn pin(
        &self,
        nid: Nid,
        set: impl FnOnce(&[u32]) -> io::Result<Option<()>>,
    ) -> Result<(), TopologyError> {
        if !self.is_this_machine() {
            return Err(TopologyError::NotThisMachine);
        }
        let node = self.nearest_with_cpus(nid).ok_or(TopologyError::UnknownNode { nid })?;
        set(&node.cpus)
            .map_err(TopologyError::Affinity)?
            .ok_or(TopologyError::NoAllowedCpus { nid: node.nid })
    }
}

/// The CPUs that a thread may run on: what those that are started later may be pinned within.
#[derive(Clone, Debug)]
pub struct AllowedCpus(Box<CpuMask>);

impl AllowedCpus {
    /// Those of the calling thread now, which must not be pinned yet.
    ///
    /// # Errors
    ///
    /// [`TopologyError::Affinity`] if the kernel refuses.
    pub fn of_current_thread() -> Result<Self, TopologyError> {
        CpuMask::of_current_thread()
            .map(|mask| Self(Box::new(mask)))
            .map_err(TopologyError::Affinity)
    }
}

/// Takes all other CPUs from the calling thread; does nothing and gives None if none were left.
fn narrow(cpus: &[u32]) -> io::Result<Option<()>> {
    set_within(cpus, &CpuMask::of_current_thread()?)
}

/// Gives the calling thread those CPUs that are allowed; does nothing and gives None if none are.
fn set_within(cpus: &[u32], allowed: &CpuMask) -> io::Result<Option<()>> {
    let mut wanted = CpuMask::empty();
    for &cpu in cpus.iter().filter(|&&cpu| allowed.contains(cpu)) {
        wanted.insert(cpu);
    }
    if wanted == CpuMask::empty() {
        return Ok(None);
    }
    wanted.set_for_current_thread().map(Some)
}

/// A set of CPUs as the kernel takes it: bit n of the array is CPU n.
#[derive(Clone, PartialEq, Eq, Debug)]
struct CpuMask([c_ulong; MAX_CPUS / BITS]);

impl CpuMask {
    fn empty() -> Self {
        Self([0; MAX_CPUS / BITS])
    }

    fn of_current_thread() -> io::Result<Self> {
        let mut mask = Self::empty();
        // SAFETY: needed for the system call. The kernel writes at most the bytes it is told of,
        // which are all of the array's, and any bits are a valid array. `cpu_set_t` has no more
        // alignment than `c_ulong`, the kernel's own unit.
        let failed =
            unsafe { libc::sched_getaffinity(0, size_of_val(&mask.0), (&raw mut mask.0).cast()) };
        if failed == 0 { Ok(mask) } else { Err(io::Error::last_os_error()) }
    }

    fn set_for_current_thread(&self) -> io::Result<()> {
        // SAFETY: needed for the system call. The kernel reads the bytes it is told of, which are
        // all of the array's, and keeps no pointer.
        let failed =
            unsafe { libc::sched_setaffinity(0, size_of_val(&self.0), (&raw const self.0).cast()) };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn contains(&self, cpu: u32) -> bool {
        let (word, bit) = place(cpu);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    /// `cpu` must be below [`MAX_CPUS`], as every CPU is that [`contains`](Self::contains) finds.
    fn insert(&mut self, cpu: u32) {
        let (word, bit) = place(cpu);
        self.0[word] |= bit;
    }
}

/// The word and the bit in it that stand for a CPU.
fn place(cpu: u32) -> (usize, c_ulong) {
    let cpu = cpu as usize;
    (cpu / BITS, 1 << (cpu % BITS))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::Node;

    fn allowed() -> Vec<u32> {
        let mask = CpuMask::of_current_thread().unwrap();
        (0..u32::try_from(MAX_CPUS).unwrap() + 1).filter(|&cpu| mask.contains(cpu)).collect()
    }

    fn on_own_thread(test: impl FnOnce() + Send + 'static) {
        thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_mask_holds_what_was_put_in() {
        let mut mask = CpuMask::empty();
        for cpu in [0, 63, 64, 8191] {
            assert!(!mask.contains(cpu));
            mask.insert(cpu);
            assert!(mask.contains(cpu));
        }
        assert!(!mask.contains(1) && !mask.contains(8192) && !mask.contains(u32::MAX));
    }

    #[test]
    fn a_thread_is_pinned_to_the_node_of_this_machine() {
        on_own_thread(|| {
            let machine = Topology::discover().unwrap();
            if !machine.is_this_machine() {
                println!("SKIPPED: HWLOC_ variables describe another machine");
                return;
            }
            let before = allowed();
            let node = machine.node_of_cpu(before[0]).unwrap();
            machine.pin_current_thread(node.nid).unwrap();
            let expected: Vec<u32> =
                node.cpus.iter().copied().filter(|cpu| before.contains(cpu)).collect();
            assert_eq!(allowed(), expected);
        });
    }

    #[test]
    fn s4_6_a_thread_of_a_node_without_cpus_is_pinned_to_the_nearest() {
        on_own_thread(|| {
            let first = allowed()[0];
            let node =
                |nid, cpus, distances| Node { nid: Nid(nid), cpus, memory_bytes: 1, distances };
            let nodes = vec![node(0, vec![first], vec![10, 20]), node(3, vec![], vec![20, 10])];
            let machine = Topology::checked(nodes, true).unwrap();
            machine.pin_current_thread(Nid(3)).unwrap();
            assert_eq!(allowed(), [first]);
        });
    }

    #[test]
    fn pinning_narrows_and_never_widens() {
        on_own_thread(|| {
            let before = allowed();
            let [first, second, ..] = before[..] else {
                println!("SKIPPED: needs two CPUs, this thread may use only {before:?}");
                return;
            };
            assert_eq!(narrow(&before[..1]).unwrap(), Some(()));
            assert_eq!(narrow(&[second]).unwrap(), None, "not allowed any more");
            assert_eq!(allowed(), [first], "as before");
            assert_eq!(narrow(&[first, second]).unwrap(), Some(()));
            assert_eq!(allowed(), [first]);
        });
    }

    #[test]
    fn a_thread_started_by_a_pinned_one_can_be_pinned_elsewhere() {
        on_own_thread(|| {
            let before = allowed();
            let [first, second, ..] = before[..] else {
                println!("SKIPPED: needs two CPUs, this thread may use only {before:?}");
                return;
            };
            let node =
                |nid, cpus, distances| Node { nid: Nid(nid), cpus, memory_bytes: 1, distances };
            let nodes =
                vec![node(0, vec![first], vec![10, 20]), node(1, vec![second], vec![20, 10])];
            let machine = Topology::checked(nodes, true).unwrap();
            let all = AllowedCpus::of_current_thread().unwrap();
            machine.pin_current_thread(Nid(0)).unwrap();
            on_own_thread(move || {
                assert!(machine.pin_current_thread(Nid(1)).is_err());
                machine.pin_current_thread_within(Nid(1), &all).unwrap();
                assert_eq!(allowed(), [second]);
            });
        });
    }

    #[test]
    fn a_node_whose_cpus_are_all_forbidden_is_an_error() {
        on_own_thread(|| {
            let before = allowed();
            let node = Node { nid: Nid(6), cpus: vec![9000], memory_bytes: 1, distances: vec![10] };
            let machine = Topology::checked(vec![node], true).unwrap();
            let error = machine.pin_current_thread(Nid(6)).unwrap_err();
            assert!(matches!(error, TopologyError::NoAllowedCpus { nid: Nid(6) }), "{error}");
            assert_eq!(allowed(), before);
        });
    }

    #[test]
    fn nothing_is_pinned_to_an_unknown_node_or_another_machine() {
        let node = Node { nid: Nid(0), cpus: vec![0], memory_bytes: 1, distances: vec![10] };
        let machine = Topology::checked(vec![node.clone()], true).unwrap();
        let error = machine.pin_current_thread(Nid(1)).unwrap_err();
        assert!(matches!(error, TopologyError::UnknownNode { nid: Nid(1) }), "{error}");
        let machine = Topology::new(vec![node]).unwrap();
        let error = machine.pin_current_thread(Nid(0)).unwrap_err();
        assert!(matches!(error, TopologyError::NotThisMachine), "{error}");
    }
}
