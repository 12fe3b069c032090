//! Pages, and what is in them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use memmap2::{Advice, MmapMut, RemapOptions, UncheckedAdvice};
use rustix::process::Pid;

use crate::processes::reap;

pub(crate) const PAGE: usize = 4096;
pub(crate) const PAGES: usize = 512;
/// Contents of pages: few, so that many are equal.
pub(crate) const CONTENTS: u64 = 20;

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }

    pub(crate) fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap_or(0)
    }
}

pub(crate) fn offer(memory: &MmapMut) {
    // EINVAL: a kernel without KSM, and nobody in between.
    if let Err(error) = memory.advise(Advice::Mergeable) {
        assert_eq!(error.raw_os_error(), Some(22), "MADV_MERGEABLE: {error}");
    }
}

pub(crate) fn word(content: u64, n: usize) -> u64 {
    if content == 0 { 0 } else { Random(content * 1_000_003 + n as u64).below(u64::MAX) }
}

/// Pages, and what is in them.
pub(crate) struct Book {
    memory: MmapMut,
    contents: Vec<u64>,
}

impl Book {
    pub(crate) fn new() -> Self {
        let memory = MmapMut::map_anon(PAGES * PAGE).expect("memory");
        offer(&memory);
        Self { memory, contents: vec![0; PAGES] }
    }

