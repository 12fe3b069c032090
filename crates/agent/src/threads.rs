//! The agent's own threads.
//!
//! All signals are kept from them: the program's handlers are for its own threads.
//!
//! They have a table of files of their own. So the program can close whatever it finds open, and use any
//! descriptor, and a child has none of the agent's; and what the program's threads want done with one of the
//! agent's files, an agent's thread does.
//!
//! A process whose first thread has ended lives until its last thread has. The agent's must not count.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use numerge_linux::start_thread;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// What the deepest path needs, many times over.
const STACK_BYTES: usize = 256 << 10;

/// Starts a thread that lives as long as the process. This may call the program's malloc, which may come
/// back to us: nothing may be held.
pub(crate) fn start(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let counted = move || {
        ALIVE.fetch_add(1, Ordering::Relaxed); // a counter
        run();
        ALIVE.fetch_sub(1, Ordering::Relaxed); // as above
    };
    start_thread(name, STACK_BYTES, counted).map(|_| ())
}

/// Gives the calling thread, and those it starts from now on, files of their own: none.
///
/// # Errors
/// What the system said, for people.
pub(crate) fn leave_programs_files() -> Result<(), String> {
    let unshare = libc::CLOSE_RANGE_UNSHARE;
    // SAFETY: closes copies that nobody has got yet, for this thread's table is its own from then on.
    if unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, unshare) } != 0 {
        return Err(format!("close_range: {}", io::Error::last_os_error()));
    }
    // What is written to the standard descriptors by whatever code must not reach a file of the agent's.
    for _ in 0..3 {
        let nothing = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        std::mem::forget(nothing.map_err(|error| format!("eventfd: {error}"))?);
    }
    Ok(())
}

/// A copy of the program's standard error.
pub(crate) fn programs_stderr() -> io::Result<File> {
    let process = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, libc::STDERR_FILENO, PidfdGetfdFlags::empty())?.into())
}

/// How many there are. Counted by themselves, so never too many.
static ALIVE: AtomicU64 = AtomicU64::new(0);

/// Counts a thread that was not started here.
pub(crate) fn count_other() {
    ALIVE.fetch_add(1, Ordering::Relaxed); // a counter; its thread is there already
}

/// In a fork's child none of them is.
pub(crate) fn after_in_child() {
    ALIVE.store(0, Ordering::Relaxed); // alone in this process
}

/// Whether all threads of the program have ended, and with what the first has.
fn programs_status() -> Option<i32> {
    // The first thread stays on the list until the process ends. One system call, nearly always.
    let listed = std::fs::metadata("/proc/self/task").map_or(0, |task| task.nlink());
    // Relaxed: as above; one that is not counted yet is taken for the program's.
    if listed == 2 + ALIVE.load(Ordering::Relaxed) + 1 { first_threads_status() } else { None }
}

/// Ends the process if all threads of the program have ended, as the last one would have.
pub(crate) fn end_with_program() {
    if let Some(status) = programs_status() {
        // SAFETY: ends the process. The program's files are closed already, so none of its handlers can
        // do anything with them: see keep_until_last().
        unsafe { libc::_exit(status) };
    }
}

/// The program's first thread is about to end, and others may live on: when the last of them has ended, the
/// process must, with the program's handlers, which find its files open.
pub fn keep_until_last() {
    /// How long after the last thread the process may end.
    const DELAY: Duration = Duration::from_millis(20);
    // SAFETY: asks for two numbers.
    let is_first = unsafe { libc::gettid() == libc::getpid() };
    if is_first && ALIVE.load(Ordering::Relaxed) > 0 {
        // By a thread that has the program's files. If there is none, the process ends without them.
        let _ = start("numerge-keeper", || {
            loop {
                std::thread::sleep(DELAY);
                if programs_status().is_some() {
                    // The C library's way when its last thread ends.
                    std::process::exit(0);
                }
            }
        });
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
