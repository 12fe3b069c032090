//! Fourth stage: new frames for the groups that need them, filled and in the stable tree.
//!
//! Frames are numbered in the order of the first pages they are for, so that pages side by side get
//! frames side by side, in this program and in the next that holds the same run; and the frames of
//! one content lie side by side, so that a run of equal pages can be mapped as one piece too.

use std::ops::Range;

use numerge_stable_tree::{Fingerprint, Handle, Kpfn, PageId, PageState, Refused, TreeId};
use rayon::prelude::*;

use crate::core::Core;
use crate::find::{Group, Merge};
use crate::machine::{PAGE_SIZE, READ_PAGES};
use crate::world::World;

/// A group and its frames.
struct Supplied {
    group: Group,
    frames: Vec<Kpfn>,
    filled: bool,
}

/// Gives each group its frames and appends what is to be merged to `merges`. Groups that can't have
/// any are put back.
pub(crate) fn supply(
    core: &Core,
    world: &World,
    reader: &Handle,
    mut groups: Vec<Group>,
    merges: &mut Vec<Merge>,
) {
    groups.sort_unstable_by_key(|group| (group.node, group.pages[0]));
    let mut supplied = allocate(core, world, groups);
    for some in supplied.chunk_by_mut(|a, b| a.group.node == b.group.node) {
        core.pool(some[0].group.node).install(|| {
            some.par_chunks_mut(READ_PAGES).for_each(|some| fill(core, world, some));
        });
    }
    let mut unused = Vec::new();
    for Supplied { group, frames, filled } in supplied {
        if filled {
            publish(core, world, reader, &group, &frames, merges);
        } else {
            group.pages.iter().for_each(|page| world.look_again(*page));
            unused.extend(frames);
        }
    }
    if !unused.is_empty() {
        core.frames.free(&unused);
    }
}

/// Has pages that could not be merged tried again by the next scan.
fn hold(core: &Core, world: &World, pages: &[PageId], fingerprint: Fingerprint) {
    for &page in pages {
        world.record(page).set(PageState::Held(fingerprint));
        let (region, index) = world.locate(page);
        region.pending.add(index);
    }
    core.tally.held.add(pages.len() as u64);
}

/// Takes frames from the pools, as many in one piece as there are.
fn allocate(core: &Core, world: &World, groups: Vec<Group>) -> Vec<Supplied> {
    let mut needed = vec![0_u64; core.nids.len()];
    for group in &groups {
        needed[usize::from(group.node)] += group.frames as u64;
    }
    let mut pieces: Vec<Range<Kpfn>> = vec![Kpfn(0)..Kpfn(0); core.nids.len()];
    let mut supplied = Vec::with_capacity(groups.len());
    for group in groups {
        let node = usize::from(group.node);
        let mut frames = Vec::with_capacity(group.frames);
        while frames.len() < group.frames {
            let piece = &mut pieces[node];
            if piece.start == piece.end {
                match core.frames.allocate(core.nids[node], needed[node]) {
                    Ok(more) => *piece = more,
                    Err(_) => break,
                }
            }
            frames.push(piece.start);
            piece.start = piece.start.plus(1);
            needed[node] = needed[node].saturating_sub(1).max(1);
        }
        if frames.len() == group.frames {
            supplied.push(Supplied { group, frames, filled: false });
        } else {
            core.tally.frames_refused.add(group.frames as u64);
            hold(core, world, &group.pages, group.fingerprint);
            if !frames.is_empty() {
                core.frames.free(&frames);
            }
        }
    }
    for piece in pieces {
        let rest: Vec<Kpfn> = (piece.start.0..piece.end.0).map(Kpfn).collect();
        if !rest.is_empty() {
            core.frames.free(&rest);
        }
    }
    supplied
}

/// Copies a page of each group to its frames. The copy counts, not the page: it is what the
/// fingerprint must be right for, since the page may change while it is copied.
fn fill(core: &Core, world: &World, some: &mut [Supplied]) {
    let firsts: Vec<PageId> = some.iter().map(|supplied| supplied.group.pages[0]).collect();
    world.read(&firsts, |at, content| some[at].fill(core, content));
    for supplied in some {
        for other in 1..supplied.group.pages.len() {
            if !supplied.filled {
                let page = supplied.group.pages[other];
                world.read(&[page], |_, content| supplied.fill(core, content));
            }
        }
    }
}

