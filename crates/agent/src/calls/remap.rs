//! mremap(2), also of memory that lies in several mappings because of us.

use std::ops::Range;

use numerge_engine::machine::Vpn;

use super::{bytes, pages_of, relieved};
use crate::agent::{self, Here, enter};
use crate::known::{self, may_concern};
use crate::sys::{self, Answer, register};

/// mremap(2).
///
/// # Safety
/// As [`super::mmap`].
pub unsafe fn mremap(old: usize, old_len: usize, new_len: usize, flags: i32, new: usize) -> Answer {
    let is_fixed = flags & libc::MREMAP_FIXED != 0;
    // Otherwise the program need not have passed it.
    let new = if is_fixed { new } else { 0 };
    let arguments = [old, old_len, new_len, register(flags), new];
    // SAFETY: the program's own call.
    let call = || unsafe { sys::call(libc::SYS_mremap, &arguments) };
    if agent::get().is_none() {
        return call();
    }
    let (Some(from), Some(length)) = (pages_of(old, old_len), pages_of(0, new_len)) else {
        // Shared memory mapped once more, or refused.
        return relieved(call);
    };
    let kept = from.start..from.start.plus(length.end.0).min(from.end);
    let over = if is_fixed { pages_of(new, new_len) } else { None };
    let is_own = known::owns(&from);
    let over_was_own = over.as_ref().is_some_and(known::disown);
    // What stays in its place is own all the while: allocators try whether there is room behind it.
    let may_move = flags & libc::MREMAP_MAYMOVE != 0;
    known::disown(&if may_move { from.clone() } else { kept.end..from.end });
    let call_of = Remap { from, length, flags, new, over, is_own };
    let answer = relieved(|| call_of.make(call));
    match answer {
        Ok(made) => {
            if let Some(pages) = pages_of(made, new_len) {
                if is_own {
                    known::own(&pages);
                } else {
                    known::disown(&pages);
                }
            }
            if is_own && flags & libc::MREMAP_DONTUNMAP != 0 {
                known::own(&call_of.from);
            }
        }
        Err(_) => {
            if is_own {
                known::own_again(&kept);
            }
            if let Some(over) = call_of.over.filter(|_| over_was_own) {
                known::own_again(&over);
            }
        }
    }
    answer
}

/// One such call.
struct Remap {
    from: Range<Vpn>,
    /// As many pages as there are to be, from 0.
    length: Range<Vpn>,
    flags: i32,
    /// Where they are to be, if the call says so; else 0.
    new: usize,
    over: Option<Range<Vpn>>,
    is_own: bool,
}

impl Remap {
    fn make(&self, call: impl Fn() -> Answer) -> Answer {
        let over = self.over.as_ref().filter(|over| may_concern(over));
        let unknown = if over.is_none() { known::unless_known(&self.from, &call) } else { None };
        if let Some(answer) = unknown {
            let made = answer?;
            // As in mmap; but what stayed in its place may be wanted by now.
            if let Some(new) = self.new_place(made)
                && may_concern(&new)
                && let Some(mut here) = enter()
            {
                here.gone(&new);
            }
            return Ok(made);
        }
        let Some(here) = enter() else {
            return call();
        };
        if may_concern(&self.from) {
            self.move_known(here, call)
        } else {
            self.move_onto(here, call)
        }
    }

    /// What lies where nothing of it was before.
    fn new_place(&self, made: usize) -> Option<Range<Vpn>> {
        let pages = sys::pages(made, bytes(&self.length)[1])?;
        if overlap(&pages, &self.from) {
            Some(self.from.end..pages.end).filter(|grown| grown.start < grown.end)
        } else {
            Some(pages)
        }
    }

    /// Nothing is known of what is moved.
    fn move_onto(&self, mut here: Here, call: impl Fn() -> Answer) -> Answer {
        let answer = call().inspect_err(|_| here.gone_if_unmapped(self.over.as_ref()))?;
        if let Some(over) = &self.over {
            here.gone(over);
        }
        Ok(answer)
    }

    fn move_known(&self, mut here: Here, call: impl Fn() -> Answer) -> Answer {
        let Self { from, length, flags, .. } = self;
        let is_cut = flags & (libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP) == 0
            && length.end.0 <= from.end.0 - from.start.0;
        if is_cut {
            // What is cut off is unmapped, the rest stays as it is.
            let answer = call()?;
            here.gone(&(from.start.plus(length.end.0)..from.end));
            return Ok(answer);
        }
        let is_wanted = here.wants_any(from);
        let mut here = here.let_go(from)?;
        let whole = if here.next_file(from).is_none() { call() } else { Err(libc::EFAULT) };
        let made = match whole {
            // It lies in several mappings, which may be because of us.
            Err(libc::EFAULT) if self.is_own && flags & libc::MREMAP_DONTUNMAP == 0 => {
                // SAFETY: the program's own call.
                unsafe { move_in_pieces(&mut here, from, length, *flags, self.new) }
            }
            Err(libc::EFAULT) if here.next_file(from).is_some() => Err(libc::ENOMEM),
            made => made.map(|made| (made, Vec::new())),
        };
        let (made, moved) = match made {
            Ok(made) => made,
            Err(error) => {
                here.note(from);
                here.gone_if_unmapped(self.over.as_ref());
                return Err(error);
            }
        };
        let Some(pages) = sys::pages(made, bytes(length)[1]) else { return Ok(made) };
        if moved.is_empty()
            && let Some(new) = self.new_place(made)
        {
            here.gone(&new);
        }
        for (piece, to) in moved {
            here.moved(&piece, to);
        }
        if flags & libc::MREMAP_DONTUNMAP == 0 && !overlap(&pages, from) {
            here.gone(from);
        }
        if is_wanted {
            if self.is_own {
                known::own(&pages);
            }
            here.want(&pages);
        }
        Ok(made)
    }
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
/// As [`super::mmap`].
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
    // What is in file mappings is to be known there.
    let new = sys::pages(to, new_len).ok_or(libc::EINVAL)?;
    here.gone(&new);
    if known::know(&new).is_err() {
        unmap(to, new_len)?;
        return Err(libc::ENOMEM);
    }
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
