//! The one agent of a process: when it begins, what a fork makes of it, and the lock it stands under.

use std::ffi::OsString;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use numerge_engine::machine::Vpn;
use numerge_linux::{AddressSpace, fork_depth};
use numerge_protocol::Scope;

use crate::client::Client;
use crate::config::Config;
use crate::known::{self, EVERYTHING, hull};
use crate::proc_files;
use crate::service;
use crate::space::Space;
use crate::sys;
use crate::threads;
use crate::unasked::{self, Unasked};

static AGENT: OnceLock<Agent> = OnceLock::new();
/// Locked only by who holds [`AddressSpace`], so a fork finds it free.
static SPACE: Mutex<Option<Space>> = Mutex::new(None);
/// [`fork_depth`] of the process that SPACE is of; changed only by who has it.
static DEPTH: AtomicU64 = AtomicU64::new(0);
/// That process.
static PID: AtomicU32 = AtomicU32::new(0);
/// What does not change while the process lives.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) config: Config,
    /// Whether people are told on standard error why nothing is merged.
    pub(crate) complains: bool,
    /// See [`threads::can_start_anywhere`].
    can_start_anywhere: bool,
}

impl Agent {
    /// What is wanted unasked when the program has not said so itself.
    pub(crate) fn unasked(&self) -> Unasked {
        if self.config.scope == Scope::Mapped { Unasked::Large } else { Unasked::None }
    }
}

/// Reads the environment, and if it names an engine's socket, begins. Before the program runs; does nothing
/// the second time.
///
/// # Errors
/// A line for people, if a variable is not as it should be; the agent does nothing then.
pub fn begin(variable: impl Fn(&'static str) -> Option<OsString>) -> Result<(), String> {
    let Some(config) = Config::from(&variable)? else {
        return Ok(());
    };
    let wants_all = unasked::inherited(&variable)?;
    let Some(agent) = begin_with(config, true)? else {
        return Ok(());
    };
    if wants_all {
        unasked::set(Unasked::All);
    }
    proc_files::ask();
    if (wants_all || agent.config.scope == Scope::Mapped)
        && !agent.can_start_anywhere
        && let Some(here) = enter()
    {
        here.start(true);
    }
    Ok(())
}

/// Begins with these settings. None if there is an agent already.
///
/// # Errors
/// As [`watch_forks`].
pub(crate) fn begin_with(
    config: Config,
    complains: bool,
) -> Result<Option<&'static Agent>, String> {
    watch_forks()?;
    let can_start_anywhere = threads::can_start_anywhere();
    let mut is_first = false;
    let agent = AGENT.get_or_init(|| {
        is_first = true;
        PID.store(std::process::id(), Ordering::Relaxed); // read by who has found the agent
        Agent { config, complains, can_start_anywhere }
    });
    if is_first {
        unasked::set(agent.unasked());
    }
    Ok(is_first.then_some(agent))
}

/// Has forks seen from now on. The earlier, the better: see the preload library. Does nothing the second
/// time.
///
/// # Errors
/// A line for people, if there is no memory for the handlers.
pub fn watch_forks() -> Result<(), String> {
    static WATCHING: OnceLock<Result<(), String>> = OnceLock::new();
    let watch = || {
        // SAFETY: the handler lives as long as the program, and changes some words.
        let watching = unsafe { libc::pthread_atfork(None, None, Some(after_in_child)) };
        if watching != 0 {
            return Err("no memory for the handlers of forks".into());
        }
        numerge_linux::watch_forks().map_err(|error| error.to_string())
    };
    WATCHING.get_or_init(watch).clone()
}

/// The agent, if it has anything to do.
pub(crate) fn get() -> Option<&'static Agent> {
    AGENT.get()
}

/// Makes a process by `make`, which gives 0 in the child, as fork(3) does, for a system call that runs no
/// handlers.
pub fn forking(make: impl FnOnce() -> isize) -> isize {
    if AGENT.get().is_none() || is_foreign() {
        return make();
    }
    let made = numerge_linux::forking(make);
    if made == 0 {
        after_in_child();
    }
    made
}