impl Supplied {
    /// Writes the content to the frames if it is what they are for.
    fn fill(&mut self, core: &Core, content: &[u8; PAGE_SIZE]) {
        if core.prints.of(content) == self.group.fingerprint {
            self.frames.iter().for_each(|kpfn| core.frames.write(*kpfn, content));
            self.filled = true;
        }
    }
}

/// Puts a group's frames in the stable tree, each with the shares of the pages to be mapped to it.
fn publish(
    core: &Core,
    world: &World,
    reader: &Handle,
    group: &Group,
    frames: &[Kpfn],
    merges: &mut Vec<Merge>,
) {
    let &Group { tree, node, fingerprint, .. } = group;
    let merge = |(page, kpfn)| Merge { page, fingerprint, kpfn: Some(kpfn), tree, node };
    for (place, &kpfn) in frames.iter().enumerate() {
        let pages: Vec<PageId> =
            group.pages.iter().copied().skip(place).step_by(frames.len()).collect();
        let shares = u32::try_from(pages.len()).expect("no more than the sharing limit");
        core.forest.create(kpfn, shares);
        let place = insert(core, reader, group, kpfn, shares);
        if let Place::Inserted = place {
            if shares < core.terms().limit {
                wake_waiting(core, world, tree, fingerprint);
            }
            merges.extend(pages.into_iter().map(|page| merge((page, kpfn))));
            continue;
        }
        let guard = reader.pin();
        for _ in &pages {
            core.forest.give_up(&guard, kpfn);
        }
        match place {
            Place::Elsewhere(shares) => {
                let kpfns =
                    shares.into_iter().flat_map(|(kpfn, count)| (0..count).map(move |_| kpfn));
                merges.extend(pages.into_iter().zip(kpfns).map(merge));
            }
            _ => hold(core, world, &pages, fingerprint),
        }
    }
}

/// Has a page that waits for a partner looked up again, now that there is a frame with room for it: its
/// shard may have looked for one just before. The other side is in `find`.
fn wake_waiting(core: &Core, world: &World, tree: TreeId, fingerprint: Fingerprint) {
    if core.nids.len() > 1
        && let Some(page) = world.unstable(tree).take(&world.pages, fingerprint)
    {
        world.look_again(page);
    }
}

/// What became of a new frame.
enum Place {
    /// It is in the tree.
    Inserted,
    /// It is not needed: so many shares of other frames were to be had.
    Elsewhere(Vec<(Kpfn, u32)>),
    /// It can't be inserted: there are too many contents of its fingerprint, or its range is being
    /// taken offline.
    Refused,
}

/// Inserts a frame under its fingerprint: as a dup of the entry that has its content, else as an
/// entry of its own. Where another shard was quicker, and its frames have room for all the sharers,
/// they take those instead: as few frames as the limit allows.
fn insert(core: &Core, reader: &Handle, group: &Group, kpfn: Kpfn, sharers: u32) -> Place {
    let mut content = [0; PAGE_SIZE];
    core.frames.read(kpfn, &mut content);
    let guard = reader.pin();
    loop {
        let siblings = core.forest.siblings(group.tree, group.fingerprint, &guard);
        let equal = siblings.iter().find(|entry| core.entry_is(*entry, &content));
        let inserted = match equal {
            Some(entry) => {
                let mut shares = Vec::new();
                let wanted = u64::from(sharers);
                // It was pruned when they looked for room in vain.
                let terms = core.terms().without_pruning();
                core.forest.reserve(&guard, entry, wanted, terms, &mut shares);
                if shares.iter().map(|(_, count)| u64::from(*count)).sum::<u64>() == wanted {
                    return Place::Elsewhere(shares);
                }
                for (kpfn, count) in shares {
                    for _ in 0..count {
                        core.forest.give_up(&guard, kpfn);
                    }
                }
                core.forest.add_dup(&guard, entry, kpfn)
            }
            None => core.forest.insert(&guard, &siblings, kpfn),
        };
        match inserted {
            Ok(()) => {
                if equal.is_none() && !siblings.is_empty() {
                    core.tally.collisions.add(1);
                }
                return Place::Inserted;
            }
            // Another shard changed what is there: look again.
            Err(Refused::Changed) => {}
            Err(Refused::TooManySiblings | Refused::Closed | Refused::NotDetached) => {
                return Place::Refused;
            }
        }
    }
}
