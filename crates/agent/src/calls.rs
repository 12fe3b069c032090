//! What the program's calls have to be, so that none has another meaning than it had without us.
//!
//! Each function here stands in for a system call and answers as that does. Without an engine's socket:
//! some loads, and the system call. With one, calls that make private anonymous mappings, and all calls on
//! addresses between the first and the last of those, are made under the lock under which memory is merged,
//! after whatever has to come before it:
//!
//! | call | on what is merged |
//! | --- | --- |
//! | munmap, MAP_FIXED over it | nothing; then the engine is told |
//! | MADV_DONTNEED | then fresh anonymous memory is put there |
//! | MADV_FREE | left as it is, which that call allows |
//! | MADV_REMOVE | refused as for anonymous memory |
//! | advice that leaves mappings as they are | nothing |
//! | all others | given back to anonymous memory first, and let go of |
//!
//! What is let go of is looked at again afterwards, and registered if it still can be.

use std::ops::Range;

use numerge_engine::machine::Vpn;

use crate::agent::{self, Here, Unasked, enter, keeping_errno};
use crate::space::{hull, may_concern};
use crate::sys::{self, Answer, register};

/// Tries a call once more if the program had too few mappings because of us.
fn relieved(call: impl Fn() -> Answer) -> Answer {
    keeping_errno(|| match call() {
        Err(libc::ENOMEM) if agent::get().is_some() && agent::relieve() => call(),
        answer => answer,
    })
}

/// The pages, if anything is known that may lie there.
fn concerned(start: usize, len: usize) -> Option<Range<Vpn>> {
    sys::pages(start, len).filter(|pages| !pages.is_empty() && may_concern(pages))
}

/// Makes a call that changes the mappings of `pages`, which are anonymous memory for it.
fn change(pages: &Range<Vpn>, call: impl Fn() -> Answer) -> Answer {
    relieved(|| {
        let Some(here) = enter() else {
            return call();
        };
        let mut here = here.let_go(pages)?;
        let answer = call();
        here.note(pages);
        answer
    })
}

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
    let is_wanted = agent::is_wanted(len, flags);
    let over = if flags & libc::MAP_FIXED == 0 { None } else { concerned(at, len) };
    if !is_own && over.is_none() {
        let made = relieved(call)?;
        // Something may have been there that was unmapped unseen.
        if let Some(pages) = concerned(made, len)
            && let Some(mut here) = enter()
        {
            here.gone(&pages);
        }
        return Ok(made);
    }
    relieved(|| {
        let Some(mut here) = enter() else {
            return call();
        };
        let made = call().inspect_err(|_| here.gone_if_unmapped(over.as_ref()))?;
        if let Some(pages) = sys::pages(made, len) {
            here.gone(&pages);
            if is_own {
                here.made(&pages);
            }
            if is_wanted {
                here.want(&pages);
                here.start(false);
            }
        }
        Ok(made)
    })
}

/// munmap(2).
///
/// # Safety
/// As [`mmap`].
pub unsafe fn munmap(start: usize, len: usize) -> Answer {
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(libc::SYS_munmap, &[start, len]) };
    let Some(pages) = concerned(start, len) else {
        return relieved(call);
    };
    relieved(|| {
        let Some(mut here) = enter() else {
            return call();
        };
        let answer = call()?;
        here.gone(&pages);
        Ok(answer)
    })
}

/// mprotect(2), pkey_mprotect(2).
///
/// # Safety
/// As [`mmap`].
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
    match concerned(start, len) {
        Some(pages) => change(&pages, call),
        None => relieved(call),
    }
}

/// mlock(2), mlock2(2), munlock(2): `number`, with the arguments that come after the range.
///
/// # Safety
/// As [`mmap`].
pub unsafe fn lock(number: libc::c_long, start: usize, len: usize, flags: Option<u32>) -> Answer {
    let flags = flags.map_or(0, |flags| usize::try_from(flags).unwrap_or(usize::MAX));
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(number, &[start, len, flags]) };
    // These take any address: the page it is in is meant.
    let page = start - start % numerge_engine::machine::PAGE_SIZE;
    match len.checked_add(start - page).and_then(|len| concerned(page, len)) {
        Some(pages) => change(&pages, call),
        None => keeping_errno(call),
    }
}

/// mlockall(2), munlockall(2).
///
/// # Safety
/// As [`mmap`].
pub unsafe fn lock_all(number: libc::c_long, flags: i32) -> Answer {
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(number, &[register(flags)]) };
    match Some(hull()).filter(may_concern) {
        Some(pages) => change(&pages, call),
        None => keeping_errno(call),
    }
}

/// mbind(2).
///
/// # Safety
/// As [`mmap`].
pub unsafe fn mbind(arguments: [usize; 6]) -> Answer {
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(libc::SYS_mbind, &arguments) };
    match concerned(arguments[0], arguments[1]) {
        Some(pages) => change(&pages, call),
        None => relieved(call),
    }
}

