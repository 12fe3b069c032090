//! Taking memory offline: a node, or a range of frames, while scanning goes on elsewhere (S4.5).
//!
//! A node's shard ends first, so that no page is merged into frames there any more; another takes
//! over its segments, with what it had found and not looked at. Then every frame whose memory is on
//! the node is given up: its sharers get memory of their own, wherever the machine has some, and
//! with the last of them the stable node goes.

use std::ops::Range;
use std::sync::Arc;

use numerge_stable_tree::{Closing, Fingerprint, Handle, Kpfn, PageId, Queued, TreeId, rmap};
use numerge_topology::Nid;
use parking_lot::RwLockWriteGuard;

use crate::core::Core;
use crate::homes;
use crate::late;
use crate::machine::MemoryError;
use crate::migrate::{ALL, WALKED};
use crate::unmerge::{PIECE_PAGES, give_own_memory};

/// The most times everything is gone over: frames of a node can get new sharers while that goes on.
const ROUNDS: usize = 64;

/// Why memory was not taken offline, or not brought back. What is merged is intact.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The engine does not know the node.
    #[error("there is no node {nid}: the engine was built for {known}")]
    UnknownNode {
        /// The node asked for.
        nid: Nid,
        /// Those there are.
        known: String,
    },
    /// Something has to be left.
    #[error("node {0} is the last that is online")]
    LastNode(Nid),
    /// The range is empty, or begins or ends outside of all frame numbers.
    #[error("frames {:#x}..{:#x} are no range: allowed is {:#x}..{:#x}", .0.start.0, .0.end.0, ALL.start.0, ALL.end.0)]
    NoRange(Range<Kpfn>),
    /// Part of it is offline already.
    #[error("frames {:#x}..{:#x} are offline already", .0.start.0, .0.end.0)]
    AlreadyOffline(Range<Kpfn>),
    /// Exactly this range was not taken offline.
    #[error("frames {:#x}..{:#x} were not taken offline", .0.start.0, .0.end.0)]
    NotOffline(Range<Kpfn>),
    /// Frames got new sharers as fast as they lost them.
    #[error("frames are still in use after {ROUNDS} rounds: stop scanning and try again")]
    Busy,
    /// Threads could not be started.
    #[error("can't start threads for node {nid}: {reason}")]
    Threads {
        /// The node.
        nid: Nid,
        /// What the system said.
        reason: String,
    },
    /// The machine could not do it; most often there is no memory for private copies.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What is to be emptied.
pub(crate) enum What<'a> {
    /// Frames whose memory is on this node.
    Node(Nid),
    /// These frames.
    Frames(&'a Range<Kpfn>),
}

/// Ends the work of a node's shard and hands what it has to another.
///
/// The caller sees to it that only one node comes or goes at a time.
pub(crate) fn stop_shard(core: &Core, node: u16) -> Result<(), OfflineError> {
    let shard = &core.shards[usize::from(node)];
    let others = core.shards.iter().filter(|other| other.index != shard.index && other.is_online());
    if others.count() == 0 {
        return Err(OfflineError::LastNode(shard.nid));
    }
    // Its scanner is between two batches now, and begins no other.
    let looks = {
        let mut cursor = shard.cursor();
        shard.stop();
        cursor.drain()
    };
    let heir = core.shard_for(node);
    // Before the heir can begin a pass on them, so that it does these first.
    let mut cursor = core.shards[usize::from(heir)].cursor();
    if !looks.is_empty() {
        // With these alone it is through with nothing of its own.
        core.scan_again(heir);
        cursor.put_back(looks);
    }
    let mut moved = Vec::new();
    {
        let world = core.world_mut();
        for region in world.regions() {
            for segment in region.segments().filter(|segment| region.home(*segment) == node) {
                homes::move_home(core, region, segment, heir);
                moved.push((Arc::clone(region), segment));
            }
        }
    }
    drop(cursor);
    core.set_gone(node, true);
    homes::place_records(core, &moved);
    Ok(())
}

/// Closes a range of frames and gives up those that are in use.
pub(crate) fn empty_frames(
    core: &Core,
    reader: &Handle,
    range: &Range<Kpfn>,
) -> Result<Closing, OfflineError> {
    let closing = core.forest.close(&reader.pin(), range.clone());
    // Batches end and others give up their guards: nobody is left who does not know.
    while !closing.is_settled() {
        drop(core.world_mut());
        reader.flush();
    }
    match empty(core, reader, &What::Frames(range)) {
        Ok(()) => Ok(closing),
        Err(error) => {
            core.forest.open(closing);
            Err(error)
        }
    }
}

