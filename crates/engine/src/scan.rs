//! First stage: which pages have to be looked at.
//!
//! The machine says which pages were written since the last look, the region remembers which were
//! looked at once and wait for the second look (S3.1). All others are known unchanged and cost
//! nothing, so a scan's work is in proportion to what changed.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::core::Core;
use crate::machine::{Kind, MemoryError, Written};
use crate::migrate;
use crate::region::Region;
use crate::world::World;

/// Pages walked at once, so that what is queued has a limit.
const WINDOW_PAGES: u64 = 1 << 18;

/// Asking the machine about a page costs a small part of what looking at it does (measured: 0.5 ns
/// and more than 500 ns), but it costs something, so that a batch walks over this many pages for
/// each it may look at and then rests.
const WALKED_A_LOOK: u64 = 256;

/// Pages walked at once when all of them may have to be asked for their node, so that a batch stays
/// short: 2 ms.
const ASKED_PAGES: u64 = 1 << 14;

/// Why pages are looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    /// They were written; this is there now.
    Written(Kind),
    /// They were not, and wait for their second look.
    Again,
}

/// Adjacent pages of a region to be looked at.
#[derive(Clone)]
pub(crate) struct Look {
    pub(crate) region: Arc<Region>,
    /// Places in the region.
    pub(crate) pages: Range<u64>,
    pub(crate) reason: Reason,
}

impl Look {
    /// Cuts off as many of the first pages as are left to be taken.
    fn take(&mut self, left: &mut u64) -> Self {
        let taken = (*left).min(self.pages.end - self.pages.start);
        let rest = self.pages.start + taken;
        let first = Self { pages: self.pages.start..rest, ..self.clone() };
        *left -= taken;
        self.pages.start = rest;
        first
    }
}

/// Where a shard stands in its pass over its regions.
#[derive(Default)]
pub(crate) struct Cursor {
    /// Segments of this pass that are not walked yet, last first: their pages in their regions.
    segments: Vec<(Arc<Region>, Range<u64>)>,
    /// Whether memory may have moved since the last pass, so that candidates have to be asked for
    /// their node.
    moved: bool,
    /// Of regions that are being let go of: they wait for the next pass, when the region is gone or
    /// stays after all.
    aside: Vec<Look>,
    /// Put back, set aside or inherited: they are carried out before anything else, and in batches of
    /// their own, for what is walked then may find the same pages.
    late: VecDeque<Look>,
    /// Found and not looked at yet.
    looks: VecDeque<Look>,
    under_way: bool,
    /// Whose pass it is.
    shard: usize,
}

impl Cursor {
    /// Whether a pass has begun that has not ended.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Begins a pass over the segments that are at home here.
    pub(crate) fn begin(&mut self, world: &World, shard: usize, moved: bool) {
        self.segments.clear();
        for region in world.regions().filter(|region| !region.is_closing()) {
            let mine = region.segments().filter(|n| usize::from(region.home(*n)) == shard);
            self.segments.extend(mine.map(|n| (Arc::clone(region), region.segment(n))));
        }
        self.segments.reverse();
        self.late.extend(self.aside.drain(..).filter(|look| world.holds(&look.region)));
        self.moved = moved;
        self.shard = shard;
        self.under_way = true;
    }

    /// Takes out what was found and not looked at, when the shard ends.
    pub(crate) fn drain(&mut self) -> Vec<Look> {
        self.segments.clear();
        self.under_way = false;
        self.aside.drain(..).chain(self.late.drain(..)).chain(self.looks.drain(..)).collect()
    }

    /// Keeps looks for the next pass.
    pub(crate) fn set_aside(&mut self, looks: Vec<Look>) {
        self.aside.extend(looks);
    }

    /// Whether looks at a segment wait for the next pass.
    pub(crate) fn has_aside(&self, region: &Arc<Region>, segment: usize) -> bool {
        let pages = region.segment(segment);
        let is_there =
            |look: &Look| Arc::ptr_eq(&look.region, region) && pages.contains(&look.pages.start);
        self.aside.iter().any(is_there)
    }

