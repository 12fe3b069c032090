//! The C library's functions that make processes and threads, as far as its handlers of forks do not tell.

use std::ffi::{CStr, c_int, c_void};

use numerge_agent::{calls, set_errno, system_call};

/// The C library's own function of this name; null if it has none.
pub(crate) fn next(name: &CStr) -> *mut c_void {
    // SAFETY: looks up a name.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

fn missing() -> c_int {
    set_errno(libc::ENOSYS);
    -1
}

/// _Fork(3), which runs no handlers.
///
/// # Safety
/// That of the C function. So for all here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _Fork() -> libc::pid_t {
    let function = next(c"_Fork");
    if function.is_null() {
        return missing();
    }
    // SAFETY: that is its type.
    let fork: unsafe extern "C" fn() -> libc::pid_t = unsafe { std::mem::transmute(function) };
    let made = numerge_agent::forking(|| {
        crate::atfork::before_fork();
        // SAFETY: the program's own call.
        let made = unsafe { fork() };
        crate::atfork::after_fork();
        made as isize
    });
    libc::pid_t::try_from(made).unwrap_or(-1)
}

type Begin = extern "C" fn(*mut c_void) -> c_int;
type Clone = unsafe extern "C" fn(
    Begin,
    *mut c_void,
    c_int,
    *mut c_void,
    *mut c_void,
    *mut c_void,
    *mut c_void,
) -> c_int;

/// What a process made by clone(2) begins with. Lies on the stack of who made it, of which it has a copy.
struct Child {
    after_fork: fn(),
    run: Begin,
    argument: *mut c_void,
}

extern "C" fn begin(child: *mut c_void) -> c_int {
    // SAFETY: given to clone() below for this function; in the child's copy of that memory.
    let Child { after_fork, run, argument } = unsafe { child.cast::<Child>().read() };
    crate::atfork::after_fork();
    after_fork();
    run(argument)
}

/// clone(2), the C library's function, whose last arguments are passed like any other.
///
/// # Safety
/// As [`_Fork`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clone(
    run: Begin,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
    parent_tid: *mut c_void,
    tls: *mut c_void,
    child_tid: *mut c_void,
) -> c_int {
    let function = next(c"clone");
    if function.is_null() {
        return missing();
    }
    // SAFETY: that is its type.
    let next: Clone = unsafe { std::mem::transmute(function) };
    let call = |run: Begin, argument: *mut c_void| {
        // SAFETY: the program's own call.
        unsafe { next(run, stack, flags, argument, parent_tid, tls, child_tid) }
    };
    if flags & libc::CLONE_CHILD_CLEARTID != 0 {
        calls::keep_for_thread(child_tid.expose_provenance(), size_of::<libc::pid_t>());
    }
    if flags & libc::CLONE_VM != 0 {
        return call(run, argument);
    }
    let made = numerge_agent::forking_elsewhere(|after_fork| {
        let mut child = Child { after_fork, run, argument };
        crate::atfork::before_fork();
        let made = call(begin, (&raw mut child).cast());
        crate::atfork::after_fork();
        made as isize
    });
    c_int::try_from(made).unwrap_or(-1)
}

/// pthread_exit(3): see [`numerge_agent::keep_until_last`].
///
/// # Safety
/// As [`_Fork`].
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pthread_exit(result: *mut c_void) -> ! {
    numerge_agent::keep_until_last();
    let function = next(c"pthread_exit");
    if function.is_null() {
        // SAFETY: ends the thread, which can't go on.
        let _ = unsafe { system_call(libc::SYS_exit, [0; 6]) };
        std::process::abort();
    }
    // SAFETY: that is its type.
    let exit: unsafe extern "C-unwind" fn(*mut c_void) -> ! =
        unsafe { std::mem::transmute(function) };
    // SAFETY: the program's own call, which unwinds its stack and this frame, where nothing is to be
    // dropped.
    unsafe { exit(result) }
}

/// pthread_attr_setstack(3): see [`calls::keep_for_thread`].
///
/// # Safety
/// As [`_Fork`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_attr_setstack(
    attributes: *mut libc::pthread_attr_t,
    stack: *mut c_void,
    bytes: usize,
) -> c_int {
    type Set = unsafe extern "C" fn(*mut libc::pthread_attr_t, *mut c_void, usize) -> c_int;
    let function = next(c"pthread_attr_setstack");
    if function.is_null() {
        return libc::ENOSYS;
    }
    // SAFETY: that is its type.
    let next: Set = unsafe { std::mem::transmute(function) };
    // SAFETY: the program's own call.
    let result = unsafe { next(attributes, stack, bytes) };
    if result == 0 {
        calls::keep_for_thread(stack.expose_provenance(), bytes);
    }
    result
}
