//! The C library's functions that the agent stands in for.

use std::ffi::{c_int, c_long, c_uint, c_ulong, c_void};
use std::ptr;

use numerge_agent::{Answer, calls, errno, set_errno};

/// What a C function gives: -1 and errno for an error.
fn number(answer: Answer) -> c_int {
    match answer {
        Ok(value) => c_int::try_from(value).unwrap_or(0),
        Err(error) => {
            set_errno(error);
            -1
        }
    }
}

fn pointer(answer: Answer) -> *mut c_void {
    match answer {
        Ok(address) => ptr::with_exposed_provenance_mut(address),
        Err(error) => {
            set_errno(error);
            libc::MAP_FAILED
        }
    }
}

/// An argument as the kernel takes it.
fn long(argument: c_long) -> usize {
    usize::from_ne_bytes(argument.to_ne_bytes())
}

fn unsigned(argument: c_ulong) -> usize {
    usize::from_ne_bytes(argument.to_ne_bytes())
}

/// [`numerge_agent::PRELOADED`].
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "a name for C's linker")]
pub static numerge_agent_is_preloaded: u8 = 1;

/// mmap(3).
///
/// # Safety
/// That of the C function. So for all here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    at: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    // SAFETY: the program's own call.
    pointer(unsafe {
        calls::mmap(at.expose_provenance(), len, protection, flags, fd, long(offset))
    })
}

/// mmap(3), by its other name.
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    at: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off64_t,
) -> *mut c_void {
    // SAFETY: the program's own call.
    pointer(unsafe {
        calls::mmap(at.expose_provenance(), len, protection, flags, fd, long(offset))
    })
}

/// munmap(3).
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(start: *mut c_void, len: usize) -> c_int {
    // SAFETY: the program's own call.
    number(unsafe { calls::munmap(start.expose_provenance(), len) })
}

/// shmat(2).
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shmat(segment: c_int, at: *const c_void, flags: c_int) -> *mut c_void {
    let size = segment_bytes(segment);
    // SAFETY: the program's own call.
    pointer(unsafe { calls::shmat(segment, at.expose_provenance(), flags, size) })
}

/// How large a segment is; None if the kernel does not say.
pub(crate) fn segment_bytes(segment: c_int) -> Option<usize> {
    let mut about = std::mem::MaybeUninit::<libc::shmid_ds>::zeroed();
    // SAFETY: there is room for what the kernel tells; all bits zero are a valid shmid_ds.
    unsafe {
        let known = libc::shmctl(segment, libc::IPC_STAT, about.as_mut_ptr()) == 0;
        known.then(|| about.assume_init().shm_segsz)
    }
}

/// mremap(2), whose last argument is passed like any other.
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mremap(
    old: *mut c_void,
    old_len: usize,
    new_len: usize,
    flags: c_int,
    new: *mut c_void,
) -> *mut c_void {
    let (old, new) = (old.expose_provenance(), new.expose_provenance());
    // SAFETY: the program's own call.
    pointer(unsafe { calls::mremap(old, old_len, new_len, flags, new) })
}

/// mprotect(2).
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mprotect(start: *mut c_void, len: usize, protection: c_int) -> c_int {
    // SAFETY: the program's own call.
    number(unsafe { calls::mprotect(start.expose_provenance(), len, protection, None) })
}

/// pkey_mprotect(2).
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pkey_mprotect(
    start: *mut c_void,
    len: usize,
    protection: c_int,
    key: c_int,
) -> c_int {
    // SAFETY: the program's own call.
    number(unsafe { calls::mprotect(start.expose_provenance(), len, protection, Some(key)) })
}

/// madvise(2).
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(start: *mut c_void, len: usize, advice: c_int) -> c_int {
    // SAFETY: the program's own call.
    number(unsafe { calls::madvise(start.expose_provenance(), len, advice) })
}

/// posix_madvise(3), which gives the error's number and leaves errno alone.
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_madvise(start: *mut c_void, len: usize, advice: c_int) -> c_int {
    // The kernel's advice of this number drops content, which this function must not.
    if advice == libc::POSIX_MADV_DONTNEED {
        return 0;
    }
    let before = errno();
    // SAFETY: the program's own call.
    let answer = unsafe { calls::madvise(start.expose_provenance(), len, advice) };
    set_errno(before);
    answer.err().unwrap_or(0)
}

/// mlock(2).
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlock(start: *const c_void, len: usize) -> c_int {
    // SAFETY: the program's own call.
    number(unsafe { calls::lock(libc::SYS_mlock, start.expose_provenance(), len, None) })
}

/// mlock2(2).
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlock2(start: *const c_void, len: usize, flags: c_uint) -> c_int {
    // SAFETY: the program's own call.
    number(unsafe { calls::lock(libc::SYS_mlock2, start.expose_provenance(), len, Some(flags)) })
}

/// munlock(2).
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munlock(start: *const c_void, len: usize) -> c_int {
    // SAFETY: the program's own call.
    number(unsafe { calls::lock(libc::SYS_munlock, start.expose_provenance(), len, None) })
}

/// mlockall(2).
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlockall(flags: c_int) -> c_int {
    // SAFETY: the program's own call.
    number(unsafe { calls::lock_all(libc::SYS_mlockall, flags) })
}

/// munlockall(2).
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munlockall() -> c_int {
    // SAFETY: the program's own call.
    number(unsafe { calls::lock_all(libc::SYS_munlockall, 0) })
}

/// mbind(2), as libnuma declares it.
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mbind(
    start: *mut c_void,
    len: c_ulong,
    mode: c_int,
    nodes: *const c_ulong,
    most: c_ulong,
    flags: c_uint,
) -> c_long {
    let arguments = [
        start.expose_provenance(),
        unsigned(len),
        long(mode.into()),
        nodes.expose_provenance(),
        unsigned(most),
        long(flags.into()),
    ];
    // SAFETY: the program's own call.
    number(unsafe { calls::mbind(arguments) }).into()
}

/// prctl(2), whose arguments are passed like any other.
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prctl(
    option: c_int,
    second: c_ulong,
    third: c_ulong,
    fourth: c_ulong,
    fifth: c_ulong,
) -> c_int {
    let arguments = [second, third, fourth, fifth].map(unsigned);
    // SAFETY: the program's own call.
    number(unsafe { calls::prctl(option, arguments) })
}

/// ioctl(2), whose last argument is passed like any other.
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the program's own call.
    number(unsafe { calls::ioctl(fd, unsigned(request), argument.expose_provenance()) })
}

/// process_madvise(2): on the process itself it is madvise of each range.
///
/// # Safety
/// As [`mmap`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn process_madvise(
    process: c_int,
    ranges: *const libc::iovec,
    count: usize,
    advice: c_int,
    flags: c_uint,
) -> isize {
    // SAFETY: the program's own call.
    match unsafe { calls::process_madvise(process, ranges, count, advice, flags) } {
        Some(Ok(bytes)) => isize::try_from(bytes).unwrap_or(isize::MAX),
        Some(Err(error)) => {
            set_errno(error);
            -1
        }
        // SAFETY: the program's own call, as it is.
        None => unsafe {
            libc::syscall(libc::SYS_process_madvise, process, ranges, count, advice, flags)
                .try_into()
                .unwrap_or(-1)
        },
    }
}