/// Gives up all frames that are meant. If they are a node's, its shard was stopped.
pub(crate) fn empty(core: &Core, reader: &Handle, what: &What<'_>) -> Result<(), OfflineError> {
    let _held = core.hold_frames();
    for _ in 0..ROUNDS {
        let mut found = false;
        for tree in (0..core.node_count()).map(TreeId) {
            found |= queue_tree(core, reader, what, tree);
        }
        found |= empty_queue(core, reader, what)?;
        if !found {
            return Ok(());
        }
        core.return_freed(reader);
    }
    Err(OfflineError::Busy)
}

/// Takes frames out of a tree, or they would get new sharers as fast as they lose them. True if any
/// were there.
fn queue_tree(core: &Core, reader: &Handle, what: &What<'_>, tree: TreeId) -> bool {
    let range = match what {
        What::Node(_) => &ALL,
        What::Frames(range) => *range,
    };
    let (mut kpfns, mut found) = (Vec::new(), false);
    let mut next = Some(Fingerprint::new(0));
    while let Some(from) = next {
        kpfns.clear();
        next = core.forest.collect(&reader.pin(), tree, range, from, WALKED, &mut kpfns);
        what.retain(core, &mut kpfns);
        let guard = reader.pin();
        for kpfn in &kpfns {
            found |= core.forest.to_queue(&guard, *kpfn);
        }
    }
    found
}

/// Gives up frames on the queue. True if any were there.
fn empty_queue(core: &Core, reader: &Handle, what: &What<'_>) -> Result<bool, OfflineError> {
    let (mut taken, mut found) = (Vec::new(), false);
    for _ in 0..core.forest.queued_len() {
        let Some(queued) = core.forest.take_queued(&reader.pin()) else { break };
        let mut kpfns = vec![queued.kpfn()];
        what.retain(core, &mut kpfns);
        if kpfns.is_empty() {
            core.forest.requeue(queued);
            continue;
        }
        found = true;
        taken.push(queued);
        if taken.len() == WALKED {
            evict(core, reader, std::mem::take(&mut taken))?;
        }
    }
    evict(core, reader, taken)?;
    Ok(found)
}

/// Gives the sharers of frames memory of their own; the frames go with their last sharers. If that
/// fails the frames are queued still.
fn evict(core: &Core, reader: &Handle, frames: Vec<Queued>) -> Result<(), OfflineError> {
    let kpfns = frames.iter().map(Queued::kpfn).collect();
    let done = unmerge_sharers(core, reader, kpfns);
    for queued in frames {
        match done {
            Ok(()) => core.forest.detach(&reader.pin(), queued),
            Err(_) => core.forest.requeue(queued),
        }
    }
    done
}

/// In pieces that hold nobody up for long. Whoever reserved a share before the frames were queued
/// has used it or given it up by the time that the tables are had alone, but for programs that have
/// not answered.
fn unmerge_sharers(core: &Core, reader: &Handle, mut kpfns: Vec<Kpfn>) -> Result<(), OfflineError> {
    let most = usize::try_from(PIECE_PAGES).expect("a small number");
    let mut pages: Vec<PageId> = Vec::with_capacity(most);
    while !kpfns.is_empty() {
        let world = core.world_mut();
        late::collect(core, &world, reader);
        let late = core.late.frames();
        if kpfns.iter().any(|kpfn| late.contains(kpfn)) {
            return Err(MemoryError::NoAnswer.into());
        }
        pages.clear();
        while let Some(kpfn) = kpfns.last() {
            if let Some(head) = core.forest.rmap_head(*kpfn) {
                rmap::sharers(head, &world.pages, most, &mut pages);
            }
            if pages.len() == most {
                break; // it may have more
            }
            kpfns.pop();
        }
        pages.sort_unstable();
        for some in pages.chunk_by(|a, b| world.locate(*a).0.slot == world.locate(*b).0.slot) {
            let region = world.locate(some[0]).0;
            let places: Vec<u64> = some.iter().map(|page| page.0 - region.first.0).collect();
            give_own_memory(core, &world, reader, region, &places)?;
        }
        RwLockWriteGuard::unlock_fair(world);
    }
    Ok(())
}

impl What<'_> {
    /// Keeps the frames that are meant.
    fn retain(&self, core: &Core, kpfns: &mut Vec<Kpfn>) {
        match self {
            Self::Node(nid) => {
                let mut nids = Vec::with_capacity(kpfns.len());
                core.frames.nodes_of(kpfns, &mut nids);
                let mut nids = nids.into_iter();
                kpfns.retain(|_| nids.next().flatten() == Some(*nid));
            }
            Self::Frames(range) => kpfns.retain(|kpfn| range.contains(kpfn)),
        }
    }
}
