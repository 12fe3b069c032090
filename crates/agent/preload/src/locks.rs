//! Locks that the kernel itself takes, or gives up when their owner dies: it does not wait for a page that is
//! frozen. Who waits for such a lock would be told EFAULT, upon which the C library ends the program, or would
//! wait for ever. So they are kept out of what is merged, as threads' stacks are.

use std::ffi::c_int;
use std::mem::MaybeUninit;

use numerge_agent::calls;

use crate::processes::next;

/// pthread_mutex_init(3).
///
/// # Safety
/// That of the C function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_mutex_init(
    mutex: *mut libc::pthread_mutex_t,
    attributes: *const libc::pthread_mutexattr_t,
) -> c_int {
    type Init =
        unsafe extern "C" fn(*mut libc::pthread_mutex_t, *const libc::pthread_mutexattr_t) -> c_int;
    let function = next(c"pthread_mutex_init");
    if function.is_null() {
        return libc::ENOSYS;
    }
    // SAFETY: that is its type.
    let next: Init = unsafe { std::mem::transmute(function) };
    // SAFETY: the program's own call.
    let result = unsafe { next(mutex, attributes) };
    // SAFETY: the program says that these are attributes.
    if result == 0 && !attributes.is_null() && unsafe { is_kernels(attributes) } {
        calls::keep_for_thread(mutex.expose_provenance(), size_of::<libc::pthread_mutex_t>());
    }
    result
}

/// Whether the kernel writes to locks with these attributes.
///
/// # Safety
/// They are initialised.
unsafe fn is_kernels(attributes: *const libc::pthread_mutexattr_t) -> bool {
    let (mut protocol, mut robust) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: the caller's promise; these write a number each, and can't fail then.
    unsafe {
        libc::pthread_mutexattr_getprotocol(attributes, protocol.as_mut_ptr());
        libc::pthread_mutexattr_getrobust(attributes, robust.as_mut_ptr());
        protocol.assume_init() == libc::PTHREAD_PRIO_INHERIT
            || robust.assume_init() == libc::PTHREAD_MUTEX_ROBUST
    }
}
