//! What any thread asks about pages without the lock: whether the program made them, and whether the agent
//! has to do with them. So a call on other memory costs a few instructions more than without the agent.
//!
//! **Own** pages are private anonymous mappings that the program made by calls that were seen, and so will
//! be those that unmap them. What else the program offers may be the C library's, which unmaps it unseen.
//! Pages are disowned before a call that may unmap them, and become own after one that has mapped them: at
//! no time is anything own that is not the program's.
//!
//! **Known** pages are those that were wanted since they were mapped. All else that is known of pages, such
//! as that they are merged, is known of these only.
//!
//! What the program does to pages that are not known is done without the lock, while another thread may be
//! about to want them. That is sound in two ways:
//!
//! - What may unmap pages disowns them, and looks then whether they are known. Who wants pages makes them
//!   known, and looks then whether they are own. Between is a fence on both sides. So if both are at it at
//!   once, the former finds them known, or the latter finds that they are not own, and leaves them alone.
//! - What changes pages in another way, or drops their content, is counted while it is at it
//!   ([`unless_known`]). Pages that became known are registered only after every such call that may not
//!   have seen that is over ([`all_have_passed`]).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use numerge_engine::machine::Vpn;

use crate::page_set::{OutOfMemory, PageSet};
use crate::sys::{self, Answer};

static OWN: PageSet = PageSet::new();
static KNOWN: PageSet = PageSet::new();
/// Own pages that a fork's child has not (MADV_DONTFORK).
static UNFORKED: PageSet = PageSet::new();
/// Whether there ever were any.
static ANY_UNFORKED: AtomicBool = AtomicBool::new(false);

/// From the first page that ever was known to the last; empty at first. Grows only.
static HULL_START: AtomicU64 = AtomicU64::new(u64::MAX);
static HULL_END: AtomicU64 = AtomicU64::new(0);

/// All addresses there may be.
pub(crate) const EVERYTHING: Range<Vpn> = Vpn(0)..Vpn(1 << 36);

/// Whether the agent may have to do with any of these pages.
#[inline]
pub(crate) fn may_concern(pages: &Range<Vpn>) -> bool {
    let hull = hull();
    let within = pages.start.max(hull.start)..pages.end.min(hull.end);
    within.start < within.end && KNOWN.has_any(&within)
}

/// All known pages, from the first to the last.
pub(crate) fn hull() -> Range<Vpn> {
    // SeqCst: as in Passing::begin().
    Vpn(HULL_START.load(Ordering::SeqCst))..Vpn(HULL_END.load(Ordering::SeqCst))
}

/// Pages are known from now on. Only by who holds the lock.
///
/// # Errors
/// If there is no memory to remember them.
pub(crate) fn know(pages: &Range<Vpn>) -> Result<(), OutOfMemory> {
    KNOWN.insert(pages)?;
    HULL_START.fetch_min(pages.start.0, Ordering::SeqCst);
    HULL_END.fetch_max(pages.end.0, Ordering::SeqCst);
    // With the fence in disown(), and with Passing::begin().
    fence(Ordering::SeqCst);
    Ok(())
}

/// Pages are unmapped, or something else, and nothing is known of them. Only by who holds the lock.
pub(crate) fn forget(pages: &Range<Vpn>) {
    // What can't be forgotten for want of memory stays known, which costs no more than time.
    let _ = KNOWN.remove(pages);
}

/// The program has made a private anonymous mapping.
pub(crate) fn own(pages: &Range<Vpn>) {
    // What can't be remembered for want of memory is not merged.
    let _ = OWN.insert(pages);
}

/// Pages may be unmapped by the next call. Gives whether all of them were own.
pub(crate) fn disown(pages: &Range<Vpn>) -> bool {
    let were_own = owns(pages);
    OWN.remove_at_least(pages);
    // Relaxed: the program orders its own madvise with its own munmap.
    if ANY_UNFORKED.load(Ordering::Relaxed) {
        // Its pages are taken for what a child has not: they are not merged there.
        let _ = UNFORKED.remove(pages);
    }
    // With the fence in know().
    fence(Ordering::SeqCst);
    were_own
}

/// The call failed that might have unmapped these pages, all of which were own.
pub(crate) fn own_again(pages: &Range<Vpn>) {
    if sys::are_mapped(pages) {
        own(pages);
    }
}

/// Whether the program made all of these pages.
pub(crate) fn owns(pages: &Range<Vpn>) -> bool {
    OWN.has_all(pages)
}

/// The first of these pages that the program made.
pub(crate) fn next_own(pages: &Range<Vpn>) -> Option<Range<Vpn>> {
    OWN.next_in(pages)
}

