//! syscall(2): what changes memory or makes a process is seen as the C library's function of that name is.
//!
//! Only for machines where the agent has another way to the kernel. `ioctl` is not among them: the agent makes its own
//! by `syscall`, past the function of that name.

use std::ffi::{c_int, c_long, c_uint};
use std::ptr;

use numerge_agent::{Answer, calls, set_errno, system_call};

use crate::exports::segment_bytes;

/// What the kernel takes of a register for an int.
fn low(register: usize) -> c_int {
    c_uint::try_from(register & 0xffff_ffff).unwrap_or(0).cast_signed()
}

/// syscall(2). What is not about memory or processes goes to the kernel as it is.
///
/// # Safety
/// That of the system call.
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
    let arguments = [first, second, third, fourth, fifth, sixth];
    // SAFETY: the program's own call.
    let call = || unsafe { system_call(number, arguments) };
    if let Some(told) = told_of_end(number, first, fourth) {
        calls::keep_for_thread(told, size_of::<libc::pid_t>());
    }
    let answer = if makes_process(number, first, second) {
        fork_by(call)
    } else {
        // SAFETY: the program's own call.
        unsafe { about_memory(number, arguments) }.unwrap_or_else(call)
    };
    match answer {
        Ok(value) => c_long::from_ne_bytes(value.to_ne_bytes()),
        Err(error) => {
            set_errno(error);
            -1
        }
    }
}

/// Whether this makes a process with memory of its own, on the same stack.
fn makes_process(number: c_long, first: usize, second: usize) -> bool {
    let shares_memory = |flags: u64| flags & u64::from(libc::CLONE_VM.cast_unsigned()) != 0;
    match number {
        libc::SYS_fork => true,
        libc::SYS_clone => second == 0 && !shares_memory(first as u64),
        libc::SYS_clone3 => clone_flags(first).is_some_and(|flags| !shares_memory(flags)),
        _ => false,
    }
}

/// Where the kernel writes when the thread or process that this makes ends, if anywhere: see
/// [`calls::keep_for_thread`].
fn told_of_end(number: c_long, first: usize, fourth: usize) -> Option<usize> {
    let is_told = |flags: u64| flags & u64::from(libc::CLONE_CHILD_CLEARTID.cast_unsigned()) != 0;
    match number {
        libc::SYS_clone => is_told(first as u64).then_some(fourth),
        libc::SYS_clone3 => {
            let [flags, _, child_tid, ..] = clone_arguments(first)?;
            usize::try_from(child_tid).ok().filter(|_| is_told(flags))
        }
        _ => None,
    }
}

fn fork_by(call: impl Fn() -> Answer) -> Answer {
    let mut answer = Ok(0);
    numerge_agent::forking(|| {
        crate::atfork::before_fork();
        answer = call();
        crate::atfork::after_fork();
        answer.map_or(-1, usize::cast_signed)
    });
    answer
}

/// A call that changes mappings; None if it is another.
///
/// # Safety
/// As [`syscall`].
unsafe fn about_memory(number: c_long, arguments: [usize; 6]) -> Option<Answer> {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    // SAFETY: the program's own call, each with the arguments that the kernel takes it to have.
    Some(unsafe {
        match number {
            libc::SYS_mmap => {
                calls::mmap(first, second, low(third), low(fourth), low(fifth), sixth)
            }
            libc::SYS_munmap => calls::munmap(first, second),
            libc::SYS_mremap => calls::mremap(first, second, third, low(fourth), fifth),
            libc::SYS_mprotect => calls::mprotect(first, second, low(third), None),
            libc::SYS_pkey_mprotect => {
                calls::mprotect(first, second, low(third), Some(low(fourth)))
            }
            libc::SYS_madvise => calls::madvise(first, second, low(third)),
            libc::SYS_mlock | libc::SYS_munlock => calls::lock(number, first, second, None),
            libc::SYS_mlock2 => {
                calls::lock(number, first, second, Some(low(third).cast_unsigned()))
            }
            libc::SYS_mlockall | libc::SYS_munlockall => calls::lock_all(number, low(first)),
            libc::SYS_mbind => calls::mbind(arguments),
            libc::SYS_shmat => {
                calls::shmat(low(first), second, low(third), segment_bytes(low(first)))
            }
            libc::SYS_prctl => calls::prctl(low(first), [second, third, fourth, fifth]),
            // About no range at all, it is the agent that asks, or nothing to it.
            libc::SYS_process_madvise if third != 0 => {
                let ranges = ptr::with_exposed_provenance(second);
                let flags = low(fifth).cast_unsigned();
                return calls::process_madvise(low(first), ranges, third, low(fourth), flags);
            }
            _ => return None,
        }
    })
}

/// The flags of a clone_args; None for one with a stack of its own, or that can't be read.
fn clone_flags(arguments: usize) -> Option<u64> {
    let words = clone_arguments(arguments)?;
    (words[5] == 0).then_some(words[0])
}

/// Of a clone_args: flags first, where the child's number goes third, the stack's address sixth, all of 8
/// bytes. None for one that can't be read.
fn clone_arguments(arguments: usize) -> Option<[u64; 6]> {
    let mut words = [0_u64; 6];
    let local = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: size_of_val(&words) };
    let remote = libc::iovec { iov_base: ptr::with_exposed_provenance_mut(arguments), ..local };
    // SAFETY: reads as much as there is, or nothing if the pointer is wrong.
    let read = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    (usize::try_from(read) == Ok(size_of_val(&words))).then_some(words)
}
