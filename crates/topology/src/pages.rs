//! On which node pages are: move_pages(2), which moves nothing when it is given no nodes.

use std::ffi::c_int;
use std::io;
use std::ptr;

use crate::{Nid, TopologyError};

/// Pages asked for in one system call: enough to make its cost small, few enough that a call is
/// short (the kernel holds the process's mmap lock, though only for a few pages at a time) and that
/// the answers fit on the stack.
const PAGES_PER_CALL: usize = 1024;

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

/// One system call; `status` is as long as `addresses` and gets a nid or a negative errno for each.
fn query(pid: libc::pid_t, addresses: &[usize], status: &mut [c_int]) -> io::Result<()> {
    assert_eq!(addresses.len(), status.len());
    // SAFETY: needed for the system call. The kernel reads as many addresses and writes as many
    // statuses as it is told of, which is the length of both slices; an address has the size and
    // alignment of C's pointer. Without nodes (null) it only asks, and it dereferences none of the
    // addresses.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            pid,
            addresses.len(),
            addresses.as_ptr(),
            ptr::null::<c_int>(),
            status.as_mut_ptr(),
            0,
        )
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
