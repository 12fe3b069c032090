//! Second stage: what has become of each page looked at, and which are candidates.
//!
//! Pages are read and hashed in pieces, each by threads of the node that its pages are on (S4.2). A
//! page is a candidate when this look saw the content of the look before (S3.1), whether it was read
//! again or known not to be written.

use numerge_stable_tree::{Fingerprint, Kpfn, PageId, PageState, TreeId};
use rayon::prelude::*;

use crate::core::Core;
use crate::knobs::Knob;
use crate::machine::{Kind, READ_PAGES};
use crate::piece::{Piece, cut};
use crate::region::Region;
use crate::scan::{Look, Reason};
use crate::shard::Shard;
use crate::world::World;

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
    /// Looks that were left out (`smart_scan`).
    pub(crate) skipped: u64,
}

impl Judged {
    fn append(mut self, mut more: Self) -> Self {
        self.candidates.append(&mut more.candidates);
        self.broken.append(&mut more.broken);
        self.skipped += more.skipped;
        self
    }
}

/// How many pages of a node were looked at, and looks at them left out.
pub(crate) struct Scanned {
    /// None: nobody can tell.
    pub(crate) node: Option<u16>,
    pub(crate) looked: u64,
    pub(crate) skipped: u64,
}

/// Judges a batch of looks, each page on the pool of its node; those of which nobody can tell where
/// they are, on the shard's own.
pub(crate) fn judge(core: &Core, world: &World, shard: &Shard, looks: &[Look]) -> Judged {
    let mut pieces = cut(core, world, looks);
    pieces.sort_by_key(|piece| piece.node);
    let mut judged = Judged::default();
    for some in pieces.chunk_by(|a, b| a.node == b.node) {
        let node = core.shard_for(some[0].node.unwrap_or(shard.node()));
        // In order, so that equal histories have equal outcomes.
        judged = judge_on(core, world, node, some).into_iter().fold(judged, Judged::append);
    }
    judged
}

/// Judges pieces on the pool of a node, and with as many more as have nothing to do, if that is
/// wanted.
fn judge_on(core: &Core, world: &World, node: u16, pieces: &[Piece<'_>]) -> Vec<Judged> {
    let work = |threads: u16, pieces: &[Piece<'_>]| -> Vec<Judged> {
        let is_smart = core.knobs.is_on(Knob::SmartScan);
        let new_judge = || Judge { node: threads, core, world, is_smart, merged: Vec::new() };
        let judged: Vec<Judged> =
            pieces.par_iter().map_init(new_judge, |judge, piece| judge.piece(piece)).collect();
        let counts = pieces.iter().zip(&judged).map(|(piece, judged)| Scanned {
            node: piece.node,
            looked: (piece.pages.len() as u64).saturating_sub(judged.skipped),
            skipped: judged.skipped,
        });
        core.count_scanned(threads, counts);
        judged
    };
    let helpers = core.helpers(node);
    let share = pieces.len().div_ceil(helpers.len() + 1).max(1);
    let (own, others) = pieces.split_at(share.min(pieces.len()));
    let mut judged: Vec<Vec<Judged>> = helpers.iter().map(|_| Vec::new()).collect();
    let (mut first, mut unhelped) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let shares = others.chunks(share).zip(&mut judged).zip(&helpers);
        for ((pieces, judged), (threads, pool)) in shares {
            let help = move || *judged = pool.install(|| work(*threads, pieces));
            // Without a thread to wait in, there is no help.
            if std::thread::Builder::new().spawn_scoped(scope, help).is_err() {
                unhelped.push(pieces);
            }
        }
        first = core.pool(node).install(|| work(node, own));
    });
    let rest = unhelped.into_iter().map(|pieces| core.pool(node).install(|| work(node, pieces)));
    let rest: Vec<Vec<Judged>> = rest.collect();
    std::iter::once(first).chain(judged).chain(rest).flatten().collect()
}

struct Judge<'a> {
    /// The node of the threads that do it.
    node: u16,
    core: &'a Core,
    world: &'a World,
    /// Whether looks may be left out.
    is_smart: bool,
    /// Places in the piece of pages that were found merged, and what those pages are to be if they
    /// turn out not to be any more.
    merged: Vec<(usize, PageState)>,
}

