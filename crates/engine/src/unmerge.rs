//! Giving merged pages memory of their own again, in pieces that hold nobody up for long (S5.2).

use std::ops::Range;
use std::sync::Arc;

use numerge_stable_tree::{Handle, PageState};
use parking_lot::RwLockWriteGuard;

use crate::core::Core;
use crate::late;
use crate::machine::{MemoryError, Vpn};
use crate::record::unshare;
use crate::region::Region;
use crate::world::World;

/// Pages unmerged while everything else waits: at 2 to 4 us a page, 1 to 2 ms.
pub(crate) const PIECE_PAGES: u64 = 512;

/// Why not everything was unmerged. What still is merged is intact and stays tracked.
#[derive(Debug, thiserror::Error)]
pub enum UnmergeError {
    /// Another run state was asked for meanwhile.
    #[error("interrupted: run was set to another value before all pages were unmerged")]
    Interrupted,
    /// The machine could not do it; most often there is no memory for the private copies.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Unmerges all pages of all regions while `go_on` says so, and forgets what was seen of each: scanning
/// begins anew. A program that does not answer holds up none but its own.
pub(crate) fn unmerge_all(
    core: &Core,
    reader: &Handle,
    go_on: &impl Fn() -> bool,
) -> Result<(), UnmergeError> {
    let regions: Vec<Arc<Region>> = core.world().regions().map(Arc::clone).collect();
    let mut all = Ok(());
    for region in &regions {
        match unmerge_region(core, reader, region, Then::Forget, go_on) {
            silent @ Err(UnmergeError::Memory(MemoryError::NoAnswer)) => all = silent,
            done => done?,
        }
    }
    all
}

/// What is to be known of pages that were unmerged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// All that was.
    Keep,
    /// Nothing, as of pages that no scan has seen, but that there is something to look at.
    Forget,
}

/// Unmerges the pages of one region. A region that was unregistered meanwhile is done already.
pub(crate) fn unmerge_region(
    core: &Core,
    reader: &Handle,
    region: &Arc<Region>,
    then: Then,
    go_on: &impl Fn() -> bool,
) -> Result<(), UnmergeError> {
    let mut start = 0;
    while start < region.len() {
        if !go_on() {
            return Err(UnmergeError::Interrupted);
        }
        let end = (start + PIECE_PAGES).min(region.len());
        let world = core.world_mut();
        if !world.holds(region) {
            return Ok(());
        }
        let unmerged = unmerge_piece(core, &world, reader, region, start..end);
        if unmerged.is_ok() && then == Then::Forget {
            forget_looks(core, &world, region, start..end);
        }
        // Whoever has been waiting is next.
        RwLockWriteGuard::unlock_fair(world);
        if unmerged? {
            core.return_freed(reader);
        }
        start = end;
    }
    Ok(())
}

/// True if there was anything to do.
fn unmerge_piece(
    core: &Core,
    world: &World,
    reader: &Handle,
    region: &Region,
    pages: Range<u64>,
) -> Result<bool, MemoryError> {
    late::collect(core, world, reader);
    if core.late.any_in(region, pages.clone()) {
        return Err(MemoryError::NoAnswer);
    }
    if region.is_closing() {
        withdraw_candidates(world, region, pages.clone());
    }
    let merged: Vec<u64> = pages.filter(|index| is_merged(world, region, *index)).collect();
    if merged.is_empty() {
        return Ok(false);
    }
    give_own_memory(core, world, reader, region, &merged)?;
    Ok(true)
}

/// Gives merged pages of a region, in ascending order, memory of their own.
pub(crate) fn give_own_memory(
    core: &Core,
    world: &World,
    reader: &Handle,
    region: &Region,
    merged: &[u64],
) -> Result<(), MemoryError> {
    let runs: Vec<Range<Vpn>> = merged
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| region.vpn(run[0])..region.vpn(run[run.len() - 1] + 1))
        .collect();
    region.program.memory.unmerge(&runs)?;
    let guard = reader.pin();
    for &index in merged {
        let page = region.page(index);
        match world.record(page).state() {
            PageState::Merged(kpfn) => {
                unshare(core, world, &guard, page, kpfn, PageState::Unread);
            }
            _ => {
                world.record(page).set(PageState::Unread);
                core.tally.zero.sub(1);
                region.program.zero.sub(1);
            }
        }
        region.pending.add(index);
    }
    core.tally.unmerged.add(merged.len() as u64);
    Ok(())
}

