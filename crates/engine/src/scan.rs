//! First stage: which pages have to be looked at.
//!
//! The machine says which pages were written since the last look, the region remembers which were
//! looked at once and wait for the second look (S3.1). All others are known unchanged and cost
//! nothing, so a scan's work is in proportion to what changed.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::machine::{Kind, MemoryError, Written};
use crate::region::Region;
use crate::world::World;

/// Pages walked at once, so that what is queued has a limit.
const WINDOW_PAGES: u64 = 1 << 18;

/// Asking the machine about a page costs a small part of what looking at it does (measured: 0.5 ns
/// and more than 500 ns), but it costs something, so that a batch walks over this many pages for
/// each it may look at and then rests.
const WALKED_A_LOOK: u64 = 256;

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

/// Where a shard stands in its pass over its regions.
#[derive(Default)]
pub(crate) struct Cursor {
    /// Regions of this pass that are not walked yet, last first.
    regions: Vec<Arc<Region>>,
    /// The region being walked, and the page to go on at.
    current: Option<(Arc<Region>, u64)>,
    /// Found and not looked at yet.
    looks: VecDeque<Look>,
    under_way: bool,
}

impl Cursor {
    /// Whether a pass has begun that has not ended.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Begins a pass over the shard's regions.
    pub(crate) fn begin(&mut self, world: &World, mine: impl Fn(&Region) -> bool) {
        self.regions =
            world.regions().filter(|region| mine(region)).map(Arc::clone).collect::<Vec<_>>();
        self.regions.reverse();
        self.under_way = true;
    }

    /// Takes back looks that were not carried out.
    pub(crate) fn put_back(&mut self, looks: Vec<Look>) {
        self.under_way |= !looks.is_empty();
        looks.into_iter().rev().for_each(|look| self.looks.push_front(look));
    }

    /// Takes the next looks, `quota` pages at most, and says whether the pass is over. What the
    /// machine refused is appended to `errors`; that region waits for the next pass.
    pub(crate) fn next(&mut self, quota: u64, errors: &mut Vec<MemoryError>) -> (Vec<Look>, bool) {
        let mut batch = Vec::new();
        let mut left = quota;
        let mut walk = quota.saturating_mul(WALKED_A_LOOK);
        while left > 0 {
            let Some(look) = self.looks.front_mut() else {
                if self.current.is_none() && self.regions.is_empty() {
                    self.looks.shrink_to_fit();
                    self.under_way = false;
                    break;
                }
                if walk == 0 {
                    break;
                }
                match self.walk(quota, walk) {
                    Ok(walked) => walk -= walked,
                    Err(error) => errors.push(error),
                }
                continue;
            };
            let taken = left.min(look.pages.end - look.pages.start);
            let rest = look.pages.start + taken;
            batch.push(Look { pages: look.pages.start..rest, ..look.clone() });
            left -= taken;
            look.pages.start = rest;
            if look.pages.is_empty() {
                self.looks.pop_front();
            }
        }
        (batch, !self.under_way)
    }

    /// Walks on, `limit` pages at most. Gives how many.
    fn walk(&mut self, quota: u64, limit: u64) -> Result<u64, MemoryError> {
        let Some((region, start)) =
            self.current.take().or_else(|| self.regions.pop().map(|region| (region, 0)))
        else {
            return Ok(0);
        };
        if region.is_closing() {
            return Ok(0);
        }
        let end = (start + WINDOW_PAGES.min(limit)).min(region.len());
        let mut written = Vec::new();
        let walked = region.vpn(start)..region.vpn(end);
        let reached = region.program.memory.written(walked, quota, &mut written);
        let end = match &reached {
            Ok(end) => region.index(*end),
            // What was reported will not be reported again.
            Err(_) => written.last().map_or(start, |last| region.index(last.pages.end)),
        };
        self.enqueue(&region, start..end, &written);
        reached?;
        if end < region.len() {
            self.current = Some((region, end));
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