impl Judge<'_> {
    fn piece(&mut self, piece: &Piece<'_>) -> Judged {
        let mut judged = Judged::default();
        let rest;
        let piece = if self.is_smart && piece.reason == Reason::Written(Kind::Private) {
            let places = 0..piece.pages.len();
            let kept = places.filter(|at| !self.leaves_out(piece, *at, &mut judged));
            rest = Piece { pages: kept.map(|at| piece.pages[at]).collect(), ..*piece };
            &rest
        } else {
            piece
        };
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
                let (mut untouched, mut unknown) = (Vec::new(), Vec::new());
                for at in 0..piece.pages.len() {
                    match piece.record(at).state() {
                        PageState::Untouched => untouched.push(piece.pages[at]),
                        _ if self.again(piece, at, &mut judged) => unknown.push(piece.pages[at]),
                        _ => {}
                    }
                }
                self.read_again(piece, unknown, &mut judged);
                if !untouched.is_empty() {
                    self.anew(&Piece { pages: untouched, ..*piece }, &mut judged);
                }
            }
        }
        self.ask_kinds(piece, &mut judged);
        self.place(piece, &mut judged.candidates);
        judged
    }

    /// Fills in the candidates' node, and their tree by it. Where the node can't be told, or is on
    /// its way offline, they wait for another look.
    fn place(&self, piece: &Piece<'_>, candidates: &mut Vec<Candidate>) {
        // Where one tree serves all, a node that the engine does not know is as good as any.
        let node = piece.node.or((!self.core.has_tree_per_node()).then_some(self.node));
        match node.filter(|node| self.core.shards[usize::from(*node)].is_online()) {
            Some(node) => candidates.iter_mut().for_each(|candidate| {
                candidate.node = node;
                candidate.tree = self.core.tree_of(node);
            }),
            None => candidates.drain(..).for_each(|candidate| {
                piece.region.pending.add(candidate.page.0 - piece.region.first.0);
            }),
        }
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
        if let Err(error) =
            region.program.memory.kinds(&piece.runs(0..piece.pages.len()), &mut kinds)
        {
            self.core.report(error);
            merged.iter().for_each(|(at, _)| region.pending.add(piece.pages[*at]));
            return;
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
                region.program.zero.sub(1);
            }
            _ => return,
        }
        if left == PageState::Untouched {
            tally.touched.sub(1);
            region.program.touched.sub(1);
        } else {
            region.pending.add(index);
        }
    }

    /// Whether a look is left out; the page stays to be looked at then.
    fn leaves_out(&self, piece: &Piece<'_>, at: usize, judged: &mut Judged) -> bool {
        let (region, index, record) = (piece.region, piece.pages[at], piece.record(at));
        let is_volatile = matches!(record.state(), PageState::Seen(_) | PageState::Unread);
        if !(self.is_smart && is_volatile && region.ages.leave_out(index)) {
            return false;
        }
        // What was written is not known.
        record.set(PageState::Unread);
        region.pending.add(index);
        judged.skipped += 1;
        true
    }

    /// Reads and judges a piece, passing over what can't be read. What can't be told now is reported again.
    fn read(&mut self, piece: &Piece<'_>, judged: &mut Judged) {
        // What was written to has to leave the unstable tree.
        let tree = self.world.unstable(self.core.tree_of(piece.node.unwrap_or(self.node)));
        let pages = piece.pages.iter().map(|index| piece.region.page(*index));
        tree.prefetch_removal(&self.world.pages, pages);
        let (mut at, mut most, mut failed) = (0, piece.pages.len(), None);
        while at < piece.pages.len() {
            let end = piece.pages.len().min(at + most);
            let (memory, prints) = (&piece.region.program.memory, &self.core.prints);
            let read = memory.fingerprints(&piece.runs(at..end), prints, &mut |found| {
                self.written(piece, at, found, judged);
                at += 1;
            });
            if let Err(error) = read {
                failed = failed.or(Some(error));
                // Also those that are gone before they are reported.
                piece.pages[at..end].iter().for_each(|index| piece.region.pending.add(*index));
                at = end;
            } else if at < end {
                self.vanished(piece, at);
                // Where one can't be read there may be many.
                (at, most) = (at + 1, READ_PAGES);
            }
        }
        // Once: where one look fails, those after it mostly do.
        failed.into_iter().for_each(|error| self.core.report(error));
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
                region.program.touched.add(1);
                None
            }
            PageState::Unread => None,
            PageState::Seen(known) => Some(known),
            // What a machine puts back that it could not merge counts as written to: it waits for its
            // turn like others.
            PageState::Held(known) | PageState::OverBudget(known)
                if known == found && piece.reason != Reason::Again =>
            {
                return;
            }
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
        match known {
            Some(known) if known == found => region.ages.unchanged(index),
            Some(_) => region.ages.changed(index),
            None => {}
        }
        if known == Some(found) {
            judged.candidates.push(candidate(page, found));
        } else {
            region.pending.add(index);
        }
    }

    /// Whether the page has to be read.
    fn again(&self, piece: &Piece<'_>, at: usize, judged: &mut Judged) -> bool {
        let (region, index) = (piece.region, piece.pages[at]);
        let page = region.page(index);
        let record = piece.record(at);
        match record.state() {
            // Held, over budget, unshared, merged: it may have been written to while a merge had it,
            // before or after that verified it.
            PageState::Unread
            | PageState::Held(_)
            | PageState::OverBudget(_)
            | PageState::Unshared(_)
            | PageState::Merged(_)
            | PageState::Zero => return !self.leaves_out(piece, at, judged),
            PageState::Seen(known) => {
                region.ages.unchanged(index);
                judged.candidates.push(candidate(page, known));
            }
            PageState::Busy => region.pending.add(index),
            PageState::Untouched => {}
        }
        false
    }

    /// Reads some pages of a piece.
    fn read_again(&mut self, piece: &Piece<'_>, pages: Vec<u64>, judged: &mut Judged) {
        let some = Piece { pages, ..*piece };
        self.read(&some, judged);
        self.ask_kinds(&some, judged);
    }

    /// Reads pages of which nothing is known, as after an unmerging of everything, if there is anything.
    fn anew(&mut self, piece: &Piece<'_>, judged: &mut Judged) {
        let (region, mut kinds) = (piece.region, Vec::with_capacity(piece.pages.len()));
        if let Err(error) =
            region.program.memory.kinds(&piece.runs(0..piece.pages.len()), &mut kinds)
        {
            self.core.report(error);
            piece.pages.iter().for_each(|index| region.pending.add(*index));
            return;
        }
        let found = piece.pages.iter().zip(kinds);
        let private = found.filter(|(_, kind)| *kind == Some(Kind::Private));
        let pages: Vec<u64> = private.map(|(index, _)| *index).collect();
        self.read_again(piece, pages, judged);
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
        region.program.touched.sub(1);
        record.set(PageState::Untouched);
    }
}

fn candidate(page: PageId, fingerprint: Fingerprint) -> Candidate {
    Candidate { tree: TreeId(0), fingerprint, page, node: 0 }
}
