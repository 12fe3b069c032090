//! Last stage: what the machine made of the merges, written down.

use numerge_stable_tree::{Guard, Handle, Kpfn, PageId, PageState, rmap};

use crate::core::Core;
use crate::find::Merge;
use crate::judge::{Broken, Candidate};
use crate::machine::Outcome;
use crate::world::World;

/// Records written under one guard.
const PIN_PAGES: usize = 512;

/// Takes pages that were written to out of the rmap lists of their frames (S3.6).
pub(crate) fn record_broken(core: &Core, world: &World, reader: &Handle, broken: &[Broken]) {
    for some in broken.chunks(PIN_PAGES) {
        let guard = reader.pin();
        for Broken { page, kpfn, left } in some {
            unshare(core, world, &guard, *page, *kpfn, *left);
            world.program(*page).broken.add(1);
        }
    }
    core.tally.broken.add(broken.len() as u64);
}

/// Ends one page's share of a frame.
pub(crate) fn unshare(
    core: &Core,
    world: &World,
    guard: &Guard<'_>,
    page: PageId,
    kpfn: Kpfn,
    left: PageState,
) {
    let last = rmap::unlink(core.rmap_head(kpfn), &world.pages, kpfn, page, left);
    if last {
        core.tally.shared.sub(1);
    } else {
        core.tally.sharing.sub(1);
    }
    world.program(page).merged.sub(1);
    core.forest.give_up(guard, kpfn);
}

/// Records merges left out for want of mappings.
pub(crate) fn record_over_budget(core: &Core, world: &World, reader: &Handle, merges: &[Merge]) {
    for some in merges.chunks(PIN_PAGES) {
        let guard = reader.pin();
        for merge in some {
            give_back(core, &guard, merge);
            world.record(merge.page).set(PageState::OverBudget(merge.fingerprint));
        }
    }
    core.tally.over_budget.add(merges.len() as u64);
    core.tally.refused.add(merges.len() as u64);
}

/// Gives up the share reserved for a merge that did not come about.
pub(crate) fn give_back(core: &Core, guard: &Guard<'_>, merge: &Merge) {
    if let Some(kpfn) = merge.kpfn {
        core.forest.give_up(guard, kpfn);
    }
}

/// Records what became of merges. Gives the pages that had their frame's fingerprint and not its
/// content: they are candidates still.
pub(crate) fn record(
    core: &Core,
    world: &World,
    reader: &Handle,
    merges: &[Merge],
    outcomes: &[Outcome],
) -> Vec<Candidate> {
    let mut collided = Vec::new();
    let outcomes = outcomes.iter().copied().chain(std::iter::repeat(Outcome::Pinned));
    let done: Vec<(Merge, Outcome)> = merges.iter().copied().zip(outcomes).collect();
    for some in done.chunks(PIN_PAGES) {
        let mut differ = Vec::new();
        let guard = reader.pin();
        for (merge, outcome) in some {
            if !matches!(outcome, Outcome::Merged | Outcome::Late) {
                give_back(core, &guard, merge);
            }
            match outcome {
                Outcome::Late => {
                    world.record(merge.page).set(PageState::Busy);
                    core.late.add(*merge);
                }
                Outcome::Merged => merged(core, world, merge),
                Outcome::Differs => differ.push(*merge),
                Outcome::Pinned | Outcome::Refused => {
                    world.record(merge.page).set(PageState::Held(merge.fingerprint));
                    core.tally.held.add(1);
                    core.tally.refused.add(1);
                }
                Outcome::Deferred => {
                    world.record(merge.page).set(PageState::Seen(merge.fingerprint));
                    core.tally.deferred.add(1);
                    let (region, index) = world.locate(merge.page);
                    region.pending.add(index);
                }
                Outcome::Exhausted => {
                    world.record(merge.page).set(PageState::OverBudget(merge.fingerprint));
                    core.tally.over_budget.add(1);
                    core.tally.refused.add(1);
                }
                Outcome::Gone => {
                    world.record(merge.page).set(PageState::Untouched);
                    core.tally.touched.sub(1);
                    world.program(merge.page).touched.sub(1);
                }
            }
        }
        drop(guard);
        collided.extend(differ.into_iter().filter_map(|merge| changed(core, world, merge)));
    }
    collided.sort_unstable();
    collided
}

fn merged(core: &Core, world: &World, merge: &Merge) {
    core.tally.merged.add(1);
    let Some(kpfn) = merge.kpfn else {
        world.program(merge.page).zero.add(1);
        world.record(merge.page).set(PageState::Zero);
        core.tally.zero.add(1);
        return;
    };
    // First: once it is linked, its share may be ended by another thread. Whether it is the frame's first is
    // not known before, so that it counts as both for a moment rather than as less than none.
    world.program(merge.page).merged.add(1);
    core.tally.shared.add(1);
    core.tally.sharing.add(1);
    if rmap::link(core.rmap_head(kpfn), &world.pages, kpfn, merge.page) {
        core.tally.sharing.sub(1);
    } else {
        core.tally.shared.sub(1);
    }
}

/// A page that differed from its frame: it changed since it was looked at, as a rule. If it still
/// has the fingerprint, two contents have the same one.
fn changed(core: &Core, world: &World, merge: Merge) -> Option<Candidate> {
    let Merge { page, fingerprint, tree, node, .. } = merge;
    if world.fingerprints(&[page], &core.prints) == [Some(fingerprint)] {
        core.tally.collisions.add(1);
        // It may be another shard's: until this merge is done with it, nobody else's.
        world.record(page).set(PageState::Busy);
        return Some(Candidate { tree, fingerprint, page, node });
    }
    world.look_again(page);
    None
}
