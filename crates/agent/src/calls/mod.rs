//! What the program's calls have to be, so that none has another meaning than it had without us.
//!
//! Each function here stands in for a system call and answers as that does. Without an engine's socket:
//! a load, and the system call. With one, calls on pages that are not known (see `known`) are a few
//! instructions more; the rest are made under the lock under which memory is merged, after whatever has to
//! come before them:
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

mod advice;
mod attributes;
mod mapping;
mod remap;
mod stacks;

use std::ops::Range;

use numerge_engine::machine::Vpn;

pub(crate) use advice::give_back;
pub use advice::{madvise, process_madvise};
pub use attributes::{ioctl, lock, lock_all, mbind, mprotect, prctl};
pub use mapping::{mmap, munmap, shmat};
pub use remap::mremap;
pub use stacks::keep_for_thread;

use crate::agent::{self, enter, keeping_errno};
use crate::known;
use crate::sys::{self, Answer};

/// Tries a call once more if the program had too few mappings because of us.
fn relieved(call: impl Fn() -> Answer) -> Answer {
    keeping_errno(|| match call() {
        Err(libc::ENOMEM) if agent::get().is_some() && agent::relieve() => call(),
        answer => answer,
    })
}

/// The pages that a call is about, if it is about any.
fn pages_of(start: usize, len: usize) -> Option<Range<Vpn>> {
    sys::pages(start, len).filter(|pages| !pages.is_empty())
}

/// Makes a call at once if the agent has nothing to do with its pages, as is the rule; else it is `concerned`, which
/// makes it where the agent may have, and by which it is also tried once more, as by [`relieved`].
#[inline]
fn at_once(
    pages: &Range<Vpn>,
    call: impl FnOnce() -> Answer,
    concerned: impl Fn() -> Answer,
) -> Answer {
    match known::unless_known(pages, call) {
        Some(Err(libc::ENOMEM)) => {
            keeping_errno(|| if agent::relieve() { concerned() } else { Err(libc::ENOMEM) })
        }
        Some(answer) => answer,
        None => relieved(concerned),
    }
}

/// Makes a call that changes the mappings of a range, which are anonymous memory for it.
#[inline]
fn change(start: usize, len: usize, call: impl Fn() -> Answer) -> Answer {
    match pages_of(start, len) {
        Some(pages) if agent::get().is_some() => {
            at_once(&pages, &call, || change_pages(&pages, &call))
        }
        _ => call(),
    }
}

#[cold]
fn change_pages(pages: &Range<Vpn>, call: impl Fn() -> Answer) -> Answer {
    let Some(here) = enter() else {
        return call();
    };
    let mut here = here.let_go(pages)?;
    let answer = call();
    here.note(pages);
    answer
}

fn bytes(pages: &Range<Vpn>) -> [usize; 2] {
    let address = |page: Vpn| {
        usize::try_from(page.0).unwrap_or(usize::MAX) * numerge_engine::machine::PAGE_SIZE
    };
    [address(pages.start), address(pages.end) - address(pages.start)]
}
