//! Where new memory comes from: mbind(2) for a range, set_mempolicy(2) for a thread.

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::{io, ptr};

use crate::{Nid, Topology, TopologyError};

/// The most nodes Linux can be configured for (MAX_NUMNODES with NODES_SHIFT 10).
const MAX_NODES: usize = 1024;
const BITS: usize = c_ulong::BITS as usize;

impl Topology {
    /// Lets pages that are allocated for this range from now on come only from a node, or from the
    /// nearest with memory (MPOL_BIND). Pages already there stay where they are. A range of a
    /// shared file mapping, a memfd's too, binds that part of the file for everyone who maps it.
    ///
    /// `address` is the start of a page; `bytes` is rounded up to whole pages.
    ///
    /// Not an unsafe function, and the range is numbers rather than a pointer or slice: the kernel
    /// checks the range, neither reads nor writes nor unmaps nor moves what is in it, and changes
    /// only where later pages come from. A wrong range makes a program slow, or out of memory, but
    /// breaks nothing that Rust relies on.
    ///
    /// # Errors
    ///
    /// [`TopologyError::NotThisMachine`], [`TopologyError::UnknownNode`], or
    /// [`TopologyError::BindMemory`] with what the kernel said: EINVAL for an address within a page
    /// or a node not allowed, EFAULT if part of the range is not mapped.
    pub fn bind_memory(&self, address: usize, bytes: usize, nid: Nid) -> Result<(), TopologyError> {
        if !self.is_this_machine() {
            return Err(TopologyError::NotThisMachine);
        }
        let node = self.nearest_with_memory(nid).ok_or(TopologyError::UnknownNode { nid })?;
        mbind(address, bytes, node.nid).map_err(|source| TopologyError::BindMemory {
            address,
            bytes,
            nid: node.nid,
            source,
        })
    }

    /// Does something while the memory that the system gives to the calling thread comes from a node,
    /// or where there is none left, or that node has none, from near it (MPOL_PREFERRED). Ranges with
    /// a policy of their own go by that.
    ///
    /// # Errors
    ///
    /// [`TopologyError::NotThisMachine`], [`TopologyError::UnknownNode`] or
    /// [`TopologyError::ThreadPolicy`]; nothing was done then.
    pub fn with_memory_from<T>(
        &self,
        nid: Nid,
        act: impl FnOnce() -> T,
    ) -> Result<T, TopologyError> {
        if !self.is_this_machine() {
            return Err(TopologyError::NotThisMachine);
        }
        let node = self.nearest_with_memory(nid).ok_or(TopologyError::UnknownNode { nid })?;
        let policy = |source| TopologyError::ThreadPolicy { nid: node.nid, source };
        let before = ThreadPolicy::now().map_err(policy)?;
        let wanted =
            ThreadPolicy { mode: libc::MPOL_PREFERRED, nodes: mask(node.nid).map_err(policy)? };
        wanted.set().map_err(policy)?;
        // Also when `act` panics.
        let _restore = Restore(before);
        Ok(act())
    }
}

/// A set of nodes as the kernel takes it: bit n of the array is node n.
type Mask = [c_ulong; MAX_NODES / BITS];

fn mask(nid: Nid) -> io::Result<Mask> {
    let bit = nid.0 as usize;
    let mut nodes: Mask = [0; MAX_NODES / BITS];
    let word = nodes.get_mut(bit / BITS).ok_or(io::ErrorKind::InvalidInput)?;
    *word = 1 << (bit % BITS);
    Ok(nodes)
}

/// Where the calling thread's memory comes from, as get_mempolicy(2) tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct ThreadPolicy {
    mode: c_int,
    nodes: Mask,
}

impl ThreadPolicy {
    fn now() -> io::Result<Self> {
        let mut found = Self { mode: 0, nodes: [0; MAX_NODES / BITS] };
        // SAFETY: needed for the system call. The kernel writes the mode and at most as many bits as
        // it is told of, which the array has; address and flags 0 ask for the thread's policy.
        let failed = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut found.mode,
                found.nodes.as_mut_ptr(),
                MAX_NODES,
                ptr::null_mut::<c_void>(),
                0_usize,
            )
        };
        if failed == 0 { Ok(found) } else { Err(io::Error::last_os_error()) }
    }

    fn set(&self) -> io::Result<()> {
        // SAFETY: needed for the system call. The kernel reads `MAX_NODES` bits of the array (one is
        // taken off, as by mbind) and keeps no pointer. Only where later pages come from changes.
        let failed = unsafe {
            libc::syscall(
                libc::SYS_set_mempolicy,
                c_long::from(self.mode),
                self.nodes.as_ptr(),
                MAX_NODES + 1,
            )
        };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Gives the thread its policy back.
struct Restore(ThreadPolicy);

impl Drop for Restore {
    fn drop(&mut self) {
        // Refused only if its nodes are not allowed any more; then near memory is as good.
        if self.0.set().is_err() {
            let _ = ThreadPolicy { mode: libc::MPOL_DEFAULT, nodes: [0; MAX_NODES / BITS] }.set();
        }
    }
}

fn mbind(address: usize, bytes: usize, nid: Nid) -> io::Result<()> {
    let nodes = mask(nid)?;
    // SAFETY: needed for the system call. The kernel reads `MAX_NODES` bits of the array and keeps
    // no pointer. It takes one off the number of bits it is given (a quirk of long standing), hence
    // the 1. Mode and flags go as longs, since the kernel takes them as such. No byte of the range
    // changes: the policy of its mappings does, and at most on which node its pages are.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            address,
            bytes,
            c_long::from(libc::MPOL_BIND),
            nodes.as_ptr(),
            MAX_NODES + 1,
            0,
        )
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_policy_is_its_own_again_afterwards() {
        let machine = Topology::discover().unwrap();
        let before = match ThreadPolicy::now() {
            Ok(policy) if machine.is_this_machine() => policy,
            other => return println!("SKIPPED: no policies here: {other:?}"),
        };
        let nid = machine.nodes()[0].nid;
        let during = machine.with_memory_from(nid, ThreadPolicy::now).unwrap().unwrap();
        assert_eq!(during.mode, libc::MPOL_PREFERRED);
        assert_eq!(ThreadPolicy::now().unwrap(), before);
        let panicked = std::panic::catch_unwind(|| machine.with_memory_from(nid, || panic!("act")));
        assert!(panicked.is_err());
        assert_eq!(ThreadPolicy::now().unwrap(), before);
        let unknown = machine.with_memory_from(Nid(u32::MAX), || ());
        assert!(matches!(unknown, Err(TopologyError::UnknownNode { .. })));
    }
}
