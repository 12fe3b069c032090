//! Advice on memory.

use std::ops::Range;

use numerge_engine::machine::Vpn;
use rustix::event::Timespec;

use super::{at_once, bytes, change_pages, pages_of};
use crate::agent::{self, Here, enter, keeping_errno};
use crate::known;
use crate::sys::{self, Answer, register};
use crate::told;

/// madvise(2).
///
/// # Safety
/// As [`super::mmap`].
pub unsafe fn madvise(start: usize, len: usize, advice: i32) -> Answer {
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(libc::SYS_madvise, &[start, len, register(advice)]) };
    if advice == libc::MADV_MERGEABLE && agent::get().is_some() {
        return keeping_errno(|| want(start, len));
    }
    let Some(pages) = pages_of(start, len).filter(|_| agent::get().is_some()) else {
        return call();
    };
    if advice == libc::MADV_DONTFORK && known::next_own(&pages).is_some() {
        known::set_forked(&pages, false);
    }
    let answer = at_once(&pages, call, || advise_concerned(start, len, &pages, advice, call));
    if advice == libc::MADV_DOFORK && answer.is_ok() {
        known::set_forked(&pages, true);
    }
    answer
}

#[cold]
fn advise_concerned(
    start: usize,
    len: usize,
    pages: &Range<Vpn>,
    advice: i32,
    call: impl Fn() -> Answer,
) -> Answer {
    match advice {
        // Other memory may be the kernel's KSM's.
        libc::MADV_UNMERGEABLE if known::may_concern(pages) => unwant(start, len, pages),
        libc::MADV_DONTNEED | MADV_DONTNEED_LOCKED | libc::MADV_FREE => {
            enter().map_or_else(call, |here| drop_content(here, pages, advice))
        }
        libc::MADV_REMOVE => match enter() {
            Some(here) if here.next_file(pages).is_some() => Err(libc::EINVAL),
            _ => call(),
        },
        libc::MADV_WIPEONFORK => {
            let Some(here) = enter() else {
                return call();
            };
            let mut here = here.let_go(pages)?;
            // The kernel has this for anonymous memory only.
            if here.next_file(pages).is_some() {
                return Err(libc::ENOMEM);
            }
            let answer = call();
            here.note(pages);
            answer
        }
        // What is registered has none of the properties that the first would take away.
        libc::MADV_NORMAL
        | libc::MADV_WILLNEED
        | libc::MADV_COLD
        | libc::MADV_PAGEOUT
        | libc::MADV_POPULATE_READ
        | libc::MADV_POPULATE_WRITE => call(),
        libc::MADV_COLLAPSE => collapse(pages, call),
        _ => change_pages(pages, call),
    }
}

/// process_madvise(2) on the process itself; None if it is not that.
///
/// # Safety
/// As [`super::mmap`].
pub unsafe fn process_madvise(
    process: i32,
    ranges: *const libc::iovec,
    count: usize,
    advice: i32,
    flags: u32,
) -> Option<Answer> {
    // The kernel takes no more.
    const MOST: usize = 1024;
    if agent::get().is_none()
        || flags != 0
        || !(1..=MOST).contains(&count)
        || !sys::is_this_process(process)
    {
        return None;
    }
    // Which advice is for this call is the kernel's to say, which it does about no range at all.
    let arguments = [register(process), 0, 0, register(advice), 0];
    // SAFETY: about no memory.
    if let Err(error) = unsafe { sys::call(libc::SYS_process_madvise, &arguments) } {
        return Some(Err(error));
    }
    let mut done = 0;
    for n in 0..count {
        // SAFETY: the program says that there are so many; reading one that is not there is its error.
        let range = unsafe { ranges.add(n).read_unaligned() };
        // SAFETY: the program's own call.
        match unsafe { madvise(range.iov_base.expose_provenance(), range.iov_len, advice) } {
            Ok(_) => done += range.iov_len,
            Err(error) if done == 0 => return Some(Err(error)),
            Err(_) => break,
        }
    }
    Some(Ok(done))
}