/// The same where the child does not come back from `make`, but begins elsewhere: there it first calls what
/// `make` is given.
pub fn forking_elsewhere(make: impl FnOnce(fn()) -> isize) -> isize {
    fn begin() {
        numerge_linux::begin_elsewhere();
        after_in_child();
    }
    if AGENT.get().is_none() || is_foreign() {
        return make(|| ());
    }
    numerge_linux::forking_elsewhere(|| make(begin))
}

extern "C" fn after_in_child() {
    known::after_in_child();
    threads::after_in_child();
    proc_files::ask_in_child();
}

/// What a thread has that may change mappings and what is known of them.
pub(crate) struct Here {
    pub(crate) agent: &'static Agent,
    space: MutexGuard<'static, Option<Space>>,
    /// Whether the service thread has to look whether there is something to do afterwards.
    wakes: bool,
    // After the space: fields are dropped in order.
    pub(crate) held: AddressSpace,
}

/// Waits for the right to change mappings. None if there is no agent, or if this is a process that the
/// agent does not know of.
pub(crate) fn enter() -> Option<Here> {
    let agent = AGENT.get()?;
    if is_foreign() {
        return None;
    }
    let held = AddressSpace::hold();
    let mut space = SPACE.lock().unwrap_or_else(PoisonError::into_inner);
    // Relaxed: these two change only under the lock.
    if DEPTH.load(Ordering::Relaxed) != fork_depth() {
        DEPTH.store(fork_depth(), Ordering::Relaxed); // as above
        PID.store(std::process::id(), Ordering::Relaxed); // as above
        let parents = space.take().unwrap_or_default();
        *space = Some(parents.into_child(&held));
    }
    Some(Here { agent, space, wakes: true, held })
}

/// The same for the service thread, which looks for itself.
pub(crate) fn enter_to_serve() -> Option<Here> {
    let mut here = enter()?;
    here.wakes = false;
    Some(here)
}

/// Whether this process was made by a raw clone(2), with memory of its own and no handlers run: what is
/// known here is then its parent's.
fn is_foreign() -> bool {
    // Relaxed: changes only in a child that is alone.
    let known = PID.load(Ordering::Relaxed);
    let this = std::process::id();
    if this == known || DEPTH.load(Ordering::Relaxed) != fork_depth() {
        return false;
    }
    // The child of a vfork is another process, in the same memory.
    const KCMP_VM: libc::c_long = 1;
    // SAFETY: compares two processes, and touches no memory.
    unsafe { libc::syscall(libc::SYS_kcmp, this, known, KCMP_VM, 0, 0) != 0 }
}

impl std::ops::Deref for Here {
    type Target = Space;
    fn deref(&self) -> &Space {
        static EMPTY: OnceLock<Space> = OnceLock::new();
        self.space.as_ref().unwrap_or_else(|| EMPTY.get_or_init(Space::default))
    }
}

impl std::ops::DerefMut for Here {
    fn deref_mut(&mut self) -> &mut Space {
        self.space.get_or_insert_default()
    }
}

impl Here {
    /// What merges, if it has been started.
    pub(crate) fn client(&self) -> Option<Arc<Client>> {
        self.space.as_ref()?.client.clone()
    }

    /// Sees to it that there is somebody to look at what was noted. `safe` if this can't be in the
    /// midst of the program's malloc.
    pub(crate) fn start(mut self, safe: bool) {
        if self.started || !(safe || self.agent.can_start_anywhere) {
            return;
        }
        self.started = true;
        drop(self);
        if threads::start("numerge-agent", service::run).is_err()
            && let Some(mut here) = enter()
        {
            here.started = false; // another time
        }
    }

    /// The first pages in `pages` that are in file mappings.
    pub(crate) fn next_file(&self, pages: &Range<Vpn>) -> Option<Range<Vpn>> {
        let merged = self.client().and_then(|client| client.memory.in_file_in(&self.held, pages));
        let loose = self.loose.next_in(pages);
        [merged, loose].into_iter().flatten().min_by_key(|found| found.start)
    }

    /// `pages` are unmapped or mapped over.
    pub(crate) fn gone(&mut self, pages: &Range<Vpn>) {
        self.leave_engine(pages);
        self.unwant(pages);
        self.forget_mapping(pages);
        known::forget(pages);
    }

