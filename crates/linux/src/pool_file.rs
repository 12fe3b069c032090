//! One file of a frame pool: a memfd of fixed length, mapped whole, with frames to hand out.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};

use crate::bitmap::Bitmap;
use crate::frame_file::{FILE_BYTES, FILE_FRAMES, FrameFile};
use crate::num::{PAGE_BYTES, size};
use crate::sharers::FileId;

/// A memfd, and this process's own mapping of all of it, through which frames are written.
#[derive(Debug)]
pub(crate) struct PoolFile {
    frames: Arc<FrameFile>,
    id: FileId,
    used: Mutex<Bitmap>,
}

impl PoolFile {
    /// Makes an empty file.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = rustix::fs::memfd_create(
            "numerge-frames",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL,
        )?;
        rustix::fs::ftruncate(&fd, FILE_BYTES)?;
        // Not F_SEAL_FUTURE_WRITE: with it no hole can be punched, so no memory given back.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
        // A memfd is born open to all: another user given a read-only descriptor could open it
        // again for writing through /proc.
        // Nor is its owner to do that by mistake, which a client of the same user is.
        rustix::fs::fchmod(&fd, Mode::RUSR)?;
        let file = File::from(fd);
        let metadata = file.metadata()?;
        let device = metadata.dev();
        let id = FileId {
            device: format!("{:02x}:{:02x}", rustix::fs::major(device), rustix::fs::minor(device)),
            inode: metadata.ino(),
        };
        let frames = Arc::new(FrameFile::map(file, true)?);
        let made = Self { frames, id, used: Mutex::new(Bitmap::new(size(FILE_FRAMES))) };
        Ok(made)
    }

    /// Takes up to `count` consecutive frames, with their memory. None if there are no free ones.
    pub(crate) fn allocate(&self, count: u64) -> io::Result<Option<Range<u64>>> {
        let mut wanted = usize::try_from(count).unwrap_or(usize::MAX);
        loop {
            // Taken first, filled after, so that the lock is not held over the system call.
            let Some(run) = self.used().take(wanted) else {
                return Ok(None);
            };
            let frames = run.start as u64..run.end as u64;
            match self.fill(&frames) {
                Ok(()) => return Ok(Some(frames)),
                Err(error) => {
                    // What it did get before it failed is given back too.
                    let _ = self.punch(&frames);
                    wanted = run.len() / 2;
                    if wanted == 0 {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn fill(&self, frames: &Range<u64>) -> io::Result<()> {
        loop {
            let filled = rustix::fs::fallocate(
                self.frames.file(),
                FallocateFlags::empty(),
                frames.start * PAGE_BYTES,
                (frames.end - frames.start) * PAGE_BYTES,
            );
            match filled {
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Gives the memory of frames back to the machine, and the frames to who asks next. Nobody may
    /// map them any more.
    pub(crate) fn punch(&self, frames: &Range<u64>) -> io::Result<()> {
        rustix::fs::fallocate(
            self.frames.file(),
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            frames.start * PAGE_BYTES,
            (frames.end - frames.start) * PAGE_BYTES,
        )?;
        self.used().give_back(size(frames.start)..size(frames.end));
        Ok(())
    }

    /// Frames not in use.
    pub(crate) fn free(&self) -> usize {
        self.used().free()
    }

    /// Whether a frame is handed out.
    pub(crate) fn is_used(&self, frame: u64) -> bool {
        self.used().contains(size(frame))
    }

    /// The file and its mapping.
    pub(crate) const fn frames(&self) -> &Arc<FrameFile> {
        &self.frames
    }

    /// The file, opened once more and for reading only.
    pub(crate) fn open_read_only(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.frames.file().as_raw_fd());
        Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// How /proc names it.
    pub(crate) const fn id(&self) -> &FileId {
        &self.id
    }

    /// Bytes kept to manage it.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        (size_of::<Self>() + self.id.device.capacity() + self.used().bytes()) as u64
    }

    fn used(&self) -> MutexGuard<'_, Bitmap> {
        // A bitmap is whole whenever the lock is free: its functions don't panic half-way.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