/// Takes pages that are not merged out of every structure, and has them looked at anew.
fn forget_looks(core: &Core, world: &World, region: &Region, pages: Range<u64>) {
    let tally = &core.tally;
    for index in pages {
        let page = region.page(index);
        let record = world.record(page);
        match record.state() {
            PageState::Untouched => continue,
            PageState::Unshared(_) => {
                world.remove_unshared(page);
            }
            PageState::Held(_) => tally.held.sub(1),
            PageState::OverBudget(_) => tally.over_budget.sub(1),
            _ => {}
        }
        record.set(PageState::Untouched);
        tally.touched.sub(1);
        region.program.touched.sub(1);
        region.pending.add(index);
    }
}

fn is_merged(world: &World, region: &Region, index: u64) -> bool {
    matches!(world.record(region.page(index)).state(), PageState::Merged(_) | PageState::Zero)
}

/// Takes pages out of the unstable trees: another region's scan must not find a partner in a page
/// that was unmerged already and will not be again.
fn withdraw_candidates(world: &World, region: &Region, pages: Range<u64>) {
    for index in pages {
        let page = region.page(index);
        if matches!(world.record(page).state(), PageState::Unshared(_))
            && world.remove_unshared(page)
        {
            // Only of use if the region stays after all.
            region.pending.add(index);
        }
    }
}

/// Takes a region's pages out of every structure and forgets the region (S5.3).
pub(crate) fn unregister(
    core: &Core,
    reader: &Handle,
    region: &Arc<Region>,
) -> Result<(), MemoryError> {
    loop {
        region.set_closing(true);
        let unmerged = unmerge_region(core, reader, region, Then::Keep, &|| true);
        let mut world = core.world_mut();
        if !world.holds(region) {
            region.set_closing(true);
            return Ok(());
        }
        if let Err(UnmergeError::Memory(error)) = unmerged {
            region.set_closing(false);
            return Err(error);
        }
        // Merged again only if another attempt failed meanwhile, which let scans in.
        if (0..region.len()).any(|index| is_merged(&world, region, index))
            || core.late.any_in(region, 0..region.len())
        {
            continue;
        }
        if let Err(error) = region.program.memory.unregister(region.pages.clone()) {
            region.set_closing(false);
            return Err(error);
        }
        // For good, whatever another attempt made of it.
        region.set_closing(true);
        forget(core, &mut world, region);
        return Ok(());
    }
}

/// Takes pages that a program has no more out of every structure; whatever comes to lie there counts as
/// written. In pieces, as unmerging.
pub(crate) fn vanish(core: &Core, reader: &Handle, region: &Arc<Region>, pages: Range<u64>) {
    let mut start = pages.start;
    while start < pages.end {
        let end = (start + PIECE_PAGES).min(pages.end);
        let world = core.world_mut();
        if !world.holds(region) {
            return;
        }
        for index in start..end {
            vanish_page(core, &world, reader, region, index);
        }
        region.pending.take(start..end, |_| {});
        RwLockWriteGuard::unlock_fair(world);
        start = end;
    }
    core.return_freed(reader);
}

fn vanish_page(core: &Core, world: &World, reader: &Handle, region: &Region, index: u64) {
    let (page, tally) = (region.page(index), &core.tally);
    let record = world.record(page);
    match record.state() {
        PageState::Untouched => return,
        PageState::Merged(kpfn) => {
            unshare(core, world, &reader.pin(), page, kpfn, PageState::Untouched);
        }
        PageState::Zero => {
            tally.zero.sub(1);
            region.program.zero.sub(1);
        }
        PageState::Unshared(_) => {
            world.remove_unshared(page);
        }
        PageState::Held(_) => tally.held.sub(1),
        PageState::OverBudget(_) => tally.over_budget.sub(1),
        PageState::Busy => late::forget(core, reader, page),
        PageState::Unread | PageState::Seen(_) => {}
    }
    record.set(PageState::Untouched);
    tally.touched.sub(1);
    region.program.touched.sub(1);
}

/// No batch is under way, and nothing of the region is merged.
fn forget(core: &Core, world: &mut World, region: &Region) {
    let tally = &core.tally;
    for index in 0..region.len() {
        let page = region.page(index);
        match world.record(page).state() {
            PageState::Untouched => continue,
            PageState::Unshared(_) => {
                world.remove_unshared(page);
            }
            PageState::Held(_) => tally.held.sub(1),
            PageState::OverBudget(_) => tally.over_budget.sub(1),
            _ => {}
        }
        tally.touched.sub(1);
        region.program.touched.sub(1);
    }
    tally.registered.sub(region.len());
    world.remove(region.slot);
    core.resize(world, 0);
}
