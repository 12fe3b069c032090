//! Calls that change what mappings are like, but not what is in them.

use super::change;
use crate::agent::{self, enter, keeping_errno};
use crate::known::EVERYTHING;
use crate::proc_files;
use crate::sys::{self, Answer, register};
use crate::unasked::{self, Unasked};

/// mprotect(2), pkey_mprotect(2).
///
/// # Safety
/// As [`super::mmap`].
pub unsafe fn mprotect(start: usize, len: usize, protection: i32, key: Option<i32>) -> Answer {
    // SAFETY: the program's own call.
    let call = || unsafe {
        match key {
            None => sys::call(libc::SYS_mprotect, &[start, len, register(protection)]),
            Some(key) => {
                let arguments = [start, len, register(protection), register(key)];
                sys::call(libc::SYS_pkey_mprotect, &arguments)
            }
        }
    };
    change(start, len, call)
}

/// mlock(2), mlock2(2), munlock(2): `number`, with the arguments that come after the range.
///
/// # Safety
/// As [`super::mmap`].
pub unsafe fn lock(number: libc::c_long, start: usize, len: usize, flags: Option<u32>) -> Answer {
    let flags = flags.map_or(0, |flags| usize::try_from(flags).unwrap_or(usize::MAX));
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(number, &[start, len, flags]) };
    // These take any address: the page it is in is meant.
    let page = start - start % numerge_engine::machine::PAGE_SIZE;
    match len.checked_add(start - page) {
        Some(len) => change(page, len, call),
        None => call(),
    }
}

/// mlockall(2), munlockall(2). While all that the program will map is locked, nothing is merged; and what
/// merging needs of the address space, empty memory and the frames' files, is not there to be filled.
///
/// # Safety
/// As [`super::mmap`].
pub unsafe fn lock_all(number: libc::c_long, flags: i32) -> Answer {
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(number, &[register(flags)]) };
    let will_be_locked = number == libc::SYS_mlockall && flags & libc::MCL_FUTURE != 0;
    match enter() {
        Some(here) => keeping_errno(|| here.locking(will_be_locked, call)),
        None => call(),
    }
}

/// mbind(2).
///
/// # Safety
/// As [`super::mmap`].
pub unsafe fn mbind(arguments: [usize; 6]) -> Answer {
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(libc::SYS_mbind, &arguments) };
    change(arguments[0], arguments[1], call)
}

/// Linux 6.4; not in the libc crate.
const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;

/// prctl(2).
///
/// # Safety
/// As [`super::mmap`].
pub unsafe fn prctl(option: i32, arguments: [usize; 4]) -> Answer {
    let [second, third, fourth, fifth] = arguments;
    let all = [register(option), second, third, fourth, fifth];
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(libc::SYS_prctl, &all) };
    if agent::get().is_none() {
        return call();
    }
    match option {
        PR_SET_MEMORY_MERGE if third == 0 && fourth == 0 && fifth == 0 => {
            keeping_errno(|| set_memory_merge(second != 0))
        }
        PR_GET_MEMORY_MERGE if second == 0 && third == 0 && fourth == 0 && fifth == 0 => {
            Ok(unasked::wants_all().into())
        }
        PR_SET_MEMORY_MERGE | PR_GET_MEMORY_MERGE => keeping_errno(|| Err(libc::EINVAL)),
        libc::PR_SET_VMA => change(third, fourth, call),
        _ => call(),
    }
}

fn set_memory_merge(on: bool) -> Answer {
    let Some(mut here) = enter() else {
        return Ok(0);
    };
    let did = unasked::wants_all();
    if on {
        unasked::set(Unasked::All);
        unasked::bequeath(true);
        here.want(&EVERYTHING);
        here.start(true);
    } else if did {
        unasked::set(here.agent.unasked());
        here.unwant(&EVERYTHING);
        // Nothing is held over what follows.
        if let Err(error) = here.let_go(&EVERYTHING).map(drop) {
            // It is as it was, so that it can be tried again.
            unasked::set(Unasked::All);
            if let Some(mut here) = enter() {
                here.want(&EVERYTHING);
            }
            return Err(error);
        }
        unasked::bequeath(false);
    } else {
        return Ok(0);
    }
    if did != on {
        proc_files::tell();
    }
    Ok(0)
}

/// ioctl(2): a program that wants to have a range's faults gets it as it made it.
///
/// # Safety
/// As [`super::mmap`].
pub unsafe fn ioctl(fd: i32, request: usize, argument: usize) -> Answer {
    /// `_IOWR(0xAA, 0, struct uffdio_register)` and `_IOR(0xAA, 1, struct uffdio_range)`.
    const UFFDIO_REGISTER: usize = 0xC020_AA00;
    const UFFDIO_UNREGISTER: usize = 0x8010_AA01;
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(libc::SYS_ioctl, &[register(fd), request, argument]) };
    if !matches!(request, UFFDIO_REGISTER | UFFDIO_UNREGISTER) || agent::get().is_none() {
        return call();
    }
    let mut range = [0_usize; 2];
    let local = libc::iovec { iov_base: range.as_mut_ptr().cast(), iov_len: size_of_val(&range) };
    let remote = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(argument), ..local };
    // SAFETY: reads the structure's first two words, or nothing if the pointer is wrong.
    let read = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    let read = usize::try_from(read) == Ok(size_of_val(&range));
    if read { change(range[0], range[1], call) } else { call() }
}
