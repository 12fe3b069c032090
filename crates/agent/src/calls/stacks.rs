//! Memory that the kernel writes to when a thread ends, or waits for a lock.
//!
//! Where a thread's identifier is, or its list of robust locks, is cleared by the kernel at its end. A thread
//! that is ending does not wait for a page that is frozen: the kernel gives up the write, and who waits for
//! the thread waits for ever. The C library has both at the end of a thread's stack. The stacks that it maps
//! itself are never merged; those that the program gives it must not be.

use super::advice::give_back;
use crate::agent::{enter, get, keeping_errno};
use crate::known::{self, may_concern};
use crate::sys;
use numerge_engine::machine::PAGE_SIZE;

/// A range is for a thread's stack, or where its end is told, or a lock that the kernel writes to, until it
/// is mapped anew.
pub fn keep_for_thread(start: usize, len: usize) {
    let first = start - start % PAGE_SIZE;
    let pages = len.checked_add(start - first).and_then(|len| sys::pages(first, len));
    let Some(pages) = pages.filter(|_| get().is_some()) else {
        return;
    };
    known::disown(&pages);
    if may_concern(&pages) {
        // Answers what a call would; there is none.
        let _ = keeping_errno(|| {
            if let Some(here) = enter() {
                // What there is no memory for stays where it is, but is not frozen any more.
                give_back(here, &pages)?;
            }
            Ok(0)
        });
    }
}
