//! What merges this process's memory, and the thread that gives memory back for the program's threads.
//!
//! A thread of the program can't do that itself: while pages are frozen it must not touch them, and
//! its stack, or its thread-local storage, may be among them.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use numerge_engine::machine::{Memory, Vpn};
use numerge_linux::{AddressSpace, FrameView, ProcessMemory};
use rustix::event::{EventfdFlags, eventfd};

use crate::threads;

/// Ranges given back at one time when the program lacks mappings.
const RELIEF: usize = 2048;

/// The merging half of the agent.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) memory: ProcessMemory,
    pub(crate) frames: Arc<FrameView>,
    /// Wakes the service thread.
    pub(crate) wake: OwnedFd,
    jobs: Mutex<VecDeque<Arc<Job>>>,
    more: Condvar,
}

/// Something to be given back.
#[derive(Debug)]
pub(crate) struct Job {
    what: What,
    result: Mutex<Option<bool>>,
    done: Condvar,
}

#[derive(Debug)]
enum What {
    /// These pages.
    Pages(Range<Vpn>),
    /// Whatever uses up mappings.
    Mappings,
}

impl Client {
    /// Prepares to merge; starts the thread.
    ///
    /// # Errors
    /// What is missing, for people.
    pub(crate) fn start() -> Result<Arc<Self>, String> {
        let frames = Arc::new(FrameView::default());
        let memory = ProcessMemory::new(frames.clone()).map_err(|error| error.to_string())?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| format!("eventfd: {error}"))?;
        let (jobs, more) = (Mutex::default(), Condvar::new());
        let client = Arc::new(Self { memory, frames, wake, jobs, more });
        let hands = Arc::clone(&client);
        threads::start("numerge-hands", move || hands.serve())
            .map_err(|error| format!("start a thread: {error}"))?;
        Ok(client)
    }

    /// Makes the service thread look for work.
    pub(crate) fn wake(&self) {
        // Fails only when it is awake already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Has pages given back. Nothing in them is merged meanwhile.
    pub(crate) fn give_back(&self, held: &AddressSpace, pages: Range<Vpn>) -> Arc<Job> {
        self.memory.let_go_begin(held, &pages);
        self.submit(What::Pages(pages))
    }

    /// Has mappings given back.
    pub(crate) fn give_back_mappings(&self, _held: &AddressSpace) -> Arc<Job> {
        self.submit(What::Mappings)
    }

    fn submit(&self, what: What) -> Arc<Job> {
        let job = Arc::new(Job { what, result: Mutex::default(), done: Condvar::new() });
        locked(&self.jobs).push_back(Arc::clone(&job));
        self.more.notify_one();
        job
    }

    fn serve(&self) {
        loop {
            let mut jobs = locked(&self.jobs);
            let job = loop {
                match jobs.pop_front() {
                    Some(job) => break job,
                    None => jobs = self.more.wait(jobs).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(jobs);
            let done = match &job.what {
                What::Pages(pages) => self.memory.give_back(pages).is_ok(),
                What::Mappings => self.relieve().unwrap_or(false),
            };
            *locked(&job.result) = Some(done);
            job.done.notify_all();
        }
    }

    /// Gives small ranges back, if mappings are what is lacking.
    fn relieve(&self) -> io::Result<bool> {
        let mappings = self.memory.mappings().map_err(io::Error::other)?;
        if mappings.used + u64::try_from(RELIEF).unwrap_or(0) < mappings.limit {
            return Ok(false);
        }
        let small = self.memory.smallest_in_files(&AddressSpace::hold(), RELIEF);
        for pages in &small {
            // What can't be given back stays.
            let _ = self.memory.give_back(pages);
        }
        let after = self.memory.mappings().map_err(io::Error::other)?;
        Ok(after.used < mappings.used)
    }
}

impl Job {
    /// Whether it was done. Waits; nothing may be held that a merge wants.
    pub(crate) fn wait(&self) -> bool {
        let mut result = locked(&self.result);
        loop {
            match *result {
                Some(done) => return done,
                None => result = self.done.wait(result).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one of these panics half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