/// madvise(2).
///
/// # Safety
/// As [`mmap`].
pub unsafe fn madvise(start: usize, len: usize, advice: i32) -> Answer {
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(libc::SYS_madvise, &[start, len, register(advice)]) };
    if advice == libc::MADV_MERGEABLE && agent::get().is_some() {
        return keeping_errno(|| want(start, len));
    }
    let Some(pages) = concerned(start, len) else {
        return relieved(call);
    };
    match advice {
        libc::MADV_UNMERGEABLE => keeping_errno(|| unwant(start, len, &pages)),
        libc::MADV_DONTNEED | MADV_DONTNEED_LOCKED | libc::MADV_FREE => {
            relieved(|| enter().map_or_else(call, |here| drop_content(here, &pages, advice)))
        }
        libc::MADV_REMOVE => keeping_errno(|| match enter() {
            Some(here) if here.next_file(&pages).is_some() => Err(libc::EINVAL),
            _ => call(),
        }),
        libc::MADV_WIPEONFORK => relieved(|| {
            let Some(here) = enter() else {
                return call();
            };
            let mut here = here.let_go(&pages)?;
            // The kernel has this for anonymous memory only.
            if here.next_file(&pages).is_some() {
                return Err(libc::ENOMEM);
            }
            let answer = call();
            here.note(&pages);
            answer
        }),
        // What is registered has none of the properties that the first would take away.
        libc::MADV_NORMAL
        | libc::MADV_WILLNEED
        | libc::MADV_COLD
        | libc::MADV_PAGEOUT
        | libc::MADV_POPULATE_READ
        | libc::MADV_POPULATE_WRITE => relieved(call),
        _ => change(&pages, call),
    }
}

/// process_madvise(2) on the process itself; None if it is not that.
///
/// # Safety
/// As [`mmap`].
pub unsafe fn process_madvise(
    process: i32,
    ranges: *const libc::iovec,
    count: usize,
    advice: i32,
    flags: u32,
) -> Option<Answer> {
    // The kernel takes no more.
    const MOST: usize = 1024;
    if agent::get().is_none() || flags != 0 || count > MOST || !sys::is_this_process(process) {
        return None;
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
    }
    Ok(0)
}

fn unwant(start: usize, len: usize, pages: &Range<Vpn>) -> Answer {
    sys::check_mapped(start, len)?;
    if let Some(mut here) = enter() {
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
    }
    Ok(0)
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

fn bytes(pages: &Range<Vpn>) -> [usize; 2] {
    let address = |page: Vpn| {
        usize::try_from(page.0).unwrap_or(usize::MAX) * numerge_engine::machine::PAGE_SIZE
    };
    [address(pages.start), address(pages.end) - address(pages.start)]
}

/// mremap(2).
///
/// # Safety
/// As [`mmap`].
pub unsafe fn mremap(old: usize, old_len: usize, new_len: usize, flags: i32, new: usize) -> Answer {
    let is_fixed = flags & libc::MREMAP_FIXED != 0;
    // Otherwise the program need not have passed it.
    let new = if is_fixed { new } else { 0 };
    let arguments = [old, old_len, new_len, register(flags), new];
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(libc::SYS_mremap, &arguments) };
    let over = if is_fixed { concerned(new, new_len) } else { None };
    let (Some(from), Some(length)) = (concerned(old, old_len), sys::pages(0, new_len)) else {
        let Some(over) = over else {
            return relieved(call);
        };
        return relieved(|| {
            let Some(mut here) = enter() else {
                return call();
            };
            let answer = call().inspect_err(|_| here.gone_if_unmapped(Some(&over)))?;
            here.gone(&over);
            Ok(answer)
        });
    };
    let is_cut = flags & (libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP) == 0
        && (1..=from.end.0 - from.start.0).contains(&length.end.0);
    let tail = from.start.plus(length.end.0).min(from.end)..from.end;
    relieved(|| {
        let Some(mut here) = enter() else {
            return call();
        };
        if is_cut {
            // What is cut off is unmapped, the rest stays as it is.
            let answer = call()?;
            here.gone(&tail);
            return Ok(answer);
        }
        let (is_wanted, is_own) = (here.wants_any(&from), here.owns(&from));
        let mut here = here.let_go(&from)?;
        let whole = if here.next_file(&from).is_none() { call() } else { Err(libc::EFAULT) };
        let made = match whole {
            // It lies in several mappings, which may be because of us.
            Err(libc::EFAULT) if is_own && flags & libc::MREMAP_DONTUNMAP == 0 => {
                // SAFETY: the program's own call.
                unsafe { move_in_pieces(&mut here, &from, &(Vpn(0)..length.end), flags, new) }
            }
            Err(libc::EFAULT) if here.next_file(&from).is_some() => Err(libc::ENOMEM),
            made => made.map(|made| (made, Vec::new())),
        };
        let (made, moved) = match made {
            Ok(made) => made,
            Err(error) => {
                here.note(&from);
                here.gone_if_unmapped(over.as_ref());
                return Err(error);
            }
        };
        let Some(pages) = sys::pages(made, new_len) else { return Ok(made) };
        if !overlap(&pages, &from) {
            here.gone(&pages);
        }
        for (piece, to) in moved {
            here.moved(&piece, to);
        }
        if flags & libc::MREMAP_DONTUNMAP == 0 && !overlap(&pages, &from) {
            here.gone(&from);
        }
        if is_own {
            here.made(&pages);
        }
        if is_wanted {
            here.want(&pages);
        }
        Ok(made)
    })
}

