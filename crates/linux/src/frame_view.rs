//! The frames of an engine that is another process: its pool files, received one by one and only to
//! be read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use numerge_engine::Kpfn;
use numerge_topology::Nid;
use rustix::fs::{OFlags, SealFlags};

use crate::fork;
use crate::frame_file::{FILE_BYTES, FILE_FRAMES, FILE_SHIFT, FrameFile, FrameRun, FrameSource};

/// Most files there can be, by the width of a frame number.
const FILES: u64 = 1 << (Kpfn::BITS - FILE_SHIFT);

/// Pool files of another process, by their numbers.
#[derive(Debug)]
pub struct FrameView {
    files: RwLock<ManuallyDrop<BTreeMap<u64, Arc<FrameFile>>>>,
    /// [`fork::depth`] of the process that made this.
    depth: u64,
}

impl Default for FrameView {
    fn default() -> Self {
        Self { files: RwLock::default(), depth: fork::depth() }
    }
}

impl FrameView {
    /// Takes in the file whose frames begin at `number << 18`.
    ///
    /// # Errors
    /// EINVAL if the number is too large or there already, or if the file is not a memfd of 1 GiB
    /// that is open for reading only and sealed against shrinking; what mmap said.
    pub fn add(&self, number: u64, file: OwnedFd) -> io::Result<()> {
        let file = File::from(file);
        let sealed = rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK);
        let read_only = rustix::fs::fcntl_getfl(&file)? & OFlags::RWMODE == OFlags::RDONLY;
        let fits = sealed && read_only && file.metadata()?.len() == FILE_BYTES;
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if !fits || number >= FILES || files.contains_key(&number) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        files.insert(number, Arc::new(FrameFile::map(file, false)?));
        Ok(())
    }

    /// Gives up all files. Nothing of the process is mapped to their frames any more, or will be
    /// compared with them; so another engine's can be taken in under the same numbers.
    pub fn clear(&self) {
        if self.depth == fork::depth() {
            self.files.write().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// Gives up the files that nothing is being compared with just now. Whether that was all of them.
    #[must_use]
    pub fn clear_unused(&self) -> bool {
        if self.depth != fork::depth() {
            return true; // they are not mapped here
        }
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.retain(|_, file| Arc::strong_count(file) > 1);
        files.is_empty()
    }
}

impl FrameSource for FrameView {
    fn locate(&self, first: Kpfn, count: u64) -> Option<FrameRun> {
        let frame = first.0 % FILE_FRAMES;
        if count == 0 || count > FILE_FRAMES - frame || self.depth != fork::depth() {
            return None;
        }
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let file = Arc::clone(files.get(&(first.0 >> FILE_SHIFT))?);
        Some(FrameRun { file, first: frame })
    }

    fn only_node(&self) -> Option<Nid> {
        None
    }
}

impl Drop for FrameView {
    fn drop(&mut self) {
        // In a fork's child the mappings do not exist: see `FrameFile`.
        if self.depth == fork::depth() {
            let files = self.files.get_mut().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(files) };
        }
    }
}
