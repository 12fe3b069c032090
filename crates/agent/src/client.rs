//! What merges this process's memory, and the thread that gives memory back for the program's threads.
//!
//! A thread of the program can't do that itself: while pages are frozen it must not touch them, and
//! its stack, or its thread-local storage, may be among them. Nor has it the agent's files: see
//! [`crate::threads`].

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use numerge_engine::machine::{Kind, Memory, Vpn};
use numerge_linux::{AddressSpace, FrameView, ProcessMemory};
use rustix::event::{EventfdFlags, eventfd};

use crate::agent::enter;
use crate::reserve::Reserve;
use crate::threads;

/// Mappings given back at one time when the program lacks some.
const RELIEF: usize = 4096;
/// How long nothing is merged then.
const RESPITE: Duration = Duration::from_secs(10);

/// How often to look whether merges that were under way are over, and the time in between.
const ROOM_TRIES: u32 = 1000;
const ROOM_PAUSE: Duration = Duration::from_millis(1);

/// Pages that are looked at in one go to count them.
const LOOK_PAGES: u64 = 1 << 16;

/// The merging half of the agent.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) memory: ProcessMemory,
    pub(crate) frames: Arc<FrameView>,
    /// Wakes the service thread; written to by the other one.
    pub(crate) wake: OwnedFd,
    desk: Mutex<Desk>,
    more: Condvar,
    reserve: Mutex<Option<Reserve>>,
    short_until: Mutex<Option<Instant>>,
}

/// What the program's threads leave for the agent's.
#[derive(Debug, Default)]
struct Desk {
    jobs: VecDeque<Arc<Job>>,
    /// The service thread is to be woken.
    rings: bool,
}

/// Something to be given back, or to be looked at.
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
    /// What merging takes of the address space.
    Room,
    /// How many pages there are merged.
    Count(Vec<Range<Vpn>>, Mutex<Merged>),
}

/// Pages that are merged.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Merged {
    /// Mapped to frames.
    pub(crate) to_frames: u64,
    /// Mapped to the machine's page of zeros.
    pub(crate) to_zeros: u64,
}

impl Client {
    /// Takes over what merges; starts the thread.
    ///
    /// # Errors
    /// What is missing, for people.
    pub(crate) fn start(
        memory: ProcessMemory,
        frames: Arc<FrameView>,
    ) -> Result<Arc<Self>, String> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| format!("eventfd: {error}"))?;
        let (desk, more) = (Mutex::default(), Condvar::new());
        let reserve = Mutex::new(Reserve::new().ok());
        let short_until = Mutex::default();
        let client = Arc::new(Self { memory, frames, wake, desk, more, reserve, short_until });
        let hands = Arc::clone(&client);
        threads::start("numerge-hands", move || hands.serve())
            .map_err(|error| format!("start a thread: {error}"))?;
        // The one that reads events, which comes with the memory.
        threads::count_other();
        Ok(client)
    }

    /// Makes the service thread look for work.
    pub(crate) fn wake(&self) {
        locked(&self.desk).rings = true;
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

    /// Has all mappings given up that merging needs, now that nothing is registered or will be. What is
    /// left is ready for [`ProcessMemory::unlock`].
    pub(crate) fn give_up_room(&self, _held: &AddressSpace) -> Arc<Job> {
        self.submit(What::Room)
    }

    /// How many pages of `ranges` are merged. Waits; nothing may be held that a merge wants.
    pub(crate) fn count_merged(&self, ranges: Vec<Range<Vpn>>) -> Merged {
        let job = self.submit(What::Count(ranges, Mutex::default()));
        job.wait();
        match &job.what {
            What::Count(_, merged) => *locked(merged),
            _ => Merged::default(),
        }
    }

    fn submit(&self, what: What) -> Arc<Job> {
        let job = Arc::new(Job { what, result: Mutex::default(), done: Condvar::new() });
        locked(&self.desk).jobs.push_back(Arc::clone(&job));
        self.more.notify_one();
        job
    }

    fn serve(&self) {
        loop {
            let mut desk = locked(&self.desk);
            while desk.jobs.is_empty() && !desk.rings {
                desk = self.more.wait(desk).unwrap_or_else(PoisonError::into_inner);
            }
            let (job, rings) = (desk.jobs.pop_front(), std::mem::take(&mut desk.rings));
            drop(desk);
            if rings {
                // Fails only when it is awake already.
                let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
            }
            let Some(job) = job else { continue };
            let done = match &job.what {
                What::Pages(pages) => {
                    let given_back = self.memory.give_back(pages).is_ok();
                    if let Some(mut here) = enter() {
                        self.memory.let_go_end(&here.held, pages, given_back);
                        if given_back {
                            here.leave_engine(pages);
                        }
                    }
                    given_back
                }
                What::Mappings => self.relieve().unwrap_or(false),
                What::Room => self.give_up_all_room(),
                What::Count(ranges, merged) => {
                    *locked(merged) = self.count(ranges);
                    true
                }
            };
            *locked(&job.result) = Some(done);
            job.done.notify_all();
        }
    }

    fn count(&self, ranges: &[Range<Vpn>]) -> Merged {
        let mut merged = Merged::default();
        let mut kinds = Vec::new();
        for pages in ranges {
            let mut at = pages.start;
            while at < pages.end {
                let end = at.plus(LOOK_PAGES).min(pages.end);
                kinds.clear();
                // What can't be looked at is not counted.
                let _ = self.memory.kinds(std::slice::from_ref(&(at..end)), &mut kinds);
                let of = |kind| kinds.iter().filter(|found| **found == Some(kind)).count() as u64;
                merged.to_frames += of(Kind::Frame);
                merged.to_zeros += of(Kind::Zero);
                at = end;
            }
        }
        merged
    }

    fn give_up_all_room(&self) -> bool {
        for _ in 0..ROOM_TRIES {
            if let Some(here) = enter() {
                self.memory.give_up_empties(&here.held);
                if self.frames.clear_unused() {
                    return true;
                }
            }
            // A merge that was under way has nothing to merge any more, and is over soon.
            std::thread::sleep(ROOM_PAUSE);
        }
        false
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
