//! What is looked at together: pages of one region, on one node, for one reason.

use std::ops::Range;
use std::sync::Arc;

use numerge_stable_tree::Record;

use crate::core::Core;
use crate::machine::{Kind, PIECE_PAGES, READ_PAGES, Vpn};
use crate::region::Region;
use crate::scan::{Look, Reason};
use crate::world::World;

/// Pages of one region and one node that are looked at for one reason, in ascending order; places in
/// the region.
pub(crate) struct Piece<'a> {
    pub(crate) region: &'a Arc<Region>,
    /// Of all the region's pages.
    pub(crate) records: &'a [Record],
    pub(crate) reason: Reason,
    /// None: nobody can tell.
    pub(crate) node: Option<u16>,
    pub(crate) pages: Vec<u64>,
}

impl<'a> Piece<'a> {
    /// Of the page at this place of the piece.
    pub(crate) fn record(&self, at: usize) -> &'a Record {
        let index = usize::try_from(self.pages[at]).expect("a page's record is in memory");
        &self.records[index]
    }

    /// The piece's pages at these places, adjacent ones together.
    pub(crate) fn runs(&self, places: Range<usize>) -> Vec<Range<Vpn>> {
        self.region.runs(&self.pages[places])
    }
}

/// The node of each page to be looked at, as far as that matters: where there is only one it is known,
/// and frames and pages of zeros are only noted.
fn nodes_of(core: &Core, looks: &[Look]) -> Vec<Option<u16>> {
    let pages = |look: &Look| look.pages.end - look.pages.start;
    if core.nids.len() == 1 {
        let all = looks.iter().map(pages).sum::<u64>();
        return vec![Some(0); usize::try_from(all).expect("a batch is in memory")];
    }
    let mut nodes = Vec::new();
    for some in looks.chunk_by(|a, b| Arc::ptr_eq(&a.region, &b.region) && a.reason == b.reason) {
        let all = usize::try_from(some.iter().map(pages).sum::<u64>()).expect("in memory");
        let mut nids = Vec::with_capacity(all);
        if matches!(some[0].reason, Reason::Again | Reason::Written(Kind::Private)) {
            let region = &some[0].region;
            let runs: Vec<_> = some
                .iter()
                .map(|look| region.vpn(look.pages.start)..region.vpn(look.pages.end))
                .collect();
            if let Err(error) = region.program.memory.nodes_of(&runs, &mut nids) {
                core.report(error);
            }
        }
        nodes.extend((0..all).map(|at| core.node_of(&nids, at)));
    }
    nodes
}

/// How many of these pages to look at together, so that there is something to do for all threads.
pub(crate) fn piece_pages(core: &Core, pages: usize) -> usize {
    let threads: usize = core.shards.iter().map(|shard| shard.threads()).sum();
    (pages / (4 * threads)).clamp(READ_PAGES, PIECE_PAGES)
}

/// Cuts looks into pieces. Looks at single pages are put together, for a call costs more than a page.
pub(crate) fn cut<'a>(core: &Core, world: &'a World, looks: &'a [Look]) -> Vec<Piece<'a>> {
    let nodes = nodes_of(core, looks);
    let most = piece_pages(core, nodes.len());
    let mut nodes = nodes.into_iter();
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    // The piece of each node, and the one of pages without, that may still grow.
    let mut growing: Vec<Option<usize>> = vec![None; core.nids.len() + 1];
    for Look { region, pages, reason } in looks {
        let reason = *reason;
        for page in pages.clone() {
            let node = nodes.next().flatten();
            let growing = &mut growing[node.map_or(core.nids.len(), usize::from)];
            match growing.map(|piece| &mut pieces[piece]) {
                Some(last)
                    if Arc::ptr_eq(last.region, region)
                        && last.reason == reason
                        && last.pages.len() < most =>
                {
                    last.pages.push(page);
                }
                _ => {
                    let records = world.pages.records(region.slot);
                    *growing = Some(pieces.len());
                    pieces.push(Piece { region, records, reason, node, pages: vec![page] });
                }
            }
        }
    }
    pieces
}
