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

/// syscall(2): a process that is made by it is seen as one made by fork(3). All else goes to the kernel.
///
/// # Safety
/// That of the system call.
#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    first: usize,
    second: usize,
    third: usize,
    fourth: usize,
    fifth: usize,
    sixth: usize,
) -> c_long {
    // SAFETY: the program's own call.
    let call = || unsafe { kernel(number, [first, second, third, fourth, fifth, sixth]) };
    let shares_memory = |flags: u64| flags & u64::from(libc::CLONE_VM.cast_unsigned()) != 0;
    let makes_process = match number {
        libc::SYS_fork => true,
        libc::SYS_clone => second == 0 && !shares_memory(first as u64),
        libc::SYS_clone3 => clone_flags(first).is_some_and(|flags| !shares_memory(flags)),
        _ => false,
    };
    if number == libc::SYS_process_madvise {
        let ranges = ptr::with_exposed_provenance(second);
        // What the kernel takes of a register for an int.
        let low = |register: usize| c_uint::try_from(register & 0xffff_ffff).unwrap_or(0);
        let [process, advice] = [first, fourth].map(|register| low(register).cast_signed());
        // SAFETY: the program's own call.
        let known = unsafe { calls::process_madvise(process, ranges, third, advice, low(fifth)) };
        match known {
            Some(Ok(bytes)) => return c_long::try_from(bytes).unwrap_or(c_long::MAX),
            Some(Err(error)) => {
                set_errno(error);
                return -1;
            }
            None => {}
        }
    }
    let result = if makes_process {
        numerge_agent::forking(|| {
            crate::atfork::before_fork();
            let made = call();
            crate::atfork::after_fork();
            made
        })
    } else {
        call()
    };
    match i32::try_from(result) {
        Ok(error @ -4095..0) => {
            set_errno(-error);
            -1
        }
        _ => result as c_long,
    }
}

/// The flags of a clone_args; None for one with a stack of its own, or that can't be read.
#[cfg(target_arch = "x86_64")]
fn clone_flags(arguments: usize) -> Option<u64> {
    // Flags first, the stack's address sixth, all of 8 bytes.
    let mut words = [0_u64; 6];
    let local = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: size_of_val(&words) };
    let remote = libc::iovec { iov_base: ptr::with_exposed_provenance_mut(arguments), ..local };
    // SAFETY: reads as much as there is, or nothing if the pointer is wrong.
    let read = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    (usize::try_from(read) == Ok(size_of_val(&words)) && words[5] == 0).then_some(words[0])
}

/// A system call without the C library: gives a number, or a negative error.
///
/// # Safety
/// That of the system call.
#[cfg(target_arch = "x86_64")]
unsafe fn kernel(number: c_long, arguments: [usize; 6]) -> isize {
    let result;
    // SAFETY: needed for want of a function of the C library's that is not this one. The caller's
    // promise; the kernel changes no other registers.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") arguments[5],
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result
}
