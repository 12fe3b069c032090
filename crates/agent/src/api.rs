//! The agent for a program that links it: a monitor of virtual machines that offers its guests' memory.
//!
//! What the preload library learns from the program's calls, such a program says itself: which memory is
//! to be merged, and what it is about to do with it.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use numerge_engine::machine::{PAGE_SIZE, Vpn};
use numerge_protocol::Scope;

use crate::agent::{begin_with, enter};
use crate::calls;
use crate::config::{Config, check_domain, check_socket};
use crate::known;
use crate::sys::{self, Answer};

/// Why memory is not merged, or not given back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine can't merge, or not this memory.
    #[error(transparent)]
    Machine(#[from] numerge_linux::Error),
    /// The socket or the domain is not as it should be.
    #[error("{0}")]
    Setting(String),
    /// A process has one agent.
    #[error("this process has an agent already, which goes to {}", socket.display())]
    Begun {
        /// Where its engine listens.
        socket: PathBuf,
    },
    /// The preload library does the same.
    #[error(
        "this process runs with the agent's preload library (`numerge run`), which merges what is \
         marked by madvise(MADV_MERGEABLE); start it without, or mark memory"
    )]
    Preloaded,
    /// The agent's threads could not be started.
    #[error("the agent's thread could not be started: the system has no room for one more")]
    Thread,
    /// The process was made by a clone(2) that the agent has not seen.
    #[error("this process was made by a raw clone(2), which the agent does not follow")]
    Foreign,
    /// Not a range of pages.
    #[error("{bytes} bytes at {start:#x}: must be whole pages of {PAGE_SIZE} bytes, one or more")]
    Range {
        /// The first address.
        start: usize,
        /// The length.
        bytes: usize,
    },
    /// Memory is registered once.
    #[error("memory at {start:#x} is registered already: unregister that first")]
    Registered {
        /// The first address of what was to be registered.
        start: usize,
    },
    /// There is no memory to remember it, or to give merged memory back, which then is as it was.
    #[error("no memory, or no mappings left")]
    OutOfMemory,
}

/// The agent of this process. A handle, as good as any other: the agent itself lives as long as the
/// process, and goes on looking for its engine when that goes away.
///
/// A fork(3) is seen, and its child has the memory merged that it registers itself. Processes made by raw
/// system calls are to be made by [`forking`](crate::forking).
///
/// Where the program's first thread ends by pthread_exit(3) and others live on,
/// [`keep_until_last`](crate::keep_until_last) is called first.
///
/// The agent's threads use the program's allocator: none of its memory must be registered that it uses
/// itself, and an allocator that has handlers of forks must have them before [`Agent::connect`].
#[derive(Clone, Copy, Debug)]
pub struct Agent(());

/// Registered memory. One whose memory was unmapped or moved is dropped before other memory is registered
/// at its place, for it would unregister that.
///
/// Dropping it is [`Region::unregister`], with nobody to hear of an error.
#[derive(Debug)]
#[must_use = "memory is unregistered when this is dropped"]
pub struct Region {
    pages: Range<Vpn>,
}

/// What the agent has to say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// There is an engine.
    pub connected: bool,
    /// Pages that the program has registered.
    pub pages_offered: u64,
    /// Of these, pages that the engine has been told of: a moment later, and as many as it takes.
    pub pages_registered: u64,
    /// Of these, pages that are merged: mapped to frames.
    pub pages_merged: u64,
    /// Of these, pages that are mapped to the machine's page of zeros, by the engine or since they were
    /// only read yet.
    pub pages_of_zeros: u64,
    /// Why nothing is merged, if nothing ever will be.
    pub problem: Option<String>,
}