    /// Takes back looks that were not carried out.
    pub(crate) fn put_back(&mut self, looks: Vec<Look>) {
        self.under_way |= !looks.is_empty();
        looks.into_iter().rev().for_each(|look| self.late.push_front(look));
    }

    /// Takes the next looks, `quota` pages at most, and says whether the pass is over. What the
    /// machine refused is appended to `errors`; that region waits for the next pass.
    pub(crate) fn next(
        &mut self,
        core: &Core,
        world: &World,
        quota: u64,
        errors: &mut Vec<MemoryError>,
    ) -> (Vec<Look>, bool) {
        let mut left = quota;
        let mut batch = self.take_late(&mut left);
        if !batch.is_empty() {
            return (batch, false);
        }
        let mut walk = quota.saturating_mul(WALKED_A_LOOK);
        if self.moved {
            walk = walk.min(ASKED_PAGES);
        }
        while left > 0 {
            let Some(look) = self.looks.front_mut() else {
                if self.segments.is_empty() {
                    self.looks.shrink_to_fit();
                    self.under_way = false;
                    break;
                }
                if walk == 0 {
                    break;
                }
                match self.walk(core, world, quota, walk) {
                    Ok(walked) => walk -= walked,
                    Err(error) => errors.push(error),
                }
                continue;
            };
            batch.push(look.take(&mut left));
            if look.pages.is_empty() {
                self.looks.pop_front();
            }
        }
        (batch, !self.under_way)
    }

    /// Takes late looks as long as they are in order, so that no page is among them twice: it would be
    /// judged by two threads at a time.
    fn take_late(&mut self, left: &mut u64) -> Vec<Look> {
        let mut batch: Vec<Look> = Vec::new();
        while let Some(look) = self.late.front_mut().filter(|_| *left > 0) {
            let place = (look.region.slot.index(), look.pages.start);
            if batch.last().is_some_and(|at| place < (at.region.slot.index(), at.pages.end)) {
                break;
            }
            batch.push(look.take(left));
            if look.pages.is_empty() {
                self.late.pop_front();
            }
        }
        batch
    }

    /// Walks on, `limit` pages at most. Gives how many.
    fn walk(
        &mut self,
        core: &Core,
        world: &World,
        quota: u64,
        limit: u64,
    ) -> Result<u64, MemoryError> {
        let Some((region, pages)) = self.segments.pop() else { return Ok(0) };
        if region.is_closing() {
            return Ok(0);
        }
        let start = pages.start;
        let end = (start + WINDOW_PAGES.min(limit)).min(pages.end);
        let mut written = Vec::new();
        let walked = region.vpn(start)..region.vpn(end);
        let reached = region.program.memory.written(walked, quota, &mut written);
        let end = match &reached {
            Ok(end) => region.index(*end),
            // What was reported will not be reported again.
            Err(_) => written.last().map_or(start, |last| region.index(last.pages.end)),
        };
        if self.moved
            && (!migrate::drop_moved_candidates(core, world, &region, start..end)
                || reached.is_err())
        {
            core.shards[self.shard].forget_news();
        }
        self.enqueue(&region, start..end, &written);
        reached?;
        if end < pages.end {
            self.segments.push((region, end..pages.end));
        }
        Ok(end - start)
    }

    /// Queues what was written and, between it, what waits for another look, in order.
    fn enqueue(&mut self, region: &Arc<Region>, walked: Range<u64>, written: &[Written]) {
        let looks = &mut self.looks;
        let mut again = |range: Range<u64>| {
            region.pending.take(range, |pages| {
                looks.push_back(Look { region: Arc::clone(region), pages, reason: Reason::Again });
            });
        };
        let mut at = walked.start;
        let mut found = Vec::with_capacity(written.len());
        for run in written {
            let pages = region.index(run.pages.start)..region.index(run.pages.end);
            again(at..pages.start);
            // A page that was written is looked at for that; its second look starts anew.
            region.pending.take(pages.clone(), |_| {});
            at = pages.end;
            found.push((pages, run.kind));
        }
        again(at..walked.end);
        for (pages, kind) in found {
            let region = Arc::clone(region);
            looks.push_back(Look { region, pages, reason: Reason::Written(kind) });
        }
    }
}
