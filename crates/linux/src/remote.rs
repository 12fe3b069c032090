//! Another process's memory: looked at, never changed.
//!
//! Read through /proc/PID/mem, not with process_vm_readv, which costs the same (1.2 us a page of a
//! busy machine in pieces of 64 KiB, measured side by side) but for two things. A page that the
//! process has frozen, as while it is merged, makes process_vm_readv wait, for minutes if the process
//! is stopped meanwhile, and so would a userfaultfd of a process that means harm; here such a page can't
//! be read, and that is all. And the file stands for one address space, not for a number: after an
//! exec, or when the number belongs to somebody else, it reads as empty.
//!
//! A process can keep whoever looks at it waiting, as long as it likes: its page tables, its list of mappings and
//! its memory are there for others only while it does not have its mappings locked, and a page of a file
//! only when that file's system answers. So nobody here looks himself ([`crate::looker`]), and what takes too
//! long, or what a process has kept others waiting with too often, is refused ([`crate::looks`]). Pages of
//! files are not read at all, as far as the page tables tell.
//!
//! The pagemap is the process's own, passed by it, and compared with the one that /proc has for it:
//! it stands for an address space too, so nobody can have us look at another's.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use numerge_engine::machine::{Kind, PAGE_SIZE, PIECE_PAGES, READ_PAGES, Vpn, Written};
use numerge_engine::{Fingerprint, Fingerprinter};
use numerge_topology::{Nid, nodes_of_process_pages};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, Mode, OFlags, PROC_SUPER_MAGIC};

use crate::error::Error;
use crate::kinds;
use crate::looks::Looks;
use crate::num::{address, count, size};
use crate::pagemap::Pagemap;
use crate::ranges::{Ranges, in_pieces};
use crate::sharers::ProcessId;

/// An address that nobody has anything at.
const NOWHERE: u64 = i64::MAX.cast_unsigned() & !(PAGE_SIZE as u64 - 1);

/// Pages copied by one call: few enough to be in a CPU's innermost caches still when they are used.
const COPIES: usize = 16;

/// Why another process can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// It has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// Its number.
        pid: i32,
    },
    /// This user may not look at it.
    #[error(
        "may not look at the memory of process {pid} ({source}): run as the same user, or with \
         CAP_SYS_PTRACE; with Yama's ptrace_scope=1 it must allow that by prctl(PR_SET_PTRACER)"
    )]
    NotPermitted {
        /// Its number.
        pid: i32,
        /// What the system said.
        source: io::Error,
    },
    /// The descriptor is not its pagemap.
    #[error("what process {pid} passed for its pagemap is another file")]
    WrongPagemap {
        /// Its number.
        pid: i32,
    },
    /// Its pagemap is of another mount of /proc, and can't be told for its own.
    #[error(
        "process {pid} has another mount of /proc than the engine, as in a container: its pagemap \
         can't be told for its own"
    )]
    OtherProc {
        /// Its number.
        pid: i32,
    },
    /// The kernel lacks something, or a system call failed that there is no rule for.
    #[error(transparent)]
    System(#[from] Error),
}

/// The memory of another process, as it was when this was made: after an exec this is gone.
#[derive(Debug)]
pub struct RemoteProcess {
    pid: i32,
    /// /proc/PID, which no later process of that number is taken for.
    directory: Arc<OwnedFd>,
    memory: Arc<File>,
    pagemap: Arc<Pagemap>,
    looks: Looks,
}

