//! On which node pages are, and moving them: move_pages(2), which moves nothing when it is given no
//! nodes.

use std::ffi::c_int;
use std::io;
use std::ptr;

use crate::{Nid, TopologyError};

/// Pages asked for in one system call: enough to make its cost small, few enough that a call is
/// short (the kernel holds the process's mmap lock, though only for a few pages at a time) and that
/// the answers fit on the stack.
const PAGES_PER_CALL: usize = 1024;

// Of include/uapi/linux/mempolicy.h; libc lacks them.
/// Pages that only this process maps.
const MPOL_MF_MOVE: c_int = 1 << 1;
/// Pages that others map too.
const MPOL_MF_MOVE_ALL: c_int = 1 << 2;

/// The node of each of this process's pages, by any address in it; `out` is overwritten and gets one
/// answer for each address. None: no page there now (never touched, swapped out, not mapped), or the
/// kernel's shared page of zeros.
///
/// Pages can move at any time, so an answer is a good guess by the time it is there.
///
/// # Errors
///
/// [`TopologyError::QueryPages`] if the kernel refuses; `out` is then empty.
pub fn nodes_of_pages(
    addresses: &[usize],
    out: &mut Vec<Option<Nid>>,
) -> Result<(), TopologyError> {
    // To the kernel 0 is the calling process.
    nodes_of_process_pages(0, addresses, out)
}

/// [`nodes_of_pages`] for the pages of another process, which needs the same rights as ptrace
/// (PTRACE_MODE_READ_REALCREDS); `pid` 0 is the calling process.
///
/// # Errors
///
/// [`TopologyError::QueryPages`] if the kernel refuses: ESRCH without such a process, EPERM without
/// the rights; `out` is then empty.
pub fn nodes_of_process_pages(
    pid: libc::pid_t,
    addresses: &[usize],
    out: &mut Vec<Option<Nid>>,
) -> Result<(), TopologyError> {
    out.clear();
    let mut status: [c_int; PAGES_PER_CALL] = [0; PAGES_PER_CALL];
    for batch in addresses.chunks(PAGES_PER_CALL) {
        let status = &mut status[..batch.len()];
        if let Err(source) = query(pid, batch, status) {
            out.clear();
            return Err(TopologyError::QueryPages { pid, source });
        }
        // A negative status is an errno: ENOENT for no page, EFAULT for the page of zeros or no
        // mapping. None of them is a node.
        out.extend(status.iter().map(|&nid| u32::try_from(nid).ok().map(Nid)));
    }
    Ok(())
}

/// Moves this process's pages, by any address in each, to a node, if there is room. Pages of shared
/// memory are moved also where other processes map them, for which CAP_SYS_NICE is needed; others
/// stay where they are.
///
/// # Errors
///
/// [`TopologyError::QueryPages`] if the kernel refuses; some may have been moved.
pub fn move_pages(addresses: &[usize], nid: Nid) -> Result<(), TopologyError> {
    let node = c_int::try_from(nid.0).map_err(|_| TopologyError::UnknownNode { nid })?;
    let (nodes, mut status) = ([node; PAGES_PER_CALL], [0; PAGES_PER_CALL]);
    for batch in addresses.chunks(PAGES_PER_CALL) {
        let status = &mut status[..batch.len()];
        for flags in [MPOL_MF_MOVE_ALL, MPOL_MF_MOVE] {
            match call(0, batch, Some(&nodes[..batch.len()]), status, flags) {
                Ok(()) => break,
                // Without the capability, those that are only this process's.
                Err(error)
                    if error.raw_os_error() == Some(libc::EPERM) && flags == MPOL_MF_MOVE_ALL => {}
                Err(source) => return Err(TopologyError::QueryPages { pid: 0, source }),
            }
        }
    }
    Ok(())
}

fn query(pid: libc::pid_t, addresses: &[usize], status: &mut [c_int]) -> io::Result<()> {
    call(pid, addresses, None, status, 0)
}

/// One system call; `status`, and `nodes` if there are any, is as long as `addresses`. `status` gets
/// a nid or a negative errno for each.
fn call(
    pid: libc::pid_t,
    addresses: &[usize],
    nodes: Option<&[c_int]>,
    status: &mut [c_int],
    flags: c_int,
) -> io::Result<()> {
    assert!(addresses.len() == status.len());
    assert!(nodes.is_none_or(|nodes| nodes.len() == status.len()));
    // SAFETY: needed for the system call. The kernel reads as many addresses and nodes and writes as
    // many statuses as it is told of, which is the length of all slices; an address has the size and
    // alignment of C's pointer. It dereferences none of the addresses, and moving a page changes no
    // byte of it.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            pid,
            addresses.len(),
            addresses.as_ptr(),
            nodes.map_or(ptr::null(), <[c_int]>::as_ptr),
            status.as_mut_ptr(),
            flags,
        )
    };
    // Above 0: how many were not moved.
    if failed >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