/// A fork's child will have these pages, or not. Before the program says so to the kernel, or after, so
/// that at no time a child is thought to have pages that it has not.
pub(crate) fn set_forked(pages: &Range<Vpn>, forked: bool) {
    if !forked {
        ANY_UNFORKED.store(true, Ordering::Relaxed); // as in disown()
        if UNFORKED.insert(pages).is_err() {
            OWN.remove_at_least(pages);
        }
    } else if ANY_UNFORKED.load(Ordering::Relaxed) {
        // as in disown()
        let _ = UNFORKED.remove(pages);
    }
}

/// In a fork's child, before anything else.
pub(crate) fn after_in_child() {
    for lane in &LANES {
        lane.0.store(0, Ordering::Relaxed); // alone in this process
    }
    disown_unforked();
}

fn disown_unforked() {
    let mut at = EVERYTHING.start;
    while ANY_UNFORKED.load(Ordering::Relaxed) // alone in this process
        && let Some(found) = UNFORKED.next_in(&(at..EVERYTHING.end))
    {
        OWN.remove_at_least(&found);
        at = found.end;
    }
}

/// Counts of calls under way, on lines of their own, so that threads seldom share one.
static LANES: [Lane; LANE_COUNT] = [const { Lane(AtomicU32::new(0)) }; LANE_COUNT];
const LANE_COUNT: usize = 64;

#[repr(align(64))]
struct Lane(AtomicU32);

struct Passing(&'static Lane);

impl Passing {
    #[inline]
    fn begin() -> Self {
        // Threads' stacks are apart.
        let here = 0_u8;
        let place = (&raw const here).addr() >> 16;
        let lane = &LANES[(place ^ (place >> 6)) % LANE_COUNT];
        // SeqCst, as all loads that ask what is known, and so without a fence, which costs more than they: a load
        // that does not see what know() has stored comes before the fence there in the one order of all of them, and
        // this before it, so that all_have_passed(), after the fence, sees this call.
        lane.0.fetch_add(1, Ordering::SeqCst);
        Self(lane)
    }
}

impl Drop for Passing {
    #[inline]
    fn drop(&mut self) {
        // Release, with the acquire of all_have_passed(): the call was made before.
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

/// Makes a call that may do anything to these pages but unmap them, unless they are known: then None.
#[inline]
pub(crate) fn unless_known(pages: &Range<Vpn>, call: impl FnOnce() -> Answer) -> Option<Answer> {
    let _passing = Passing::begin();
    (!may_concern(pages)).then(call)
}

/// Whether all calls are over that may not have seen what is known by now. Looks `tries` times, for a
/// call takes microseconds where it does not take long.
pub(crate) fn all_have_passed(tries: u32) -> bool {
    // With Passing::begin().
    fence(Ordering::SeqCst);
    LANES.iter().all(|lane| {
        // Who comes into a lane after this does no harm, so each need be empty but once.
        (0..tries).any(|tried| {
            if tried > 0 {
                std::thread::yield_now();
            }
            // Acquire, with the release of who ends.
            lane.0.load(Ordering::Acquire) == 0
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_call_under_way_is_waited_for_and_one_on_known_pages_is_not_made() {
        let pages = Vpn(0x7000_0000)..Vpn(0x7000_0010);
        assert!(all_have_passed(1));
        let (begun, wait_begun) = mpsc::channel();
        let (end, wait_end) = mpsc::channel();
        std::thread::scope(|scope| {
            let within = pages.clone();
            scope.spawn(move || {
                let made = unless_known(&within, || {
                    begun.send(()).expect("somebody waits");
                    wait_end.recv().expect("told to end");
                    Ok(7)
                });
                assert_eq!(made, Some(Ok(7)));
            });
            wait_begun.recv().expect("begun");
            know(&pages).expect("memory");
            assert!(!all_have_passed(3), "the call may not have seen them");
            end.send(()).expect("it waits");
        });
        assert!(all_have_passed(1));
        assert_eq!(unless_known(&(pages.start..pages.start.plus(1)), || Ok(0)), None);
        assert!(unless_known(&(pages.end..pages.end.plus(1)), || Ok(0)).is_some());
        forget(&pages);
        assert!(unless_known(&pages, || Ok(0)).is_some());
    }

    #[test]
    fn a_child_does_not_own_what_it_has_not() {
        let pages = Vpn(0x7100_0000)..Vpn(0x7100_0010);
        let without = Vpn(0x7100_0004)..Vpn(0x7100_0006);
        own(&pages);
        set_forked(&pages, false);
        set_forked(&without, true);
        set_forked(&without, false);
        set_forked(&(pages.start..without.start), true);
        set_forked(&(without.end..pages.end), true);
        assert!(owns(&pages));
        disown_unforked();
        assert!(!owns(&without));
        assert!(owns(&(pages.start..without.start)) && owns(&(without.end..pages.end)));
        disown(&pages);
    }
}
