//! What the kernel itself says of this machine, by way of libnuma: a safe face for libnuma-sys.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Nid;

/// libnuma promises no thread safety (see libnuma-sys), so one thread at a time is in it.
static TURN: Mutex<()> = Mutex::new(());

/// libnuma, ready for questions; whoever holds it is the only one.
pub(crate) struct Libnuma {
    _turn: MutexGuard<'static, ()>,
}

impl Libnuma {
    /// None if the system has no NUMA support or forbids asking, as some containers do.
    pub(crate) fn open() -> Option<Self> {
        // The lock guards C's tables and no value of ours, so a panic elsewhere spoils nothing.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a foreign function; it may be called at any time, by one thread at a time, which
        // `turn` sees to.
        let answer = unsafe { libnuma_sys::numa_available() };
        (answer >= 0).then_some(Self { _turn: turn })
    }

    /// The node the kernel has a CPU on.
    pub(crate) fn node_of_cpu(&self, cpu: u32) -> Option<Nid> {
        let cpu = i32::try_from(cpu).ok()?;
        // SAFETY: a foreign function; `numa_available` allowed it, we have the turn, and any CPU may
        // be asked for.
        let node = unsafe { libnuma_sys::numa_node_of_cpu(cpu) };
        u32::try_from(node).ok().map(Nid)
    }

    /// The distance the firmware gives, None if it gives none.
    pub(crate) fn distance(&self, from: Nid, to: Nid) -> Option<u32> {
        let (from, to) = (i32::try_from(from.0).ok()?, i32::try_from(to.0).ok()?);
        // SAFETY: as in `node_of_cpu`; any pair of nodes may be asked for.
        let distance = unsafe { libnuma_sys::numa_distance(from, to) };
        u32::try_from(distance).ok().filter(|&distance| distance > 0)
    }
}
