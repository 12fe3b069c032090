//! Signals are for the program's own threads: none of ours takes them.

/// The calling thread's signal mask as it was, put back when dropped.
pub(crate) struct Blocked(libc::sigset_t);

/// Keeps all signals from the calling thread, and from the threads that it starts meanwhile.
pub(crate) fn block() -> Blocked {
    let mut all = std::mem::MaybeUninit::uninit();
    let mut before = std::mem::MaybeUninit::uninit();
    // SAFETY: needed for want of a safe binding. sigfillset and sigemptyset initialise what they are
    // given, and pthread_sigmask, which can't fail with these arguments, writes the mask before.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigemptyset(before.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        Blocked(before.assume_init())
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: puts back the mask that `block` read for this thread; the type is not Send.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut());
        }
    }
}
