//! Binding memory to a node: mbind(2).

use std::ffi::{c_int, c_long, c_ulong};
use std::io;

use crate::pages::MPOL_MF_MOVE;
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
        self.set_policy(address, bytes, nid, libc::MPOL_BIND, 0)
    }

    /// Like [`bind_memory`](Self::bind_memory), but only a preference (MPOL_PREFERRED), and pages
    /// already there are moved, if no other process has them.
    ///
    /// # Errors
    ///
    /// As for [`bind_memory`](Self::bind_memory).
    pub fn prefer_node(&self, address: usize, bytes: usize, nid: Nid) -> Result<(), TopologyError> {
        self.set_policy(address, bytes, nid, libc::MPOL_PREFERRED, MPOL_MF_MOVE)
    }

    fn set_policy(
        &self,
        address: usize,
        bytes: usize,
        nid: Nid,
        mode: c_int,
        flags: c_int,
    ) -> Result<(), TopologyError> {
        if !self.is_this_machine() {
            return Err(TopologyError::NotThisMachine);
        }
        let node = self.nearest_with_memory(nid).ok_or(TopologyError::UnknownNode { nid })?;
        mbind(address, bytes, node.nid, mode, flags).map_err(|source| TopologyError::BindMemory {
            address,
            bytes,
            nid: node.nid,
            source,
        })
    }
}

fn mbind(address: usize, bytes: usize, nid: Nid, mode: c_int, flags: c_int) -> io::Result<()> {
    let bit = nid.0 as usize;
    let mut nodes: [c_ulong; MAX_NODES / BITS] = [0; MAX_NODES / BITS];
    let word = nodes.get_mut(bit / BITS).ok_or(io::ErrorKind::InvalidInput)?;
    *word = 1 << (bit % BITS);
    // SAFETY: needed for the system call. The kernel reads `MAX_NODES` bits of the array and keeps
    // no pointer. It takes one off the number of bits it is given (a quirk of long standing), hence
    // the 1. Mode and flags go as longs, since the kernel takes them as such. No byte of the range
    // changes: the policy of its mappings does, and at most on which node its pages are.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            address,
            bytes,
            c_long::from(mode),
            nodes.as_ptr(),
            MAX_NODES + 1,
            c_long::from(flags),
        )
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