    pub(crate) fn fill(&mut self, page: usize, content: u64) {
        let bytes = &mut self.memory[page * PAGE..(page + 1) * PAGE];
        for (n, place) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *place = word(content, n).to_ne_bytes();
        }
        self.contents[page] = content;
    }

    /// The first word that is wrong.
    fn wrong(&self, page: usize) -> Option<usize> {
        let words = self.memory[page * PAGE..(page + 1) * PAGE].as_chunks::<8>().0;
        let content = self.contents[page];
        (0..words.len()).find(|n| u64::from_ne_bytes(words[*n]) != word(content, *n))
    }

    pub(crate) fn check(&self, page: usize) {
        let (wrong, content) = (self.wrong(page), self.contents[page]);
        assert_eq!(wrong, None, "page {page}, content {content}: the word that is wrong");
    }

    /// A child finds what there was, and what it writes does not show here. Made by a system call or by the
    /// C library. Gives whether there was one.
    pub(crate) fn fork(&mut self, raw: bool, random: &mut Random) -> bool {
        let (page, content) = (random.index(PAGES), random.below(CONTENTS));
        // SAFETY: the child only computes with memory that is there, and ends.
        let child = unsafe {
            if raw {
                let made = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
                libc::pid_t::try_from(made).expect("a process's number")
            } else {
                libc::fork()
            }
        };
        if child == 0 {
            let all_right = |book: &Self| (0..PAGES).all(|page| book.wrong(page).is_none());
            let right = all_right(self) && {
                self.fill(page, content);
                all_right(self)
            };
            // SAFETY: ends the child, whose other threads are not there.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        let Some(child) = Pid::from_raw(child.max(0)) else {
            return false; // too many processes, for the moment
        };
        // The parent goes on writing while the child looks.
        (0..20).for_each(|_| self.fill(random.index(PAGES), random.below(CONTENTS)));
        reap(child);
        true
    }

    /// Read only, and back.
    pub(crate) fn protect(&mut self) {
        let empty = MmapMut::map_anon(PAGE).expect("memory");
        let memory = std::mem::replace(&mut self.memory, empty);
        let memory = memory.make_read_only().expect("mprotect");
        self.memory = memory.make_mut().expect("mprotect");
    }

    /// Longer and as long again, perhaps elsewhere. Gives whether that was done: it isn't where the memory lies
    /// in more than one mapping.
    pub(crate) fn resize(&mut self) -> bool {
        let there = RemapOptions::new().may_move(true);
        // SAFETY: no reference to the old place is kept.
        let longer = unsafe { self.memory.remap(2 * PAGES * PAGE, there) };
        match longer {
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => return false,
            longer => longer.expect("mremap, longer"),
        }
        // SAFETY: as above; the end was not there before.
        unsafe { self.memory.remap(PAGES * PAGE, there) }.expect("mremap, shorter");
        true
    }

    /// Given back, and zeros from then on.
    pub(crate) fn drop_content(&mut self, pages: Range<usize>) {
        let (start, len) = (pages.start * PAGE, pages.len() * PAGE);
        // SAFETY: what is there is not needed any more, and the memory is private: it reads as zeros then.
        let dropped =
            unsafe { self.memory.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        dropped.expect("MADV_DONTNEED");
        self.contents[pages].fill(0);
    }

    /// The same content elsewhere, in memory that is offered only once it is full.
    pub(crate) fn copy(&mut self) {
        let mut memory = MmapMut::map_anon(PAGES * PAGE).expect("memory");
        memory.copy_from_slice(&self.memory);
        self.memory = memory;
        offer(&self.memory);
    }

    /// Unmapped, and mapped again at the same place, where zeros are then. Gives whether that was done: another
    /// thread may have mapped something there in between.
    pub(crate) fn map_again(&mut self, pages: Range<usize>) -> bool {
        let len = pages.len() * PAGE;
        let start = self.memory[pages.start * PAGE..].as_mut_ptr().cast();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: takes the place of a part of the memory, to which there is no reference; where that fails, the
        // memory is not used again.
        let mapped = unsafe {
            assert_eq!(libc::munmap(start, len), 0, "munmap: {}", io::Error::last_os_error());
            libc::mmap(start, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if mapped == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::EEXIST), "mmap: {error}");
            // It is another thread's by now, a part of it at least, and not to be unmapped.
            std::mem::forget(std::mem::replace(self, Self::new()).memory);
            return false;
        }
        offer(&self.memory);
        self.contents[pages].fill(0);
        true
    }

    /// Read from the file that has content n in page n, from this content on.
    pub(crate) fn read(&mut self, file: &File, pages: Range<usize>, from: u64) {
        let place = &mut self.memory[pages.start * PAGE..pages.end * PAGE];
        file.read_exact_at(place, from * PAGE as u64).expect("reading the file");
        self.was_read(pages, from);
    }

    /// The same by an io_uring into a registered buffer, whose pages are pinned from so long before. Gives whether
    /// that was done: it isn't where there is none, or no memory to be pinned.
    pub(crate) fn read_pinned(
        &mut self,
        file: &File,
        pages: Range<usize>,
        from: u64,
        pause: Duration,
    ) -> bool {
        let place = &mut self.memory[pages.start * PAGE..pages.end * PAGE];
        let Ok(mut ring) = IoUring::new(4) else { return false };
        let buffer = libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: place.len() };
        // SAFETY: the memory is there until the ring is gone, and nobody else uses it.
        if unsafe { ring.submitter().register_buffers(&[buffer]) }.is_err() {
            return false;
        }
        std::thread::sleep(pause);
        let bytes = u32::try_from(place.len()).expect("a few pages");
        let read =
            opcode::ReadFixed::new(types::Fd(file.as_raw_fd()), place.as_mut_ptr(), bytes, 0)
                .offset(from * PAGE as u64)
                .build();
        // SAFETY: file and memory are there until it is completed, which is waited for.
        unsafe { ring.submission().push(&read) }.expect("room in the ring");
        let result = loop {
            if let Some(completed) = ring.completion().next() {
                break completed.result();
            }
            match ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                submitted => drop(submitted.expect("io_uring_enter")),
            }
        };
        assert_eq!(u32::try_from(result), Ok(bytes), "io_uring: {result}");
        drop(ring);
        self.was_read(pages, from);
        true
    }

    fn was_read(&mut self, pages: Range<usize>, from: u64) {
        for (page, content) in pages.zip(from..) {
            self.contents[page] = content;
        }
    }
}
