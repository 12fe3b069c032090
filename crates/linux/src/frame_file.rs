//! A file with frames, mapped whole: what merging compares with and maps from.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;

use numerge_engine::Kpfn;
use numerge_engine::machine::PAGE_SIZE;
use numerge_topology::Nid;

use crate::num::{PAGE_BYTES, size};
use crate::place::place_for;
use crate::sys;

/// log2 of [`FILE_FRAMES`].
pub(crate) const FILE_SHIFT: u32 = 18;
/// Frames of one file: 1 GiB.
pub(crate) const FILE_FRAMES: u64 = 1 << FILE_SHIFT;
/// Bytes of one file.
pub(crate) const FILE_BYTES: u64 = FILE_FRAMES * PAGE_BYTES;

/// Where frames are found by their numbers.
pub trait FrameSource: Send + Sync + std::fmt::Debug {
    /// Where a run of frames is; None if they are not all handed out, in one file.
    fn locate(&self, first: Kpfn, count: u64) -> Option<FrameRun>;

    /// The only node with memory, if there is just one: then nobody needs to be asked.
    fn only_node(&self) -> Option<Nid>;
}

/// Adjacent frames of one file.
#[derive(Clone, Debug)]
pub struct FrameRun {
    pub(crate) file: std::sync::Arc<FrameFile>,
    pub(crate) first: u64,
}

impl FrameRun {
    /// The file to map.
    pub(crate) fn fd(&self) -> RawFd {
        self.file.file.as_raw_fd()
    }

    /// Page of the file where the run begins.
    pub(crate) const fn first(&self) -> u64 {
        self.first
    }

    /// The content of the run's n-th frame, to compare with.
    pub(crate) fn content(&self, n: u64) -> *const u8 {
        self.file.address(self.first + n)
    }
}

/// A file of [`FILE_BYTES`] that can't shrink, and this process's mapping of all of it.
#[derive(Debug)]
pub(crate) struct FrameFile {
    file: File,
    base: NonNull<u8>,
}

// SAFETY: `base` is an address range that lives as long as the value; who may access which frame,
// and when, is for the frames' owner to order (see `numerge_engine::machine::Frames`).
unsafe impl Send for FrameFile {}
// SAFETY: as above.
unsafe impl Sync for FrameFile {}

impl FrameFile {
    /// Maps a file, which must be sealed against shrinking, to read it, and to write to it too if
    /// `writable`.
    pub(crate) fn map(file: File, writable: bool) -> io::Result<Self> {
        let write = if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: asks for a mapping where nothing is; the file can't shrink.
        let base = unsafe {
            sys::map(
                place_for(size(FILE_BYTES)),
                size(FILE_BYTES),
                libc::PROT_READ | write,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        }?;
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        let made = Self { file, base };
        // A child has no use for this mapping, and would keep all frames in use by it.
        // SAFETY: advice on the mapping just made; changes no content.
        unsafe { sys::advise(base.as_ptr(), size(FILE_BYTES), libc::MADV_DONTFORK) }?;
        Ok(made)
    }

    /// Where a frame is in this process's own mapping.
    pub(crate) fn address(&self, frame: u64) -> *mut u8 {
        assert!(frame < FILE_FRAMES, "no such frame in a file of frames");
        self.base.as_ptr().wrapping_add(size(frame) * PAGE_SIZE)
    }

    /// The file itself.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for FrameFile {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and its last use. Programs' private mappings keep the file's
        // memory alive by themselves. In a fork's child the mapping does not exist, and its address
        // may belong to something else by now; the owner of this value never drops it there.
        let _ = unsafe { sys::unmap(self.base.as_ptr(), size(FILE_BYTES)) };
    }
}
