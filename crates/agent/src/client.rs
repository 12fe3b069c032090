//! What merges this process's memory, and the thread that gives memory back for the program's threads.
//!
//! A thread of the program can't do that itself: while pages are frozen it must not touch them, and
//! its stack, or its thread-local storage, may be among them. And it has another table of open files
//! ([`crate::files`]).

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use numerge_engine::machine::{Kind, Memory, Vpn};
use numerge_linux::{AddressSpace, FrameView, ProcessMemory};
use rustix::event::{EventfdFlags, eventfd};

use crate::files;
use crate::reserve::Reserve;
use crate::threads;

/// Mappings given back at one time when the program lacks some.
const RELIEF: usize = 4096;
/// Pages that are looked at in one go.
const LOOK_PAGES: u64 = 1 << 16;
/// How long nothing is merged then.
const RESPITE: Duration = Duration::from_secs(10);

/// The merging half of the agent.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) memory: ProcessMemory,
    pub(crate) frames: Arc<FrameView>,
    /// Wakes the service thread.
    pub(crate) wake: OwnedFd,
    jobs: Mutex<Jobs>,
    more: Condvar,
    reserve: Mutex<Option<Reserve>>,
    short_until: Mutex<Option<Instant>>,
}

/// What the program's threads want done.
#[derive(Debug, Default)]
struct Jobs {
    queue: VecDeque<Arc<Job>>,
    /// The service thread is to be woken.
    wake: bool,
}

/// Something to be given back, or counted.
#[derive(Debug)]
pub(crate) struct Job {
    what: What,
    result: Mutex<Option<bool>>,
    counted: Mutex<Counted>,
    done: Condvar,
}

/// Pages by what they are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    /// Mapped to frames.
    pub(crate) merged: u64,
    /// Mapped to the machine's page of zeros.
    pub(crate) zeros: u64,
}

#[derive(Debug)]
enum What {
    /// These pages.
    Pages(Range<Vpn>),
    /// Whatever uses up mappings.
    Mappings,
    /// What these pages are.
    Count(Vec<Range<Vpn>>),
    /// The program's first thread is about to end.
    FirstThreadEnds,
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
        let reserve = Mutex::new(Reserve::new().ok());
        let short_until = Mutex::default();
        let client = Arc::new(Self { memory, frames, wake, jobs, more, reserve, short_until });
        let hands = Arc::clone(&client);
        threads::start("numerge-hands", move || hands.serve())
            .map_err(|error| format!("start a thread: {error}"))?;
        Ok(client)
    }

    /// Makes the service thread look for work. By another thread, which has the means.
    pub(crate) fn wake(&self) {
        locked(&self.jobs).wake = true;
        self.more.notify_one();
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

    /// Counts pages, which takes a descriptor that the program's threads don't have.
    pub(crate) fn count(&self, ranges: Vec<Range<Vpn>>) -> Counted {
        let job = self.submit(What::Count(ranges));
        job.wait();
        *locked(&job.counted)
    }

    /// Has what is needed of the program's first thread kept.
    pub(crate) fn first_thread_ends(&self) {
        self.submit(What::FirstThreadEnds).wait();
    }

    fn submit(&self, what: What) -> Arc<Job> {
        let (result, counted, done) = (Mutex::default(), Mutex::default(), Condvar::new());
        let job = Arc::new(Job { what, result, counted, done });
        locked(&self.jobs).queue.push_back(Arc::clone(&job));
        self.more.notify_one();
        job
    }

    fn serve(&self) {
        loop {
            let mut jobs = locked(&self.jobs);
            while jobs.queue.is_empty() && !jobs.wake {
                jobs = self.more.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            }
            let (job, wake) = (jobs.queue.pop_front(), std::mem::take(&mut jobs.wake));
            drop(jobs);
            if wake {
                // Fails only when it is awake already.
                let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
            }
            if let Some(job) = job {
                let done = self.carry_out(&job);
                *locked(&job.result) = Some(done);
                job.done.notify_all();
            }
        }
    }

    fn carry_out(&self, job: &Job) -> bool {
        match &job.what {
            What::Pages(pages) => {
                let given_back = self.memory.give_back(pages).is_ok();
                if given_back {
                    self.memory.untrack(pages);
                }
                given_back
            }
            What::Mappings => self.relieve().unwrap_or(false),
            What::FirstThreadEnds => {
                files::keep_standard_files();
                true
            }
            What::Count(ranges) => {
                let counted = &mut *locked(&job.counted);
                ranges.iter().for_each(|pages| self.add_kinds(pages, counted));
                true
            }
        }
    }

    /// Counts what can be looked at.
    fn add_kinds(&self, pages: &Range<Vpn>, counted: &mut Counted) {
        let (mut at, mut kinds) = (pages.start, Vec::new());
        while at < pages.end {
            let end = at.plus(LOOK_PAGES).min(pages.end);
            kinds.clear();
            let _ = self.memory.kinds(at..end, &mut kinds);
            let of = |kind| kinds.iter().filter(|found| **found == Some(kind)).count() as u64;
            counted.merged += of(Kind::Frame);
            counted.zeros += of(Kind::Zero);
            at = end;
        }
    }

    /// Gives small ranges back, if mappings are what is lacking.
    fn relieve(&self) -> io::Result<bool> {
        let mappings = self.memory.mappings().map_err(io::Error::other)?;
        if mappings.used + u64::try_from(RELIEF).unwrap_or(0) < mappings.limit {
            return Ok(false);
        }
        // At the limit even giving back is impossible: that takes some itself, for a moment.
        let reserve = locked(&self.reserve).take();
        drop(reserve);
        *locked(&self.short_until) = Some(Instant::now() + RESPITE);
        let given_back = self.memory.give_back_mappings(RELIEF)?;
        *locked(&self.reserve) = Reserve::new().ok();
        Ok(given_back > 0)
    }

    /// Whether the program lacked mappings a short while ago, so that none must be taken by merging.
    pub(crate) fn is_short(&self) -> bool {
        locked(&self.short_until).is_some_and(|until| Instant::now() < until)
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
