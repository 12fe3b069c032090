//! Frames that the operating system moved to another node: to the migrate queue, and from it to the
//! tree of the node they are on now (S4.3, S4.4).

use std::ops::Range;

use numerge_stable_tree::{
    EntryRef, Fingerprint, Guard, Handle, Kpfn, PageId, PageState, Queued, rmap,
};

use numerge_topology::Nid;

use crate::core::Core;
use crate::find::Merge;
use crate::machine::{PAGE_SIZE, Vpn};
use crate::record::{give_back, unshare};
use crate::region::Region;
use crate::shard::Shard;
use crate::world::World;

/// Contents walked, and frames whose nodes are asked for, at once.
pub(crate) const WALKED: usize = 1024;

/// All frames.
pub(crate) const ALL: Range<Kpfn> = Kpfn(0)..Kpfn(1 << Kpfn::BITS);

/// Queues every stable node whose frame is not on its tree's node any more, or, where that is wanted,
/// has the frame moved back. False if not all could be told where they are.
pub(crate) fn sweep(core: &Core, reader: &Handle) -> bool {
    let (mut kpfns, mut nids, mut all_known) = (Vec::new(), Vec::new(), true);
    for node in 0..core.node_count() {
        let tree = core.tree_of(node);
        let mut next = Some(Fingerprint::new(0));
        while let Some(from) = next {
            kpfns.clear();
            nids.clear();
            next = core.forest.collect(&reader.pin(), tree, &ALL, from, WALKED, &mut kpfns);
            core.frames.nodes_of(&kpfns, &mut nids);
            if core.policy.move_frames_back && core.shards[usize::from(node)].is_online() {
                move_back(core, node, &kpfns, &mut nids);
            }
            all_known &= nids.iter().all(Option::is_some);
            let guard = reader.pin();
            for (kpfn, nid) in kpfns.iter().zip(&nids) {
                let at = nid.and_then(|nid| core.node_index(nid));
                if at.is_some_and(|at| core.tree_of(at) != tree)
                    && core.forest.to_queue(&guard, *kpfn)
                {
                    core.shards[usize::from(node)].queued.add(1);
                }
            }
        }
    }
    all_known
}

/// Moves frames back to a node, and asks again where they are.
fn move_back(core: &Core, node: u16, kpfns: &[Kpfn], nids: &mut Vec<Option<Nid>>) {
    let nid = core.nids[usize::from(node)];
    let moved: Vec<Kpfn> = kpfns
        .iter()
        .zip(&*nids)
        .filter(|(_, at)| at.is_some_and(|at| at != nid))
        .map(|(kpfn, _)| *kpfn)
        .collect();
    // Where the machine refuses, they are placed where they are.
    if !moved.is_empty() && core.frames.move_to(&moved, nid).is_ok() {
        nids.clear();
        core.frames.nodes_of(kpfns, nids);
    }
}

/// Takes candidates that are not on their tree's node any more out of the unstable trees, to be
/// looked at again (S4.1). They are the caller's shard's. False if the machine could not be asked.
pub(crate) fn drop_moved_candidates(
    core: &Core,
    world: &World,
    region: &Region,
    pages: Range<u64>,
) -> bool {
    let records = world.pages.records(region.slot);
    let is_candidate = |index: &u64| {
        let record = &records[usize::try_from(*index).expect("a page of the region")];
        matches!(record.state(), PageState::Unshared(_))
    };
    let candidates: Vec<u64> = pages.filter(is_candidate).collect();
    let runs: Vec<Range<Vpn>> = candidates
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| region.vpn(run[0])..region.vpn(run[run.len() - 1] + 1))
        .collect();
    let mut nids = Vec::with_capacity(candidates.len());
    if let Err(error) = region.program.memory.nodes_of(&runs, &mut nids) {
        core.report(error);
        return false;
    }
    for (at, index) in candidates.into_iter().enumerate() {
        let Some(node) = core.node_of(&nids, at) else { continue };
        let (tree, page) = (core.tree_of(node), region.page(index));
        if !world.unstable(tree).contains(&world.pages, page) && world.remove_unshared(page) {
            region.pending.add(index);
        }
    }
    true
}