    /// A call failed that would have unmapped `pages` first, and may have done so.
    pub(crate) fn gone_if_unmapped(&mut self, pages: Option<&Range<Vpn>>) {
        if let Some(pages) = pages
            && !sys::are_mapped(pages)
        {
            self.gone(pages);
        }
    }

    /// `pages` were moved, and lie `to` now.
    pub(crate) fn moved(&mut self, pages: &Range<Vpn>, to: Vpn) {
        let client = self.client();
        let space = self.space.get_or_insert_default();
        let memory = client.as_ref().map(|client| &client.memory);
        space.loose.moved(&self.held, memory, pages, to);
    }

    /// The same of what is wanted still.
    fn forget_mapping(&mut self, pages: &Range<Vpn>) {
        if let Some(client) = self.client() {
            client.memory.forget(&self.held, pages);
        }
        let space = self.space.get_or_insert_default();
        space.loose.forget(&self.held, pages);
    }

    /// Gives `pages` back to the program, as they would be without us, and has nothing to do with them
    /// until they are noted again.
    ///
    /// # Errors
    /// ENOMEM; they are as they were.
    pub(crate) fn let_go(mut self, pages: &Range<Vpn>) -> Result<Self, i32> {
        self.unnote(pages);
        let Some(client) = self.client() else {
            return Ok(self);
        };
        while client.memory.registered_in(&self.held, pages).is_some() {
            let job = client.give_back(&self.held, pages.clone());
            drop(self);
            let given_back = job.wait();
            self = enter().ok_or(libc::ENOMEM)?;
            // Freed while the lock is held, like all of the agent's memory that the program's threads free.
            drop(job);
            if !given_back {
                self.note(pages);
                return Err(libc::ENOMEM);
            }
            // Meanwhile another thread may have noted them, and they may be registered anew.
            self.unnote(pages);
        }
        Ok(self)
    }

    /// Makes a call that locks all memory, or unlocks it. Whether what the program maps afterwards
    /// `will_be_locked`.
    pub(crate) fn locking(
        mut self,
        will_be_locked: bool,
        call: impl FnOnce() -> sys::Answer,
    ) -> sys::Answer {
        self.locking += 1;
        let mut here = match self.let_go(&EVERYTHING) {
            Ok(here) => here,
            Err(error) => {
                if let Some(mut here) = enter() {
                    here.locking -= 1;
                    // It may have sent files that were not taken.
                    here.reconnect();
                }
                return Err(error);
            }
        };
        if let Some(client) = here.client() {
            let job = client.give_up_room(&here.held);
            drop(here);
            job.wait();
            here = enter().ok_or(libc::ENOMEM)?;
            drop(job); // as in let_go()
        }
        let answer = call();
        here.locking -= 1;
        if answer.is_ok() {
            here.maps_locked = will_be_locked;
        }
        if let Some(client) = here.client().filter(|_| !here.maps_locked) {
            client.memory.unlock(&here.held);
            // The engine is to send its files again.
            here.reconnect();
        }
        here.note(&EVERYTHING);
        answer
    }

    /// Puts fresh memory where pages that the process inherited are in file mappings.
    pub(crate) fn discard_loose(&mut self, pages: &Range<Vpn>) -> std::io::Result<()> {
        let space = self.space.get_or_insert_default();
        space.loose.discard(&self.held, pages)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        if self.wakes
            && self.has_work()
            && let Some(client) = self.client()
        {
            client.wake();
        }
    }
}

/// Whether the program was short of mappings, and has some more now.
pub(crate) fn relieve() -> bool {
    let Some(here) = enter() else {
        return false;
    };
    let Some(client) = here.client() else {
        return false;
    };
    if here.next_file(&hull()).is_none() {
        return false;
    }
    let job = client.give_back_mappings(&here.held);
    drop(here);
    let relieved = job.wait();
    let here = enter();
    drop(job);
    drop(here);
    relieved
}

/// Keeps a call's errno from what the agent does on the way.
pub(crate) fn keeping_errno(call: impl FnOnce() -> sys::Answer) -> sys::Answer {
    let errno = sys::errno();
    let answer = call();
    sys::set_errno(answer.err().unwrap_or(errno));
    answer
}
