//! Second stage: what has become of each page looked at, and which are candidates.
//!
//! Pages are read and hashed in pieces by the node's pool. A page is a candidate when this look saw
//! the content of the look before (S3.1), whether it was read again or known not to be written.

use std::ops::Range;
use std::sync::Arc;

use numerge_stable_tree::{Fingerprint, Kpfn, PageId, PageState, TreeId};
use rayon::prelude::*;

use crate::core::Core;
use crate::machine::{Kind, PAGE_SIZE, Vpn};
use crate::region::Region;
use crate::scan::{Look, Reason};
use crate::shard::Shard;
use crate::world::World;

/// Pages read by one call: 64 KiB, which stays in a core's own cache until it is hashed.
const PIECE_PAGES: usize = 16;

type Page = [u8; PAGE_SIZE];

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
    reason: Reason,
    pages: Vec<u64>,
}

/// Cuts looks into pieces. Looks at single pages are put together, for a call costs more than a page.
fn cut(looks: &[Look]) -> Vec<Piece<'_>> {
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    for Look { region, pages, reason } in looks {
        for page in pages.clone() {
            match pieces.last_mut() {
                Some(last)
                    if Arc::ptr_eq(last.region, region)
                        && last.reason == *reason
                        && last.pages.len() < PIECE_PAGES =>
                {
                    last.pages.push(page);
                }
                _ => {
                    let mut pages = Vec::with_capacity(PIECE_PAGES);
                    pages.push(page);
                    pieces.push(Piece { region, reason: *reason, pages });
                }
            }
        }
    }
    pieces
}

/// Judges a batch of looks on the shard's pool.
pub(crate) fn judge(core: &Core, world: &World, shard: &Shard, looks: &[Look]) -> Judged {
    let pieces = cut(looks);
    let new_judge =
        || Judge { core, world, buffer: vec![[0; PAGE_SIZE]; PIECE_PAGES], kinds: Vec::new() };
    let judged: Vec<Judged> = shard.pool.install(|| {
        pieces.par_iter().map_init(new_judge, |judge, piece| judge.piece(piece)).collect()
    });
    // In order, so that equal histories have equal outcomes.
    judged.into_iter().fold(Judged::default(), Judged::append)
}

struct Judge<'a> {
    core: &'a Core,
    world: &'a World,
    buffer: Vec<Page>,
    /// What lies at the piece's pages, in their order, if any of them is merged.
    kinds: Vec<Option<Kind>>,
}