/// Places what is queued now. Of each batch, frames with a lone sharer come last, for that is better merged
/// into another.
pub(crate) fn place_queued(core: &Core, world: &World, reader: &Handle, shard: &Shard) {
    let (mut batch, mut nids, mut content) = (Vec::new(), Vec::new(), [0; PAGE_SIZE]);
    let mut left = core.forest.queued_len();
    while left > 0 {
        let take = || core.forest.take_queued(&reader.pin());
        batch.extend(std::iter::from_fn(take).take(left.min(WALKED)));
        if batch.is_empty() {
            return;
        }
        left -= batch.len();
        // Cached: others give shares up meanwhile.
        batch.sort_by_cached_key(|queued| (core.forest.sharers(queued.kpfn()) == 1, queued.kpfn()));
        let kpfns: Vec<Kpfn> = batch.iter().map(Queued::kpfn).collect();
        nids.clear();
        core.frames.nodes_of(&kpfns, &mut nids);
        for (n, queued) in batch.drain(..).enumerate() {
            match core.node_of(&nids, n) {
                Some(node) => {
                    core.frames.read(queued.kpfn(), &mut content);
                    place(core, world, reader, shard, queued, node, &content);
                }
                // Nobody can say where it is: it waits until someone can.
                None => core.forest.requeue(queued),
            }
        }
    }
}

fn place(
    core: &Core,
    world: &World,
    reader: &Handle,
    shard: &Shard,
    queued: Queued,
    node: u16,
    content: &[u8; PAGE_SIZE],
) {
    let (kpfn, tree) = (queued.kpfn(), core.tree_of(node));
    let guard = reader.pin();
    let siblings = core.forest.siblings(tree, queued.fingerprint(), &guard);
    let equal = siblings.iter().find(|entry| core.entry_is(*entry, content));
    let only = equal.and_then(|_| only_sharer(core, world, kpfn));
    let home = |page| {
        let (region, index) = world.locate(page);
        usize::from(region.home_of(index))
    };
    if only.is_some_and(|page| home(page) != shard.index) {
        // Its shard may be at work on that page; only it may end the page's share.
        core.forest.requeue(queued);
        return;
    }
    let target =
        equal.zip(only).and_then(|(entry, page)| Some((share(core, &guard, entry)?, page)));
    if let Some((target, page)) = target {
        let fingerprint = queued.fingerprint();
        core.forest.detach(&guard, queued);
        drop(guard);
        let to = Merge { page, fingerprint, kpfn: Some(target), tree, node };
        move_sharer(core, world, reader, kpfn, to);
        core.shards[usize::from(node)].replaced.add(1);
        return;
    }
    let placed = match equal {
        Some(entry) => core.forest.place_dup(&guard, entry, queued),
        None => core.forest.place_new(&guard, &siblings, queued),
    };
    match placed {
        Ok(()) => core.shards[usize::from(node)].replaced.add(1),
        // The tree changed, the range is closed, or too many contents have its fingerprint there.
        Err((queued, _)) => core.forest.requeue(queued),
    }
}

/// The page of a frame that has one sharer: it is better merged into a dup that has room (S4.4).
fn only_sharer(core: &Core, world: &World, kpfn: Kpfn) -> Option<PageId> {
    if core.forest.sharers(kpfn) != 1 {
        return None;
    }
    let mut pages = Vec::with_capacity(1);
    rmap::sharers(core.rmap_head(kpfn), &world.pages, 1, &mut pages);
    // None while another shard's merge, which holds the share, is under way.
    pages.first().copied()
}

/// A share of a dup that has room.
fn share<'g>(core: &Core, guard: &'g Guard<'_>, entry: EntryRef<'g>) -> Option<Kpfn> {
    let mut shares = Vec::with_capacity(1);
    core.forest.reserve(guard, entry, 1, core.terms(), &mut shares);
    shares.first().map(|(target, _)| *target)
}

/// Takes a page of a region of the caller's shard off its frame and merges it with `to`, whose
/// share is reserved. Where the machine refuses, the page stays where it is.
fn move_sharer(core: &Core, world: &World, reader: &Handle, from: Kpfn, to: Merge) {
    let (region, index) = world.locate(to.page);
    let vpns = region.vpn(index)..region.vpn(index + 1);
    let unmerged = region.program.memory.unmerge(&[vpns]);
    let guard = reader.pin();
    if unmerged.is_err() {
        give_back(core, &guard, &to);
        return;
    }
    unshare(core, world, &guard, to.page, from, PageState::Busy);
    drop(guard);
    for again in core.execute(world, reader, vec![to]) {
        world.record(again.page).set(PageState::Held(again.fingerprint));
        core.tally.held.add(1);
    }
}