/// Pages, and where they are now.
type Moved = Vec<(Range<Vpn>, Vpn)>;

fn overlap(a: &Range<Vpn>, b: &Range<Vpn>) -> bool {
    a.start < b.end && b.start < a.end
}

/// mremap of memory that lies in several mappings, as the kernel does it for one: where that is, and what
/// was moved there, page by page.
///
/// # Safety
/// As [`mmap`].
unsafe fn move_in_pieces(
    here: &mut Here,
    from: &Range<Vpn>,
    length: &Range<Vpn>,
    flags: i32,
    new: usize,
) -> Result<(usize, Moved), i32> {
    let ([start, len], [_, new_len]) = (bytes(from), bytes(length));
    let rest = new_len.saturating_sub(len);
    let empty = |at: usize, len: usize, protection: i32, flags: i32| {
        let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let arguments = [at, len, register(protection), register(flags), usize::MAX, 0];
        // SAFETY: new memory, at an address that is free or the program's to give away.
        unsafe { sys::call(libc::SYS_mmap, &arguments) }
    };
    let unmap = |at: usize, len: usize| {
        // SAFETY: what was reserved here, or what the program wants cut off.
        unsafe { sys::call(libc::SYS_munmap, &[at, len]) }
    };
    let readable_writable = libc::PROT_READ | libc::PROT_WRITE;
    if flags & libc::MREMAP_MAYMOVE == 0 {
        // Only what is behind it can be taken.
        let taken = empty(start + len, rest, readable_writable, libc::MAP_FIXED_NOREPLACE);
        return taken.map(|_| (start, Vec::new())).map_err(|_| libc::ENOMEM);
    }
    let errno = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::ENOMEM);
    let kept = from.start..from.end.min(from.start.plus(length.end.0));
    let pieces = numerge_linux::mappings_in(&kept).map_err(errno)?;
    if pieces.iter().map(|piece| piece.end.0 - piece.start.0).sum::<u64>()
        != kept.end.0 - kept.start.0
    {
        return Err(libc::EFAULT);
    }
    let to = if flags & libc::MREMAP_FIXED == 0 {
        empty(0, new_len, libc::PROT_NONE, libc::MAP_NORESERVE)?
    } else if overlap(from, &sys::pages(new, new_len).ok_or(libc::EINVAL)?) {
        return Err(libc::EINVAL);
    } else {
        empty(new, new_len, libc::PROT_NONE, libc::MAP_NORESERVE | libc::MAP_FIXED)?
    };
    let fixed = register(libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
    let place = |page: Vpn| to + (bytes(&(from.start..page))[1]);
    let mut moved = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let [at, len] = bytes(&piece);
        // SAFETY: the program's own call, on a part of its range, to what was reserved.
        match unsafe { sys::call(libc::SYS_mremap, &[at, len, len, fixed, place(piece.start)]) } {
            Ok(_) => moved.push(piece),
            Err(error) => {
                for piece in moved {
                    let [at, len] = bytes(&piece);
                    // SAFETY: back to where it was, which is free.
                    unsafe {
                        sys::call(libc::SYS_mremap, &[place(piece.start), len, len, fixed, at])?
                    };
                }
                unmap(to, new_len)?;
                return Err(error);
            }
        }
    }
    if rest > 0 {
        empty(to + len, rest, readable_writable, libc::MAP_FIXED)?;
    } else if len > new_len {
        unmap(start + new_len, len - new_len)?;
    }
    let page = |piece: &Range<Vpn>| sys::pages(place(piece.start), 0).map(|pages| pages.start);
    let moved = moved.into_iter().filter_map(|piece| page(&piece).map(|to| (piece, to)));
    let moved = moved.collect();
    here.unnote(from);
    Ok((to, moved))
}

/// Linux 6.4; not in the libc crate.
const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;

/// prctl(2).
///
/// # Safety
/// As [`mmap`].
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
            Ok(agent::wants_all().into())
        }
        PR_SET_MEMORY_MERGE | PR_GET_MEMORY_MERGE => keeping_errno(|| Err(libc::EINVAL)),
        libc::PR_SET_VMA => match concerned(third, fourth) {
            Some(pages) => change(&pages, call),
            None => call(),
        },
        _ => call(),
    }
}

fn set_memory_merge(on: bool) -> Answer {
    let Some(mut here) = enter() else {
        return Ok(0);
    };
    if on {
        agent::set_unasked(Unasked::All);
        here.start(true);
        return Ok(0);
    }
    if agent::wants_all() {
        agent::set_unasked(here.agent.unasked());
        let all = hull();
        here.unwant(&all);
        here.let_go(&all)?;
    }
    Ok(0)
}

/// ioctl(2): a program that wants to have a range's faults gets it as it made it.
///
/// # Safety
/// As [`mmap`].
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
    match concerned(range[0], range[1]).filter(|_| read) {
        Some(pages) => change(&pages, call),
        None => call(),
    }
}
