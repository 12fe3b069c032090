//! Calls that make mappings and unmap them.

use std::ops::Range;

use numerge_engine::machine::{PAGE_SIZE, Vpn};

use super::{pages_of, relieved};
use crate::agent::{self, enter};
use crate::known::{self, may_concern};
use crate::sys::{self, Answer, register};
use crate::unasked;

/// mmap(2).
///
/// # Safety
/// What is mapped over is the program's to answer for. So for all functions here.
pub unsafe fn mmap(
    at: usize,
    len: usize,
    protection: i32,
    flags: i32,
    fd: i32,
    offset: usize,
) -> Answer {
    let arguments = [at, len, register(protection), register(flags), register(fd), offset];
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(libc::SYS_mmap, &arguments) };
    if agent::get().is_none() {
        return call();
    }
    let is_own = flags & libc::MAP_TYPE == libc::MAP_PRIVATE && flags & libc::MAP_ANONYMOUS != 0;
    let is_wanted = unasked::is_wanted(len, flags);
    let over = if flags & libc::MAP_FIXED == 0 { None } else { pages_of(at, len) };
    let was_own = over.as_ref().is_some_and(known::disown);
    let answer = relieved(|| {
        if is_wanted || over.as_ref().is_some_and(may_concern) {
            return map_known(call, len, over.as_ref(), is_own, is_wanted);
        }
        let made = call()?;
        if let Some(pages) = pages_of(made, len) {
            // Something may have been there that was unmapped unseen, or is being unmapped. Before it is
            // own, for then it may be wanted.
            if may_concern(&pages)
                && let Some(mut here) = enter()
            {
                here.gone(&pages);
            }
            if is_own {
                known::own(&pages);
            } else {
                known::disown(&pages);
            }
        }
        Ok(made)
    });
    if let Some(over) = over.filter(|_| was_own && answer.is_err()) {
        known::own_again(&over);
    }
    answer
}

/// The same with the lock.
fn map_known(
    call: impl Fn() -> Answer,
    len: usize,
    over: Option<&Range<Vpn>>,
    is_own: bool,
    is_wanted: bool,
) -> Answer {
    let Some(mut here) = enter() else {
        return call();
    };
    let made = call().inspect_err(|_| here.gone_if_unmapped(over))?;
    if let Some(pages) = sys::pages(made, len) {
        here.gone(&pages);
        if is_own {
            known::own(&pages);
        }
        if is_wanted {
            here.want(&pages);
            here.start(false);
        }
    }
    Ok(made)
}

/// munmap(2).
///
/// # Safety
/// As [`mmap`].
pub unsafe fn munmap(start: usize, len: usize) -> Answer {
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(libc::SYS_munmap, &[start, len]) };
    let Some(pages) = pages_of(start, len).filter(|_| agent::get().is_some()) else {
        return call();
    };
    let were_own = known::disown(&pages);
    let answer = relieved(|| {
        if !may_concern(&pages) {
            return call();
        }
        let Some(mut here) = enter() else {
            return call();
        };
        let answer = call()?;
        here.gone(&pages);
        Ok(answer)
    });
    if were_own && answer.is_err() {
        known::own_again(&pages);
    }
    answer
}

/// shmat(2), with the size of the segment if it is known.
///
/// # Safety
/// As [`mmap`].
pub unsafe fn shmat(segment: i32, at: usize, flags: i32, size: Option<usize>) -> Answer {
    let arguments = [register(segment), at, register(flags)];
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(libc::SYS_shmat, &arguments) };
    let Some(size) = size.filter(|_| agent::get().is_some()) else {
        return call();
    };
    let rounded = if flags & libc::SHM_RND == 0 { at } else { at - at % PAGE_SIZE };
    let over = if flags & libc::SHM_REMAP == 0 { None } else { pages_of(rounded, size) };
    let was_own = over.as_ref().is_some_and(known::disown);
    let answer = relieved(|| {
        let made = if let Some(over) = over.as_ref().filter(|over| may_concern(over)) {
            map_known(call, size, Some(over), false, false)
        } else {
            call()
        }?;
        // As in mmap.
        if let Some(pages) = pages_of(made, size) {
            known::disown(&pages);
            if may_concern(&pages)
                && let Some(mut here) = enter()
            {
                here.gone(&pages);
            }
        }
        Ok(made)
    });
    if let Some(over) = over.filter(|_| was_own && answer.is_err()) {
        known::own_again(&over);
    }
    answer
}
