//! S6: pages that a device may be writing to, on machines where that can be found out.

use std::ffi::c_long;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::bed::{Bed, Guest, PAGE, wait_for};
use crate::kernel;

/// An io_uring that holds pins on some pages.
fn pin(guest: &Guest, pages: &[usize]) -> OwnedFd {
    /// `IORING_REGISTER_BUFFERS` of include/uapi/linux/io_uring.h.
    const REGISTER_BUFFERS: c_long = 0;
    // struct io_uring_params, 120 bytes, all zeros but what the kernel fills in.
    let mut params = [0_u32; 30];
    // SAFETY: the kernel reads and writes `params`.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made it for us.
    let ring = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
    let place = std::ptr::with_exposed_provenance_mut;
    let addresses = guest.addresses(pages.iter().copied()).into_iter();
    let buffers: Vec<_> =
        addresses.map(|start| libc::iovec { iov_base: place(start), iov_len: PAGE }).collect();
    // SAFETY: the kernel reads the list; what it describes is the guest's.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_BUFFERS,
            buffers.as_ptr(),
            buffers.len(),
        )
    };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    ring
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s6_pages_written_after_merging_are_merged_again_but_for_those_that_are_pinned() {
    let bed = Bed::by_hand();
    let (a, _) = bed.two_nodes();
    let guest = bed.equal(a, 64, 7);
    bed.settle();
    assert_eq!(bed.figures(a), [1, 63, 0, 0]);

    (10..20).for_each(|page| guest.write(page, 8));
    guest.place(10..20, a);
    let ring = pin(&guest, &[12, 15]);
    let pinned = guest.addresses([12, 15]);
    let frames = kernel::page_frames(&pinned);
    let counters = bed.settle();
    assert_eq!(bed.figures(a), [2, 60, 0, 0]);
    assert_eq!(counters.pages_held, 2);
    assert_eq!(kernel::page_frames(&pinned), frames, "what a device writes to is another page now");
    guest.check();

    // The kernel ends the pins of a closed ring in its own time.
    drop(ring);
    wait_for("the end of pins", || {
        bed.settle();
        bed.figures(a) == [2, 62, 0, 0]
    });
    assert!(guest.nodes().iter().all(|node| *node == Some(a)), "{:?}", guest.nodes());
    bed.unmerge(&[&guest]);
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s6_unmerging_leaves_the_pages_that_are_pinned_where_they_are() {
    let bed = Bed::by_hand();
    let (a, b) = bed.two_nodes();
    let guest = bed.equal(b, 64, 7);
    bed.settle();
    (10..20).for_each(|page| guest.write(page, 8 + page as u64));
    guest.place(10..20, b);
    let pinned = guest.addresses([12, 15]);
    let ring = pin(&guest, &[12, 15]);
    let frames = kernel::page_frames(&pinned);
    bed.unmerge(&[&guest]);
    assert_eq!(kernel::page_frames(&pinned), frames, "what a device writes to is another page now");
    // Where they were, and not where the thread was that unmerged them.
    assert!(guest.nodes().iter().all(|node| *node == Some(b)), "{a} and {b}: {:?}", guest.nodes());
    drop(ring);
}
