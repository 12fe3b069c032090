//! The agent's own threads.
//!
//! Their stacks are mapped by the C library, whose calls do not come by here, so they are never merged.
//! All signals are kept from them: the program's handlers are for its own threads.
//!
//! A process whose first thread has ended lives until its last thread has. The agent's must not count.

use std::io;
use std::os::unix::fs::MetadataExt;

use numerge_linux::Quiet;

/// What the deepest path needs, many times over.
const STACK_BYTES: usize = 256 << 10;

/// Starts a thread that lives as long as the process. This may call the program's malloc, which may come
/// back to us: nothing may be held.
pub(crate) fn start(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // A thread inherits this from who starts it.
    let _quiet = Quiet::begin();
    let builder = std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES);
    builder.spawn(run).map(|_| ())
}

/// How many there are: that of `service`, that of `client`, and the one that reads events.
const THREADS: u64 = 3;

/// Ends the process if all threads of the program have ended, as the last one would have.
pub(crate) fn end_with_program() {
    // The first thread stays on the list until the process ends. One system call, nearly always.
    let listed = std::fs::metadata("/proc/self/task").map_or(0, |task| task.nlink());
    if listed == 2 + THREADS + 1
        && let Some(status) = first_threads_status()
    {
        if status == 0 {
            // The C library's way when its last thread ends.
            std::process::exit(0);
        }
        // SAFETY: the program's threads have ended by system calls of their own, so this does too.
        unsafe { libc::_exit(status) };
    }
}

/// If this is the program's first thread, calls `ends` when it ends and others live on.
pub(crate) fn watch_first(ends: extern "C" fn(*mut libc::c_void)) {
    if rustix::thread::gettid() != rustix::process::getpid() {
        return;
    }
    let mut key = 0;
    // SAFETY: makes a key whose values are not used but for being there.
    let made = unsafe { libc::pthread_key_create(&raw mut key, Some(ends)) };
    if made == 0 {
        // SAFETY: the key was just made. If there is no memory, the thread's end is not seen.
        unsafe { libc::pthread_setspecific(key, std::ptr::dangling()) };
    }
}

/// What the first thread ended with, if it has: a zombie's last field.
fn first_threads_status() -> Option<i32> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<_> = fields.split_ascii_whitespace().collect();
    let code: i32 = fields.last()?.parse().ok()?;
    (fields.first() == Some(&"Z")).then_some(code >> 8)
}

/// Whether the C library's `calloc` is its own. Making a thread calls it; a `calloc` of the program's
/// may be what calls us just now, with its locks held.
pub(crate) fn can_start_anywhere() -> bool {
    let object = |function: *const libc::c_void| {
        let mut found = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: asks for the object that a function is in, and fills `found` unless it gives 0; all
        // bits zero are a valid Dl_info.
        unsafe {
            let known = libc::dladdr(function, found.as_mut_ptr()) != 0;
            known.then(|| found.assume_init().dli_fbase)
        }
    };
    let calloc = object(libc::calloc as *const libc::c_void);
    calloc.is_some() && calloc == object(libc::gnu_get_libc_version as *const libc::c_void)
}
