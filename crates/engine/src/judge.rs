//! Second stage: what has become of each page looked at, and which are candidates.
//!
//! Pages are read and hashed in pieces by the node's pool. A page is a candidate when this look saw
//! the content of the look before (S3.1), whether it was read again or known not to be written.

use std::ops::Range;
use std::sync::Arc;

use numerge_stable_tree::{Fingerprint, Kpfn, PageId, PageState, Record, TreeId};
use rayon::prelude::*;

use crate::core::Core;
use crate::machine::{Kind, Vpn};
use crate::region::Region;
use crate::scan::{Look, Reason};
use crate::shard::Shard;
use crate::world::World;

/// Pages read by one call.
const PIECE_PAGES: usize = 16;

/// Pages of a piece of which nearly none is read.
const PIECE_PAGES_AGAIN: usize = 512;

/// A page that may be merged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Candidate {
    /// The tree of its node.
    pub(crate) tree: TreeId,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) page: PageId,
    /// The node its memory is on, as an index into the engine's nodes.
    pub(crate) node: u16,
}

/// A merged page that the program has written to, so that it has its own copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Broken {
    pub(crate) page: PageId,
    pub(crate) kpfn: Kpfn,
    pub(crate) left: PageState,
}

/// What the looks of a batch came to.
#[derive(Default)]
pub(crate) struct Judged {
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) broken: Vec<Broken>,
}

impl Judged {
    fn append(mut self, mut more: Self) -> Self {
        self.candidates.append(&mut more.candidates);
        self.broken.append(&mut more.broken);
        self
    }
}

/// Pages of one region that are looked at for one reason, in ascending order; places in the region.
struct Piece<'a> {
    region: &'a Arc<Region>,
    /// Of all the region's pages.
    records: &'a [Record],
    reason: Reason,
    pages: Vec<u64>,
}

/// Cuts looks into pieces. Looks at single pages are put together, for a call costs more than a page.
fn cut<'a>(world: &'a World, looks: &'a [Look]) -> Vec<Piece<'a>> {
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    for Look { region, pages, reason } in looks {
        let reason = *reason;
        let most = if reason == Reason::Again { PIECE_PAGES_AGAIN } else { PIECE_PAGES };
        for page in pages.clone() {
            match pieces.last_mut() {
                Some(last)
                    if Arc::ptr_eq(last.region, region)
                        && last.reason == reason
                        && last.pages.len() < most =>
                {
                    last.pages.push(page);
                }
                _ => {
                    let records = world.pages.records(region.slot);
                    let mut pages = Vec::with_capacity(PIECE_PAGES);
                    pages.push(page);
                    pieces.push(Piece { region, records, reason, pages });
                }
            }
        }
    }
    pieces
}

/// Judges a batch of looks on the shard's pool.
pub(crate) fn judge(core: &Core, world: &World, shard: &Shard, looks: &[Look]) -> Judged {
    let pieces = cut(world, looks);
    let new_judge = || Judge { core, world, merged: Vec::new() };
    let judged: Vec<Judged> = shard.pool.install(|| {
        pieces.par_iter().map_init(new_judge, |judge, piece| judge.piece(piece)).collect()
    });
    // In order, so that equal histories have equal outcomes.
    judged.into_iter().fold(Judged::default(), Judged::append)
}

struct Judge<'a> {
    core: &'a Core,
    world: &'a World,
    /// Places in the piece of pages that were found merged, and what those pages are to be if they
    /// turn out not to be any more.
    merged: Vec<(usize, PageState)>,
}