impl Judge<'_> {
    fn piece(&mut self, piece: &Piece<'_>) -> Judged {
        let mut judged = Judged::default();
        if piece.reason != Reason::Again {
            self.ask_kinds(piece);
        }
        match piece.reason {
            Reason::Written(Kind::Private) => self.read(piece, &mut judged),
            Reason::Written(Kind::Frame) => {}
            Reason::Written(Kind::Zero) => {
                for at in 0..piece.pages.len() {
                    self.became_zero(piece, at, &mut judged);
                }
            }
            Reason::Again => {
                for at in 0..piece.pages.len() {
                    self.again(piece, at, &mut judged);
                }
            }
        }
        self.ask_nodes(piece, &mut judged.candidates);
        judged
    }

    /// A look may be older than the page's merge: it was queued as written, and before its turn
    /// came another page took it for a partner. Only what a merged page is *now* tells whether the
    /// program wrote to it since; to end its share on an old look would free a frame in use.
    fn ask_kinds(&mut self, piece: &Piece<'_>) {
        let region = piece.region;
        let is_merged = |index: &u64| {
            let state = self.world.record(region.page(*index)).state();
            matches!(state, PageState::Merged(_) | PageState::Zero)
        };
        self.kinds.clear();
        if piece.pages.iter().any(is_merged) {
            for run in piece.runs(0) {
                if let Err(error) = region.program.memory.kinds(run, &mut self.kinds) {
                    self.kinds.clear();
                    return self.core.report(error);
                }
            }
        }
    }

    /// Whether a merged page is known to have left what it was merged with. Where nothing is mapped
    /// at this moment, nothing is known: a frame need not be.
    fn has_left(&self, at: usize, merged_with: Kind) -> bool {
        let kind = self.kinds.get(at).copied().flatten();
        kind.is_some_and(|kind| kind != merged_with)
    }

    /// Reads and judges a piece, passing over what can't be read.
    fn read(&mut self, piece: &Piece<'_>, judged: &mut Judged) {
        let mut at = 0;
        while at < piece.pages.len() {
            let wanted = piece.pages.len() - at;
            let buffer = self.buffer[..wanted].as_flattened_mut();
            let read = piece.region.program.memory.read(&piece.runs(at), buffer).min(wanted);
            for place in 0..read {
                let fingerprint = self.core.prints.of(&self.buffer[place]);
                self.written(piece, at + place, fingerprint, judged);
            }
            at += read;
            if at < piece.pages.len() {
                self.vanished(piece, at, judged);
                at += 1;
            }
        }
    }

    fn written(&self, piece: &Piece<'_>, at: usize, found: Fingerprint, judged: &mut Judged) {
        let (region, index) = (piece.region, piece.pages[at]);
        let page = region.page(index);
        let record = self.world.record(page);
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
            PageState::Merged(kpfn) => {
                if self.has_left(at, Kind::Frame) {
                    judged.broken.push(Broken { page, kpfn, left: PageState::Seen(found) });
                    region.pending.add(index);
                }
                return;
            }
            PageState::Zero => {
                if !self.has_left(at, Kind::Zero) {
                    return;
                }
                tally.zero.sub(1);
                None
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
        let record = self.world.record(page);
        let known = match record.state() {
            PageState::Unread => {
                let alone = Piece { region, reason: piece.reason, pages: vec![index] };
                return self.read(&alone, judged);
            }
            PageState::Seen(known) => known,
            PageState::Held(known) => {
                self.core.tally.held.sub(1);
                known
            }
            PageState::OverBudget(known) => {
                self.core.tally.over_budget.sub(1);
                known
            }
            PageState::Untouched
            | PageState::Unshared(_)
            | PageState::Busy
            | PageState::Merged(_)
            | PageState::Zero => return,
        };
        record.set(PageState::Seen(known));
        judged.candidates.push(candidate(page, known));
    }

    /// The page is the machine's page of zeros: the program read where it never wrote, or the page
    /// is merged with it.
    fn became_zero(&self, piece: &Piece<'_>, at: usize, judged: &mut Judged) {
        let page = piece.region.page(piece.pages[at]);
        if self.world.record(page).state() != PageState::Zero {
            self.vanished(piece, at, judged);
        }
    }

    /// The page has no memory of its own any more.
    fn vanished(&self, piece: &Piece<'_>, at: usize, judged: &mut Judged) {
        let page = piece.region.page(piece.pages[at]);
        let record = self.world.record(page);
        let tally = &self.core.tally;
        match record.state() {
            PageState::Untouched => return,
            PageState::Unshared(_) if !self.world.remove_unshared(page) => return,
            PageState::Busy => return,
            PageState::Merged(kpfn) => {
                if self.has_left(at, Kind::Frame) {
                    judged.broken.push(Broken { page, kpfn, left: PageState::Untouched });
                    tally.touched.sub(1);
                }
                return;
            }
            PageState::Zero => {
                if !self.has_left(at, Kind::Zero) {
                    return;
                }
                tally.zero.sub(1);
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

impl Piece<'_> {
    /// The piece's pages from the one at `from` on, adjacent ones together.
    fn runs(&self, from: usize) -> Vec<Range<Vpn>> {
        let runs = self.pages[from..].chunk_by(|a, b| a + 1 == *b);
        runs.map(|run| self.region.vpn(run[0])..self.region.vpn(run[run.len() - 1] + 1)).collect()
    }
}

fn candidate(page: PageId, fingerprint: Fingerprint) -> Candidate {
    Candidate { tree: TreeId(0), fingerprint, page, node: 0 }
}
