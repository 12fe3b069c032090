//! The C library's functions that make processes and threads, as far as its handlers of forks do not tell.

use std::ffi::{CStr, c_int, c_long, c_uint, c_void};
use std::ptr;

use numerge_agent::{calls, set_errno};

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
        unsafe { kernel(libc::SYS_exit, [0; 6]) };
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

/// syscall(2): a process that is made by it is seen as one made by fork(3). All else goes to the kernel.
///
/// # Safety
/// As [`_Fork`].
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
    // About no range at all, it is the agent that asks, or nothing to it.
    if number == libc::SYS_process_madvise && third != 0 {
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
/// As [`_Fork`].
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