impl Agent {
    /// Gives this process an agent that goes to the engine at `socket` (`numerge daemon`) and asks to be
    /// in `domain`, if one is named. Does not wait for the engine: if there is none yet, or none any more,
    /// is looked for again and again. Where this user may not have a userfaultfd, the engine is asked to lend
    /// the device; if it does not, [`Status::problem`] says so.
    ///
    /// # Errors
    /// If the machine can't merge, a setting is wrong, or there is an agent already.
    pub fn connect(socket: &Path, domain: Option<&str>) -> Result<Self, Error> {
        check_socket("socket", socket.as_os_str()).map_err(Error::Setting)?;
        let domain = domain.map(|domain| check_domain("domain", OsStr::new(domain))).transpose();
        let domain = domain.map_err(Error::Setting)?;
        match numerge_linux::check_kernel() {
            // The engine may lend what is missing.
            Ok(()) | Err(numerge_linux::Error::NotPermitted { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // SAFETY: asks for a name; what it stands for is not touched.
        if !unsafe { libc::dlsym(libc::RTLD_DEFAULT, crate::PRELOADED.as_ptr()) }.is_null() {
            return Err(Error::Preloaded);
        }
        let config =
            Config { socket: socket.to_owned(), scope: Scope::Advised, domain, proc_files: None };
        if begin_with(config, false).map_err(Error::Setting)?.is_none() {
            let socket = crate::agent::get().map(|agent| agent.config.socket.clone());
            return Err(Error::Begun { socket: socket.unwrap_or_default() });
        }
        let agent = Self(());
        agent.start()?;
        Ok(agent)
    }

    fn start(self) -> Result<(), Error> {
        enter().ok_or(Error::Foreign)?.start(true);
        let started = enter().is_some_and(|here| here.started);
        if started { Ok(()) } else { Err(Error::Thread) }
    }

    /// Has memory merged from now on, as far as it is like other memory of the engine's domain.
    ///
    /// # Safety
    /// The memory is private anonymous memory that the program has mapped, and nothing is in it that the
    /// agent's threads use: no stack of theirs, nothing of the allocator's. Until it is unregistered, and
    /// also after that where [`unregister`](Region::unregister) says so, what changes its mapping or drops
    /// its content is done by the functions of this type; what there is no function for is done between
    /// unregistering it and registering it again. (Reading and writing, by threads, system calls and
    /// devices, is as ever.)
    ///
    /// # Errors
    /// If it is not whole pages, is registered, or has a property that merging it would take away; the
    /// error names that. Parts of it that have some are left alone as long as there are other parts.
    pub unsafe fn register(self, start: *mut u8, bytes: usize) -> Result<Region, Error> {
        let start = start.expose_provenance();
        let pages = whole_pages(start, bytes)?;
        let found = numerge_linux::Part::find(std::slice::from_ref(&pages))?;
        let mut here = enter().ok_or(Error::Foreign)?;
        if here.wants_any(&pages) {
            return Err(Error::Registered { start });
        }
        if found.is_empty() {
            numerge_linux::check_mergeable(&pages)?;
        }
        known::own(&pages);
        here.want(&pages);
        if !here.wants_any(&pages) {
            return Err(Error::OutOfMemory);
        }
        drop(here);
        let region = Region { pages };
        self.start()?; // in a fork's child
        Ok(region)
    }

    /// Unregisters memory, whatever regions it is of: see [`Region::unregister`].
    ///
    /// # Errors
    /// As that.
    pub fn unregister(self, start: *mut u8, bytes: usize) -> Result<u64, Error> {
        unregister(&whole_pages(start.addr(), bytes)?)
    }

    /// How things are. Looks at all registered memory: 4 GiB take milliseconds.
    #[must_use]
    pub fn status(self) -> Status {
        let Some(here) = enter() else {
            return Status { problem: Some(Error::Foreign.to_string()), ..Status::default() };
        };
        let mut status = Status {
            connected: here.connected,
            pages_offered: here.pages_wanted(),
            pages_registered: here.registered().1,
            problem: here.problem.clone(),
            ..Status::default()
        };
        let (client, ranges) = (here.client(), here.registered_ranges());
        drop(here);
        if let Some(client) = client {
            let merged = client.count_merged(ranges);
            (status.pages_merged, status.pages_of_zeros) = (merged.to_frames, merged.to_zeros);
        }
        status
    }

    /// mmap(2), which may be over registered memory.
    ///
    /// # Safety
    /// That of the system call.
    ///
    /// # Errors
    /// Those of the system call.
    pub unsafe fn mmap(
        self,
        at: *mut u8,
        bytes: usize,
        protection: i32,
        flags: i32,
        fd: i32,
        offset: i64,
    ) -> io::Result<*mut u8> {
        let offset = usize::from_ne_bytes(offset.to_ne_bytes());
        // SAFETY: the caller's promise.
        let answer =
            unsafe { calls::mmap(at.expose_provenance(), bytes, protection, flags, fd, offset) };
        told(answer).map(std::ptr::with_exposed_provenance_mut)
    }

    /// munmap(2). What is unmapped is unregistered.
    ///
    /// # Safety
    /// That of the system call.
    ///
    /// # Errors
    /// Those of the system call.
    pub unsafe fn munmap(self, start: *mut u8, bytes: usize) -> io::Result<()> {
        // SAFETY: the caller's promise.
        told(unsafe { calls::munmap(start.expose_provenance(), bytes) }).map(drop)
    }

    /// mremap(2). What is moved is registered where it is then; its [`Region`] does not follow:
    /// [`Agent::unregister`] does it there.
    ///
    /// # Safety
    /// That of the system call.
    ///
    /// # Errors
    /// Those of the system call.
    pub unsafe fn mremap(
        self,
        old: *mut u8,
        old_bytes: usize,
        new_bytes: usize,
        flags: i32,
        new: *mut u8,
    ) -> io::Result<*mut u8> {
        let (old, new) = (old.expose_provenance(), new.expose_provenance());
        // SAFETY: the caller's promise.
        let answer = unsafe { calls::mremap(old, old_bytes, new_bytes, flags, new) };
        told(answer).map(std::ptr::with_exposed_provenance_mut)
    }

    /// mprotect(2).
    ///
    /// # Safety
    /// That of the system call.
    ///
    /// # Errors
    /// Those of the system call.
    pub unsafe fn mprotect(self, start: *mut u8, bytes: usize, protection: i32) -> io::Result<()> {
        let start = start.expose_provenance();
        // SAFETY: the caller's promise.
        told(unsafe { calls::mprotect(start, bytes, protection, None) }).map(drop)
    }

    /// madvise(2): `MADV_DONTNEED` for a guest's balloon, and all other advice.
    ///
    /// # Safety
    /// That of the system call.
    ///
    /// # Errors
    /// Those of the system call.
    pub unsafe fn madvise(self, start: *mut u8, bytes: usize, advice: i32) -> io::Result<()> {
        // SAFETY: the caller's promise.
        told(unsafe { calls::madvise(start.expose_provenance(), bytes, advice) }).map(drop)
    }
}

impl Region {
    /// Where it is.
    #[must_use]
    pub fn start(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(bytes_of(&self.pages).start)
    }

    /// How long it is, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        bytes_of(&self.pages).len()
    }

    /// Ends merging, and gives the program memory of its own with the same content.
    ///
    /// Gives how many pages could not leave the mapping of the frames' file for want of a way to know that
    /// no device writes to them. They are the program's own copies; but `MADV_DONTNEED` and the like on
    /// these still go by the agent.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]: what could not be copied is merged still.
    pub fn unregister(self) -> Result<u64, Error> {
        let pages = self.pages.clone();
        std::mem::forget(self);
        unregister(&pages)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // What can't be given back stays as it is, and known as such.
        let _ = unregister(&self.pages);
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connected, pages_offered, pages_registered, pages_merged, .. } = self;
        let engine = if *connected { "an engine" } else { "no engine" };
        write!(
            f,
            "{engine}; of {pages_offered} pages {pages_registered} registered, {pages_merged} merged"
        )?;
        self.problem.iter().try_for_each(|why| write!(f, ": {why}"))
    }
}

fn unregister(pages: &Range<Vpn>) -> Result<u64, Error> {
    let here = enter().ok_or(Error::Foreign)?;
    let here = calls::give_back(here, pages).map_err(|_| Error::OutOfMemory)?;
    known::disown(pages);
    let (mut left, mut at) = (0, pages.start);
    while let Some(found) = here.next_file(&(at..pages.end)) {
        left += found.end.0 - found.start.0;
        at = found.end;
    }
    if left == 0 {
        known::forget(pages);
    }
    Ok(left)
}

fn whole_pages(start: usize, bytes: usize) -> Result<Range<Vpn>, Error> {
    let pages = sys::pages(start, bytes).filter(|_| bytes > 0 && bytes.is_multiple_of(PAGE_SIZE));
    pages.ok_or(Error::Range { start, bytes })
}

fn bytes_of(pages: &Range<Vpn>) -> Range<usize> {
    let address = |page: Vpn| usize::try_from(page.0).unwrap_or(usize::MAX) * PAGE_SIZE;
    address(pages.start)..address(pages.end)
}

fn told(answer: Answer) -> io::Result<usize> {
    answer.map_err(io::Error::from_raw_os_error)
}