/// Linux 5.18; not in the libc crate.
const MADV_DONTNEED_LOCKED: i32 = 24;

fn want(start: usize, len: usize) -> Answer {
    sys::check_mapped(start, len)?;
    let pages = sys::pages(start, len).ok_or(libc::EINVAL)?;
    if !pages.is_empty()
        && let Some(mut here) = enter()
    {
        here.want(&pages);
        here.start(true);
        told::wait(&pages);
    }
    Ok(0)
}

fn unwant(start: usize, len: usize, pages: &Range<Vpn>) -> Answer {
    sys::check_mapped(start, len)?;
    if let Some(here) = enter() {
        give_back(here, pages)?;
    }
    Ok(0)
}

/// Makes `pages` the program's own again, wherever they can be. The program does not want them merged.
pub(crate) fn give_back(mut here: Here, pages: &Range<Vpn>) -> Result<Here, i32> {
    here.unwant(pages);
    let here = here.let_go(pages)?;
    // What was left in a file mapping, or inherited: the kernel copies it where it is.
    let mut at = pages.start;
    while let Some(found) = here.next_file(&(at..pages.end)) {
        at = found.end;
        let arguments = bytes(&found);
        let advice = register(libc::MADV_POPULATE_WRITE);
        // SAFETY: changes no content.
        unsafe { sys::call(libc::SYS_madvise, &[arguments[0], arguments[1], advice]) }
            .map_err(|_| libc::ENOMEM)?;
    }
    Ok(here)
}

/// Makes huge pages of `pages`. The kernel refuses that with EAGAIN while another process looks at one of them,
/// which the engine may be doing until it has heard that they are none of its business any more. What is
/// refused longer, the program would be refused without us too.
fn collapse(pages: &Range<Vpn>, call: impl Fn() -> Answer) -> Answer {
    const TRIES: u32 = 20;
    const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let mut left = TRIES;
    loop {
        let Some(here) = enter() else {
            return call();
        };
        let mut here = here.let_go(pages)?;
        let answer = call();
        left -= 1;
        if answer != Err(libc::EAGAIN) || left == 0 {
            here.note(pages);
            return answer;
        }
        // What is to be told is told without the lock, and nothing is registered that is not noted.
        drop(here);
        // Not the C library's, at which the program's thread may be cancelled.
        let _ = rustix::thread::nanosleep(&PAUSE);
    }
}

/// Drops the content of `pages`, piece by piece in ascending order, and ends where the kernel would.
fn drop_content(mut here: Here, pages: &Range<Vpn>, advice: i32) -> Answer {
    let mut answer = Ok(0);
    let mut at = pages.start;
    while at < pages.end {
        let file = here.next_file(&(at..pages.end)).unwrap_or(pages.end..pages.end);
        let keeps = advice == libc::MADV_FREE;
        for piece in [at..file.start, file.clone()] {
            if piece.is_empty() || (keeps && piece == file) {
                continue;
            }
            let [start, len] = bytes(&piece);
            // SAFETY: the program's own call, on a part of its range.
            match unsafe { sys::call(libc::SYS_madvise, &[start, len, register(advice)]) } {
                Ok(_) => {}
                // A hole: told at the end, when all else is done.
                Err(libc::ENOMEM) => answer = Err(libc::ENOMEM),
                error => return error,
            }
        }
        if !keeps && !file.is_empty() {
            put_fresh(&mut here, &file)?;
        }
        at = file.end;
    }
    answer
}

fn put_fresh(here: &mut Here, pages: &Range<Vpn>) -> Result<(), i32> {
    let errno = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::ENOMEM);
    if let Some(client) = here.client() {
        client.memory.discard(&here.held, pages).map_err(errno)?;
    }
    here.discard_loose(pages).map_err(errno)?;
    here.leave_engine(pages);
    here.note(pages);
    Ok(())
}