impl Judge<'_> {
    fn piece(&mut self, piece: &Piece<'_>) -> Judged {
        let mut judged = Judged::default();
        match piece.reason {
            Reason::Written(Kind::Private) => self.read(piece, &mut judged),
            Reason::Written(Kind::Frame) => {}
            Reason::Written(Kind::Zero) => {
                for at in 0..piece.pages.len() {
                    self.became_zero(piece, at);
                }
            }
            Reason::Again => {
                judged.candidates.reserve(piece.pages.len());
                for at in 0..piece.pages.len() {
                    self.again(piece, at, &mut judged);
                }
            }
        }
        self.ask_kinds(piece, &mut judged);
        self.ask_nodes(piece, &mut judged.candidates);
        judged
    }

    /// A look may be older than the page's merge: it was queued as written, and before its turn
    /// came another page took it for a partner. Only what a merged page is *now* tells whether the
    /// program wrote to it since; to end its share on an old look would free a frame in use.
    ///
    /// So the machine is asked after the record said that the page is merged, never before: between
    /// the two another shard's merge could come about. No other shard ends a merge.
    fn ask_kinds(&mut self, piece: &Piece<'_>, judged: &mut Judged) {
        let merged = std::mem::take(&mut self.merged);
        if merged.is_empty() {
            return;
        }
        let (region, mut kinds) = (piece.region, Vec::with_capacity(piece.pages.len()));
        for run in piece.runs(0) {
            if let Err(error) = region.program.memory.kinds(run, &mut kinds) {
                self.core.report(error);
                merged.iter().for_each(|(at, _)| region.pending.add(piece.pages[*at]));
                return;
            }
        }
        for (at, left) in merged {
            // Where nothing is mapped at this moment, nothing is known: a frame need not be.
            if let Some(kind) = kinds.get(at).copied().flatten() {
                self.judge_merged(region, piece.pages[at], kind, left, judged);
            }
        }
    }

    /// What has become of a page whose record says that it is merged.
    fn judge_merged(
        &self,
        region: &Region,
        index: u64,
        kind: Kind,
        left: PageState,
        judged: &mut Judged,
    ) {
        let page = region.page(index);
        let record = self.world.record(page);
        let tally = &self.core.tally;
        match record.state() {
            PageState::Merged(kpfn) if kind != Kind::Frame => {
                judged.broken.push(Broken { page, kpfn, left });
            }
            PageState::Zero if kind != Kind::Zero => {
                record.set(left);
                tally.zero.sub(1);
            }
            _ => return,
        }
        if left == PageState::Untouched {
            tally.touched.sub(1);
        } else {
            region.pending.add(index);
        }
    }

    /// Reads and judges a piece, passing over what can't be read.
    fn read(&mut self, piece: &Piece<'_>, judged: &mut Judged) {
        let mut at = 0;
        while at < piece.pages.len() {
            piece.region.program.memory.read(&piece.runs(at), &mut |content| {
                self.written(piece, at, self.core.prints.of(content), judged);
                at += 1;
            });
            if at < piece.pages.len() {
                self.vanished(piece, at);
                at += 1;
            }
        }
    }

    fn written(&mut self, piece: &Piece<'_>, at: usize, found: Fingerprint, judged: &mut Judged) {
        let (region, index) = (piece.region, piece.pages[at]);
        let page = region.page(index);
        let record = piece.record(at);
        let tally = &self.core.tally;
        let state = record.state();
        let known = match state {
            PageState::Untouched => {
                tally.touched.add(1);
                None
            }
            PageState::Unread => None,
            PageState::Seen(known) => Some(known),
            PageState::Held(known) => {
                tally.held.sub(1);
                Some(known)
            }
            PageState::OverBudget(known) => {
                tally.over_budget.sub(1);
                Some(known)
            }
            PageState::Unshared(known) => {
                if known == found.into() {
                    return;
                }
                if !self.world.remove_unshared(page) {
                    // Another shard's merge has it and will find that it changed, or not.
                    region.pending.add(index);
                    return;
                }
                None
            }
            PageState::Busy => {
                region.pending.add(index);
                return;
            }
            PageState::Merged(_) | PageState::Zero => {
                self.merged.push((at, PageState::Seen(found)));
                return;
            }
        };
        record.set(PageState::Seen(found));
        if known == Some(found) {
            judged.candidates.push(candidate(page, found));
        } else {
            region.pending.add(index);
        }
    }

    fn again(&mut self, piece: &Piece<'_>, at: usize, judged: &mut Judged) {
        let (region, index) = (piece.region, piece.pages[at]);
        let page = region.page(index);
        let record = piece.record(at);
        let known = match record.state() {
            // Unshared, merged: it was written to while a merge had it, before or after that
            // verified it.
            PageState::Unread | PageState::Unshared(_) | PageState::Merged(_) | PageState::Zero => {
                let alone = Piece { pages: vec![index], ..*piece };
                self.read(&alone, judged);
                return self.ask_kinds(&alone, judged);
            }
            PageState::Seen(known) => {
                judged.candidates.push(candidate(page, known));
                return;
            }
            PageState::Held(known) => {
                self.core.tally.held.sub(1);
                known
            }
            PageState::OverBudget(known) => {
                self.core.tally.over_budget.sub(1);
                known
            }
            PageState::Busy => {
                region.pending.add(index);
                return;
            }
            PageState::Untouched => return,
        };
        record.set(PageState::Seen(known));
        judged.candidates.push(candidate(page, known));
    }

    /// The page is the machine's page of zeros: the program read where it never wrote, or the page
    /// is merged with it.
    fn became_zero(&mut self, piece: &Piece<'_>, at: usize) {
        if piece.record(at).state() != PageState::Zero {
            self.vanished(piece, at);
        }
    }

    /// The page has no memory of its own any more.
    fn vanished(&mut self, piece: &Piece<'_>, at: usize) {
        let (region, index) = (piece.region, piece.pages[at]);
        let page = region.page(index);
        let record = piece.record(at);
        let tally = &self.core.tally;
        match record.state() {
            PageState::Untouched => return,
            PageState::Unshared(_) if !self.world.remove_unshared(page) => {
                region.pending.add(index);
                return;
            }
            PageState::Busy => {
                region.pending.add(index);
                return;
            }
            PageState::Merged(_) | PageState::Zero => {
                self.merged.push((at, PageState::Untouched));
                return;
            }
            PageState::Held(_) => tally.held.sub(1),
            PageState::OverBudget(_) => tally.over_budget.sub(1),
            PageState::Unread | PageState::Seen(_) | PageState::Unshared(_) => {}
        }
        tally.touched.sub(1);
        record.set(PageState::Untouched);
    }

    /// Fills in the candidates' nodes, and their trees by them.
    fn ask_nodes(&self, piece: &Piece<'_>, candidates: &mut Vec<Candidate>) {
        if candidates.is_empty() || self.core.nids.len() == 1 {
            return;
        }
        let (region, mut nids) = (piece.region, Vec::with_capacity(piece.pages.len()));
        for run in piece.runs(0) {
            // Where the machine can't tell a page's node, the page waits for another look.
            if region.program.memory.nodes_of(run, &mut nids).is_err() {
                nids.clear();
                break;
            }
        }
        candidates.retain_mut(|candidate| {
            let index = candidate.page.0 - region.first.0;
            let nid = piece.pages.binary_search(&index).ok().and_then(|at| nids.get(at));
            let node = nid.copied().flatten().and_then(|nid| self.core.node_index(nid));
            match node {
                Some(node) => {
                    candidate.node = node;
                    candidate.tree = self.core.tree_of(node);
                }
                None => region.pending.add(index),
            }
            node.is_some()
        });
    }
}

impl<'a> Piece<'a> {
    /// Of the page at this place of the piece.
    fn record(&self, at: usize) -> &'a Record {
        let index = usize::try_from(self.pages[at]).expect("a page's record is in memory");
        &self.records[index]
    }

    /// The piece's pages from the one at `from` on, adjacent ones together.
    fn runs(&self, from: usize) -> Vec<Range<Vpn>> {
        let runs = self.pages[from..].chunk_by(|a, b| a + 1 == *b);
        runs.map(|run| self.region.vpn(run[0])..self.region.vpn(run[run.len() - 1] + 1)).collect()
    }
}

fn candidate(page: PageId, fingerprint: Fingerprint) -> Candidate {
    Candidate { tree: TreeId(0), fingerprint, page, node: 0 }
}
