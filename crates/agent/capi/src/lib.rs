//! The agent for programs in C: the functions of `include/numerge.h`, which documents them.

use std::cell::RefCell;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use numerge_agent::{Agent, Error, set_errno};
use numerge_linux::Error as Machine;

static AGENT: OnceLock<Agent> = OnceLock::new();

thread_local! {
    /// What numerge_error() gives.
    static FAILURE: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Bytes of `problem`, the last of which is 0.
const PROBLEM_BYTES: usize = 256;

/// `struct numerge_status`.
#[repr(C)]
#[derive(Debug)]
pub struct Status {
    connected: u64,
    pages_offered: u64,
    pages_registered: u64,
    pages_merged: u64,
    pages_of_zeros: u64,
    problem: [c_char; PROBLEM_BYTES],
}

/// An errno and what there is to say.
struct Failure(c_int, String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let number = match &error {
            Error::Setting(_) | Error::Range { .. } => libc::EINVAL,
            Error::Begun { .. } | Error::Preloaded => libc::EBUSY,
            Error::Registered { .. } => libc::EEXIST,
            Error::Thread => libc::EAGAIN,
            Error::Foreign => libc::ECHILD,
            Error::OutOfMemory => libc::ENOMEM,
            Error::Machine(machine) => match machine {
                Machine::NotPermitted { .. } | Machine::OtherDevice { .. } => libc::EPERM,
                Machine::KernelTooOld { .. } | Machine::PageSize { .. } => libc::ENOSYS,
                Machine::Attribute { .. } | Machine::NotAnonymous { .. } => libc::EINVAL,
                Machine::System { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            },
        };
        Self(number, error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO), error.to_string())
    }
}

/// What `act` gives, or `failed`, with errno set and the text kept.
fn answer<T, E: Into<Failure>>(failed: T, act: impl FnOnce() -> Result<T, E>) -> T {
    act().unwrap_or_else(|error| {
        let Failure(number, text) = error.into();
        // It has no zero byte; if it had, the number would have to do.
        FAILURE.set(CString::new(text).ok());
        set_errno(number);
        failed
    })
}

fn agent() -> Result<Agent, Failure> {
    let missing = || Failure(libc::ENOTCONN, "numerge_connect() was not called, or failed".into());
    AGENT.get().copied().ok_or_else(missing)
}

/// # Safety
/// As the header says. So for all here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn numerge_connect(socket: *const c_char, domain: *const c_char) -> c_int {
    answer(-1, || {
        if socket.is_null() {
            return Err(Failure(libc::EINVAL, "socket=NULL: must be the path of a socket".into()));
        }
        // SAFETY: the caller gives a string.
        let socket = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(socket) }.to_bytes()));
        let domain = if domain.is_null() {
            None
        } else {
            // SAFETY: as above.
            let domain = unsafe { CStr::from_ptr(domain) };
            let bad = |_| Failure(libc::EINVAL, format!("domain={domain:?}: must be ASCII"));
            Some(domain.to_str().map_err(bad)?)
        };
        let agent = Agent::connect(socket, domain)?;
        AGENT.get_or_init(|| agent);
        Ok(0)
    })
}

/// # Safety
/// As [`numerge_connect`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn numerge_register(start: *mut c_void, bytes: usize) -> c_int {
    answer(-1, || {
        // SAFETY: the caller's promise, which is the same.
        let region = unsafe { agent()?.register(start.cast(), bytes) }?;
        // Unregistered by its addresses.
        std::mem::forget(region);
        Ok::<_, Failure>(0)
    })
}

/// # Safety
/// As [`numerge_connect`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn numerge_unregister(start: *mut c_void, bytes: usize) -> i64 {
    answer(-1, || {
        let left = agent()?.unregister(start.cast(), bytes)?;
        Ok::<_, Failure>(i64::try_from(left).unwrap_or(i64::MAX))
    })
}

/// # Safety
/// As [`numerge_connect`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn numerge_mmap(
    at: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    answer(libc::MAP_FAILED, || {
        // SAFETY: the caller's own call.
        let made = unsafe { agent()?.mmap(at.cast(), bytes, protection, flags, fd, offset) }?;
        Ok::<_, Failure>(made.cast())
    })
}

/// # Safety
/// As [`numerge_connect`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn numerge_munmap(start: *mut c_void, bytes: usize) -> c_int {
    answer(-1, || {
        // SAFETY: the caller's own call.
        unsafe { agent()?.munmap(start.cast(), bytes) }?;
        Ok::<_, Failure>(0)
    })
}

/// # Safety
/// As [`numerge_connect`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn numerge_mremap(
    old: *mut c_void,
    old_bytes: usize,
    new_bytes: usize,
    flags: c_int,
    new_place: *mut c_void,
) -> *mut c_void {
    answer(libc::MAP_FAILED, || {
        let (old, new) = (old.cast(), new_place.cast());
        // SAFETY: the caller's own call.
        let made = unsafe { agent()?.mremap(old, old_bytes, new_bytes, flags, new) }?;
        Ok::<_, Failure>(made.cast())
    })
}

/// # Safety
/// As [`numerge_connect`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn numerge_mprotect(
    start: *mut c_void,
    bytes: usize,
    protection: c_int,
) -> c_int {
    answer(-1, || {
        // SAFETY: the caller's own call.
        unsafe { agent()?.mprotect(start.cast(), bytes, protection) }?;
        Ok::<_, Failure>(0)
    })
}

/// # Safety
/// As [`numerge_connect`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn numerge_madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int {
    answer(-1, || {
        // SAFETY: the caller's own call.
        unsafe { agent()?.madvise(start.cast(), bytes, advice) }?;
        Ok::<_, Failure>(0)
    })
}

/// # Safety
/// As [`numerge_connect`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn numerge_status(status: *mut Status, bytes: usize) -> c_int {
    answer(-1, || {
        if status.is_null() || bytes < size_of::<Status>() {
            let wanted = size_of::<Status>();
            let why = format!("bytes={bytes}: must be {wanted} or more, and status not NULL");
            return Err(Failure(libc::EINVAL, why));
        }
        let found = agent()?.status();
        let mut problem = [0; PROBLEM_BYTES];
        let text = found.problem.unwrap_or_default();
        for (to, from) in problem.iter_mut().take(PROBLEM_BYTES - 1).zip(text.bytes()) {
            *to = c_char::from_ne_bytes([from]);
        }
        let told = Status {
            connected: found.connected.into(),
            pages_offered: found.pages_offered,
            pages_registered: found.pages_registered,
            pages_merged: found.pages_merged,
            pages_of_zeros: found.pages_of_zeros,
            problem,
        };
        // SAFETY: the caller gives a place for a status, of at least its size.
        unsafe { status.write(told) };
        Ok(0)
    })
}

/// As the header says.
#[unsafe(no_mangle)]
pub extern "C" fn numerge_keep_until_last() {
    numerge_agent::keep_until_last();
}

/// # Safety
/// As [`numerge_connect`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn numerge_error() -> *const c_char {
    FAILURE.with_borrow(|failure| failure.as_ref().map_or(c"".as_ptr(), |text| text.as_ptr()))
}