impl RemoteProcess {
    /// The process that `pidfd` stands for and whose number is `pid`; `pagemap` is what it passed for
    /// its /proc/self/pagemap.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn new(pid: i32, pidfd: BorrowedFd<'_>, pagemap: OwnedFd) -> Result<Self, RemoteError> {
        let failed = |call| move |errno: rustix::io::Errno| failure(pid, call, errno.into());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())
            .map_err(failed("open /proc/PID"))?;
        // It lives still, so the number has been its own all the time.
        if has_ended(pidfd).map_err(failed("poll"))? {
            return Err(RemoteError::Gone { pid });
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let memory = rustix::fs::openat(&directory, "mem", flags, Mode::empty())
            .map_err(failed("open /proc/PID/mem"))?;
        let memory = File::from(memory);
        // Not opened: that would take more rights, and what it is does not depend on it.
        let known = rustix::fs::statat(&directory, "pagemap", AtFlags::empty())
            .map_err(failed("stat /proc/PID/pagemap"))?;
        let passed = rustix::fs::fstat(&pagemap).map_err(failed("fstat"))?;
        if (known.st_dev, known.st_ino) != (passed.st_dev, passed.st_ino) {
            let system = rustix::fs::fstatfs(&pagemap).map_err(failed("fstatfs"))?.f_type;
            let is_other_proc = passed.st_dev != known.st_dev && system == PROC_SUPER_MAGIC;
            return Err(if is_other_proc {
                RemoteError::OtherProc { pid }
            } else {
                RemoteError::WrongPagemap { pid }
            });
        }
        let pagemap = Arc::new(Pagemap::of(File::from(pagemap))?);
        let process = ProcessId::of(pid.cast_unsigned());
        let process = process.map_err(|source| failure(pid, "read /proc/PID/stat", source))?;
        let (directory, memory) = (Arc::new(directory), Arc::new(memory));
        Ok(Self { pid, directory, memory, pagemap, looks: Looks::at(process) })
    }

    /// Its number.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the memory is no more, by exit or exec: no page of it is mapped to anything. May wait for the
    /// process.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        is_gone(&self.memory)
    }

    /// Passes copies of the pages to `each`, one after the other, up to the first that can't be read:
    /// not there, frozen by the process itself, or in a file mapping and not written to since. See
    /// [`numerge_engine::machine::Memory::read`].
    ///
    /// # Errors
    /// `TimedOut`, `WouldBlock`, or what the system said: of the pages that were not passed nothing is known.
    pub fn read(
        &self,
        runs: &[Range<Vpn>],
        each: &mut dyn FnMut(&[u8; PAGE_SIZE]),
    ) -> io::Result<()> {
        let copy = |copies: &[_], found: &mut Vec<_>| found.extend_from_slice(copies);
        self.read_in_pieces(runs, READ_PAGES, copy, each)
    }

    /// As [`Self::read`], but passes the pages' fingerprints.
    ///
    /// # Errors
    /// As those of [`Self::read`].
    pub fn fingerprints(
        &self,
        runs: &[Range<Vpn>],
        prints: &Arc<Fingerprinter>,
        each: &mut dyn FnMut(Fingerprint),
    ) -> io::Result<()> {
        let prints = Arc::clone(prints);
        let print = move |copies: &[[u8; PAGE_SIZE]], found: &mut Vec<_>| {
            found.extend(copies.iter().map(|content| prints.of(content)));
        };
        self.read_in_pieces(runs, PIECE_PAGES, print, &mut |found: &Fingerprint| each(*found))
    }

    /// Passes to `each` what `take` has taken of copies of the pages, so many pages by one look.
    fn read_in_pieces<T: Send + 'static>(
        &self,
        runs: &[Range<Vpn>],
        pages: usize,
        take: impl Fn(&[[u8; PAGE_SIZE]], &mut Vec<T>) + Clone + Send + 'static,
        each: &mut dyn FnMut(&T),
    ) -> io::Result<()> {
        for runs in in_pieces(runs, pages as u64, usize::MAX) {
            let wanted = size(runs.iter().map(count).sum());
            let (memory, pagemap) = (Arc::clone(&self.memory), Arc::clone(&self.pagemap));
            let take = take.clone();
            let look = move || {
                let mut found = Vec::with_capacity(wanted);
                let read = read_own(&memory, &pagemap, &runs, |copies| take(copies, &mut found));
                read.map(|()| found)
            };
            let found = unless_gone(self.looks.look_at(wanted, look)?, Vec::new)?;
            found.iter().for_each(&mut *each);
            if found.len() < wanted {
                break;
            }
        }
        Ok(())
    }

    /// Appends what was written in `parts`, which are in ascending order, since the last call, and arms it
    /// again; stops at `max_pages` (at least 1). `in_file` tells whether any of some pages may be in a file
    /// mapping. Gives where the walk ended, if not at the end. See [`numerge_engine::machine::Memory::written`].
    ///
    /// What is not registered with a userfaultfd of the process is passed over, and so is all once it has
    /// ended.
    ///
    /// # Errors
    /// `WouldBlock` if nobody looked. `TimedOut`, or what the system said: then what was written is not known
    /// any more, and a [`Self::first_look`] is needed.
    pub fn written(
        &self,
        parts: Vec<Range<Vpn>>,
        max_pages: u64,
        in_file: impl Fn(&Range<Vpn>) -> bool + Send + 'static,
        out: &mut Vec<Written>,
    ) -> io::Result<Option<Vpn>> {
        let pagemap = Arc::clone(&self.pagemap);
        let look = move || -> io::Result<(Option<Vpn>, Vec<Written>)> {
            let (mut found, mut left) = (Vec::new(), max_pages.max(1));
            for part in parts {
                let before = found.len();
                let reached = pagemap.append_written(&part, left, &in_file, &mut found)?;
                let pages: u64 =
                    found[before..].iter().map(|run: &Written| count(&run.pages)).sum();
                left = left.saturating_sub(pages);
                if left == 0 {
                    return Ok((Some(reached), found));
                }
            }
            Ok((None, found))
        };
        let found = unless_gone(self.looks.look(look)?, || (None, Vec::new()));
        let (reached, mut found) = found?;
        out.append(&mut found);
        Ok(reached)
    }

    /// Appends all pages of `parts` that are there as if they had been written, and arms them.
    ///
    /// # Errors
    /// What the system said; nothing is appended then.
    pub fn first_look(&self, parts: Vec<Range<Vpn>>, out: &mut Vec<Written>) -> io::Result<()> {
        let pagemap = Arc::clone(&self.pagemap);
        let look = move || -> io::Result<Vec<Written>> {
            let mut found = Vec::new();
            for part in parts {
                let bytes = address(part.start)..address(part.end);
                // Armed before: what is written after that is reported next time.
                pagemap.take_written(bytes.clone(), u64::MAX, &|_| true, &mut |_| {})?;
                pagemap.find(bytes, 0, &mut |region| {
                    let kind = kinds::kind(region.categories);
                    found.push(Written { pages: region.pages(), kind });
                })?;
            }
            Ok(found)
        };
        out.append(&mut unless_gone(self.looks.look(look)?, Vec::new)?);
        Ok(())
    }

    /// Appends what lies at each page of the runs, in order; `in_file` are the pages that may be in a file
    /// mapping. See [`numerge_engine::machine::Memory::kinds`]. Nothing once the process has ended.
    ///
    /// # Errors
    /// What the system said; nothing is appended then.
    pub fn kinds<T: Copy + PartialEq + Send + 'static>(
        &self,
        runs: &[Range<Vpn>],
        in_file: Ranges<T>,
        out: &mut Vec<Option<Kind>>,
    ) -> io::Result<()> {
        let (memory, pagemap) = (Arc::clone(&self.memory), Arc::clone(&self.pagemap));
        let looked_at = runs.to_vec();
        let look = move || {
            let mut found = Vec::new();
            let bring_in = |page: Vpn| _ = read_pages(&memory, page, &mut [[0; PAGE_SIZE]]);
            kinds::append(&pagemap, &in_file, &bring_in, &looked_at, &mut found)?;
            Ok(found)
        };
        let nothing = || runs.iter().flat_map(|run| run.start.0..run.end.0).map(|_| None).collect();
        out.append(&mut unless_gone(self.looks.look(look)?, nothing)?);
        Ok(())
    }

    /// Appends the node of each page; None where there is none, or the process has ended.
    ///
    /// # Errors
    /// What the system said; nothing is appended then.
    pub fn nodes_of(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Nid>>) -> io::Result<()> {
        let pages = runs.iter().flat_map(|run| run.start.0..run.end.0).map(Vpn);
        let addresses: Vec<usize> = pages.map(|page| size(address(page))).collect();
        let (memory, pid) = (Arc::clone(&self.memory), self.pid);
        let look = move || -> io::Result<Vec<Option<Nid>>> {
            // The system call knows the process only by its number, which may be another's by then.
            if is_gone(&memory) {
                return Ok(vec![None; addresses.len()]);
            }
            let mut found = Vec::with_capacity(addresses.len());
            nodes_of_process_pages(pid, &addresses, &mut found).map_err(io::Error::other)?;
            Ok(found)
        };
        out.append(&mut self.looks.look(look)??);
        Ok(())
    }

    /// Number of mappings the process has; none if it has ended.
    ///
    /// # Errors
    /// `TimedOut`, `WouldBlock`, or what the system said.
    pub fn mappings(&self) -> io::Result<u64> {
        let (directory, memory) = (Arc::clone(&self.directory), Arc::clone(&self.memory));
        self.looks.look(move || match count_mappings(&directory) {
            Err(_) if is_gone(&memory) => Ok(0),
            counted => counted,
        })?
    }

    /// Waits, however long it takes, until no thread looks at the process any more that was left behind, and
    /// leaves nothing to one from now on.
    pub fn wait_for_looks(&self) {
        self.looks.close();
    }

    /// Where the process's user namespace is, as a number that no other living one has.
    ///
    /// # Errors
    /// What the system said.
    pub fn user_namespace(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statat(&self.directory, "ns/user", AtFlags::empty())?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

/// Passes copies of pages, some at a time, up to the first that can't be read or is not the process's own.
fn read_own(
    memory: &File,
    pagemap: &Pagemap,
    runs: &[Range<Vpn>],
    mut each: impl FnMut(&[[u8; PAGE_SIZE]]),
) -> io::Result<()> {
    let mut copies = Vec::new();
    for run in runs {
        let own = pagemap.first_own(address(run.start)..address(run.end))?;
        let mut done = 0;
        while done < own {
            if copies.is_empty() {
                copies = vec![[0; PAGE_SIZE]; COPIES];
            }
            let some = &mut copies[..size(own - done).min(COPIES)];
            let got = read_pages(memory, run.start.plus(done), some);
            each(&some[..got]);
            if got < some.len() {
                return Ok(());
            }
            done += got as u64;
        }
        if own < count(run) {
            break;
        }
    }
    Ok(())
}

/// Whether there is no memory behind this file any more.
fn is_gone(memory: &File) -> bool {
    // Where there is memory, but none at this address, it is an error.
    matches!(memory.read_at(&mut [0], NOWHERE), Ok(0))
}

/// Reads adjacent pages; gives how many.
fn read_pages(memory: &File, first: Vpn, pages: &mut [[u8; PAGE_SIZE]]) -> usize {
    let bytes = pages.as_flattened_mut();
    let mut got = 0;
    while got < bytes.len() {
        match memory.read_at(&mut bytes[got..], address(first) + got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    got / PAGE_SIZE
}

fn count_mappings(directory: &OwnedFd) -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let maps = rustix::fs::openat(directory, "maps", flags, Mode::empty())?;
    let mut maps = BufReader::with_capacity(1 << 16, File::from(maps));
    let mut lines = 0;
    loop {
        let read = maps.fill_buf()?;
        if read.is_empty() {
            // A process whose first thread has ended shows none: nobody knows then.
            return if lines > 0 { Ok(lines) } else { Err(io::ErrorKind::NotFound.into()) };
        }
        lines += read.iter().map(|byte| u64::from(*byte == b'\n')).sum::<u64>();
        let len = read.len();
        maps.consume(len);
    }
}

/// What was found, or what there is to be found in an address space that is no more, or beyond the end
/// of one.
fn unless_gone<T>(found: io::Result<T>, nothing: impl FnOnce() -> T) -> io::Result<T> {
    match found {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EFAULT)) => {
            Ok(nothing())
        }
        other => other,
    }
}

/// Whether the process that a pidfd stands for has ended.
fn has_ended(pidfd: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut polled, Some(&Timespec::default())) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(|ready| ready > 0),
        }
    }
}

fn failure(pid: i32, call: &'static str, source: io::Error) -> RemoteError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => RemoteError::Gone { pid },
        Some(libc::EACCES | libc::EPERM) => RemoteError::NotPermitted { pid, source },
        _ => Error::System { call, source }.into(),
    }
}
