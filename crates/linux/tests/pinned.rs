//! Memory a device may be writing to must not be merged. One test a process: the files that a
//! process has open decide what is allowed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use common::{World, assert_contents, page_of, sub};
use numerge_engine::machine::{Frames, Memory, Outcome, PAGE_SIZE};

/// `IORING_REGISTER_BUFFERS` of include/uapi/linux/io_uring.h.
const IORING_REGISTER_BUFFERS: libc::c_long = 0;

fn ring() -> std::io::Result<OwnedFd> {
    // struct io_uring_params, 120 bytes, all zeros but what the kernel fills in.
    let mut params = [0_u32; 30];
    // SAFETY: the kernel reads and writes `params`.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    let fd = i32::try_from(fd).unwrap();
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pin(ring: &OwnedFd, start: *mut u8, len: usize) -> std::io::Result<()> {
    let buffer = libc::iovec { iov_base: start.cast(), iov_len: len };
    // SAFETY: the kernel reads one iovec; what it describes belongs to the test's region.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            IORING_REGISTER_BUFFERS,
            &raw const buffer,
            1,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn s6_pinned_pages_are_left_alone() {
    let Some(world) = World::new() else { return };
    let region = world.region(16, |_| 7);
    let frames = world.frames(&[7; 16]);
    let ring = match ring() {
        Ok(ring) => ring,
        Err(error) => {
            println!("SKIPPED: no io_uring: {error}");
            return;
        }
    };
    // Page 3 is pinned before it is merged, page 9 after it was merged and written to.
    assert_eq!(world.merge_frames(sub(&region, 9..10), &frames), [Outcome::Merged]);
    region.write(9 * PAGE_SIZE, &page_of(8)).unwrap();
    let page = |n: usize| region.as_ptr().wrapping_add(n * PAGE_SIZE);
    if let Err(error) = pin(&ring, page(3), 7 * PAGE_SIZE) {
        println!("SKIPPED: registering buffers: {error}");
        return;
    }
    let outcomes = world.merge_frames(region.pages(), &frames);
    for (n, outcome) in outcomes.iter().enumerate() {
        let wanted = match n {
            9 => Outcome::Refused,
            3..9 => Outcome::Pinned,
            _ => Outcome::Merged,
        };
        assert_eq!(*outcome, wanted, "page {n}");
    }
    let content = |n: usize| if n == 9 { 8 } else { 7 };
    assert_contents(&region, content);
    assert_eq!(world.memory.pages_left_in_file_mapping(), 1);

    // Unmerging leaves the page where it is, since it may be pinned, and is done all the same.
    region.write(12 * PAGE_SIZE, &page_of(8)).unwrap();
    world.memory.unmerge(&[region.pages()]).unwrap();
    world.pools.free(&(0..16).map(|n| frames.start.plus(n)).collect::<Vec<_>>());
    let content = |n: usize| if n == 9 || n == 12 { 8 } else { 7 };
    assert_contents(&region, content);
    assert_eq!(world.memory.pages_left_in_file_mapping(), 2);

    // Writes through the pin reach the program: the very same page is still there.
    drop(ring);
    // The kernel ends pins of a closed ring in its own time.
    std::thread::sleep(std::time::Duration::from_millis(200));
    world.memory.unmerge(&[region.pages()]).unwrap();
    assert_eq!(world.memory.pages_left_in_file_mapping(), 0);
    let frames = world.frames(&(0..16).map(content).collect::<Vec<_>>());
    let outcomes = world.merge_frames(region.pages(), &frames);
    assert!(common::all(&outcomes, Outcome::Merged), "{outcomes:?}");
    assert_contents(&region, content);
}
