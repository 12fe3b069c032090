//! Handlers of forks, before all others.
//!
//! The C library runs handlers before a fork in the reverse of the order in which they were registered.
//! A program's allocator takes its locks in one; a thread that holds such a lock may be mapping memory, and
//! so be waiting for the agent. So the agent's handlers must be the last to run before a fork, and the
//! first after it: they are registered before anybody's, however early that is.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::HEAP;

type Handler = Option<unsafe extern "C" fn()>;
type Register = unsafe extern "C" fn(Handler, Handler, Handler, *mut c_void) -> c_int;

static BEGUN: AtomicBool = AtomicBool::new(false);

/// Registers the agent's handlers, if they are not.
pub(crate) fn watch() -> Result<(), String> {
    if BEGUN.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    // The heap first of all, so that it is the last to be taken before a fork, and the first to be free
    // after it.
    // SAFETY: the handlers live as long as the program; they take and give up a lock.
    let watching =
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork)) };
    if watching != 0 {
        return Err("no memory for the handlers of forks".into());
    }
    numerge_agent::watch_forks()
}

/// What pthread_atfork(3) is, for who is linked with the C library.
///
/// # Safety
/// The handlers are as that function wants them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __register_atfork(
    prepare: Handler,
    parent: Handler,
    child: Handler,
    object: *mut c_void,
) -> c_int {
    // Whether that worked is told when the agent begins.
    let _ = watch();
    // SAFETY: looks up the C library's function of this name.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"__register_atfork".as_ptr()) };
    if next.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: that is its type.
    let next: Register = unsafe { std::mem::transmute(next) };
    // SAFETY: the caller's promise.
    unsafe { next(prepare, parent, child, object) }
}

pub(crate) extern "C" fn before_fork() {
    HEAP.begin_fork();
}

pub(crate) extern "C" fn after_fork() {
    HEAP.end_fork();
}
