//! Forks: held off while memory is in pieces.
//!
//! A child that is made while a run of pages is staged would find a hole where its parent has
//! memory, for userfaultfd registrations are not inherited. So `fork` waits (pthread_atfork) until
//! nothing is staged, and merging waits until the fork is done.
//!
//! A child also maps the frames its parent maps, which the engine does not know: see
//! [`crate::witness`].
//!
//! A process made by a raw clone(2) or clone3(2) without CLONE_VM runs no pthread_atfork handlers, so it
//! may begin with a hole where a run was staged, and reads zeros there, unless who sees the call makes it
//! by [`forking`]. `vfork` and `posix_spawn` share the address space until they exec and need no care.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::error::Error;

/// Held by who takes memory apart, and by a thread that forks. One a process, since there is one
/// address space.
static ADDRESS_SPACE: Mutex<()> = Mutex::new(());
/// The forking thread's right on its way from one handler to the next.
static FORKING: Handover = Handover(UnsafeCell::new(None));
/// Threads of the program that wait to fork, or to change mappings themselves.
static WAITING: AtomicU32 = AtomicU32::new(0);
/// How many forks lie between the first process and this one.
static DEPTH: AtomicU64 = AtomicU64::new(0);
/// What installing the handlers gave: 0, or an error number.
static INSTALLED: OnceLock<i32> = OnceLock::new();

/// Turns a thread that merges gives to threads that wait before it takes the lock again.
const TURNS: u32 = 10_000;

struct Handover(UnsafeCell<Option<Held>>);

// SAFETY: the content is touched only by the thread that holds ADDRESS_SPACE and is forking: put in
// after the lock is taken, taken out before it is given up, by the same thread or its image in the
// child, which is alone there.
unsafe impl Sync for Handover {}

/// The right to take this process's memory apart, with signals held back: a handler that ran on
/// this thread and touched a staged page would wait for itself.
#[derive(Debug)]
pub(crate) struct Held {
    // First the lock is given up, for a handler that runs at once when signals come back may fork.
    _guard: MutexGuard<'static, ()>,
    _quiet: Quiet,
}

/// Signals held back from this thread, until this is dropped on the same thread.
#[derive(Debug)]
pub struct Quiet(libc::sigset_t);

impl Quiet {
    /// Holds back all of them.
    #[must_use]
    pub fn begin() -> Self {
        Self(block_signals())
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: restores the mask that block_signals() read for this thread.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut());
        }
    }
}

/// Waits for forks and other merges to end, and keeps them off until the result is dropped.
pub(crate) fn hold() -> Held {
    // A mutex is not fair: without this, a thread merging run after run could keep the program out.
    // Relaxed: a hint only; the lock orders everything else.
    for _ in 0..TURNS {
        if WAITING.load(Ordering::Relaxed) == 0 {
            break;
        }
        std::thread::yield_now();
    }
    let quiet = Quiet::begin();
    Held { _guard: lock(), _quiet: quiet }
}

/// The right of a thread of the program's to change mappings: nobody merges or forks meanwhile, and
/// no signal handler runs on this thread. Never held over an access to registered memory whose pages
/// may be out of view, for they come back only under the same right.
#[derive(Debug)]
pub struct AddressSpace(Held);

impl AddressSpace {
    /// Waits for merges and forks to end, before all threads that merge.
    #[must_use]
    pub fn hold() -> Self {
        let quiet = Quiet::begin();
        WAITING.fetch_add(1, Ordering::Relaxed); // a hint, see hold()
        let guard = lock();
        WAITING.fetch_sub(1, Ordering::Relaxed); // a hint, see hold()
        Self(Held { _guard: guard, _quiet: quiet })
    }
}

/// Keeps all signals from this thread and gives the mask it had.
fn block_signals() -> libc::sigset_t {
    let mut all = std::mem::MaybeUninit::uninit();
    let mut before = std::mem::MaybeUninit::uninit();
    // SAFETY: sigfillset initialises `all`, and pthread_sigmask, which can't fail with these
    // arguments, initialises `before`.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigemptyset(before.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

/// Sees to it that forks are seen from now on.
///
/// # Errors
/// If the C library has no memory for its handlers.
pub fn watch() -> Result<(), Error> {
    // SAFETY: the three handlers are functions that live as long as the program (this crate is not
    // unloaded), and do what POSIX allows there: take and give up a lock, count.
    let result = *INSTALLED.get_or_init(|| unsafe {
        libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child))
    });
    if result == 0 {
        Ok(())
    } else {
        Err(Error::System {
            call: "pthread_atfork",
            source: std::io::Error::from_raw_os_error(result),
        })
    }
}

/// Makes a process by `make`, which gives 0 in the child, as fork(3) makes one: for system calls that run
/// no handlers. Only after [`watch`].
pub fn forking(make: impl FnOnce() -> isize) -> isize {
    before();
    let made = make();
    if made == 0 {
        after_in_child();
    } else {
        after_in_parent();
    }
    made
}

/// The same where the child does not come back from `make`, but begins elsewhere: there it calls
/// [`begin_elsewhere`] first.
pub fn forking_elsewhere(make: impl FnOnce() -> isize) -> isize {
    before();
    let made = make();
    after_in_parent();
    made
}

/// What the child of [`forking_elsewhere`] calls, once, and nobody else.
pub fn begin_elsewhere() {
    after_in_child();
}

/// Which process this is, counted in forks from the first: descriptors and mappings made at another
/// depth belong to an ancestor and must be left alone.
#[must_use]
pub fn depth() -> u64 {
    // Relaxed: changes only in a child that has a single thread, which reads its own write.
    DEPTH.load(Ordering::Relaxed)
}

fn lock() -> MutexGuard<'static, ()> {
    // Nothing that holds the lock leaves memory in pieces on a panic: guards put it back.
    ADDRESS_SPACE.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn before() {
    // The C library lets signal handlers run between its handlers of forks, and one may map memory.
    let held = AddressSpace::hold().0;
    // SAFETY: this thread holds ADDRESS_SPACE, so it alone touches the cell.
    unsafe { *FORKING.0.get() = Some(held) };
}

extern "C" fn after_in_parent() {
    // SAFETY: this thread took ADDRESS_SPACE in before() and still holds it. Taken out before it is
    // given up, for others touch the cell then.
    let held = unsafe { (*FORKING.0.get()).take() };
    drop(held);
}

extern "C" fn after_in_child() {
    DEPTH.fetch_add(1, Ordering::Relaxed); // alone in this process
    WAITING.store(0, Ordering::Relaxed); // other threads that waited are not here
    // SAFETY: the image of the thread that took ADDRESS_SPACE in before(), alone in this process.
    let held = unsafe { (*FORKING.0.get()).take() };
    drop(held);
}
