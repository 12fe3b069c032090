//! Second stage: what has become of each page looked at, and which are candidates.
//!
//! Pages are read and hashed in pieces by the node's pool. A page is a candidate when this look saw
//! the content of the look before (S3.1), whether it was read again or known not to be written.

use std::ops::Range;

use numerge_stable_tree::{Fingerprint, Kpfn, PageId, PageState, TreeId};
use rayon::prelude::*;

use crate::core::Core;
use crate::machine::{Kind, PAGE_SIZE};
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

/// Judges a batch of looks on the shard's pool.
pub(crate) fn judge(core: &Core, world: &World, shard: &Shard, looks: &[Look]) -> Judged {
    let pieces: Vec<(&Look, Range<u64>)> = looks
        .iter()
        .flat_map(|look| {
            let piece = PIECE_PAGES as u64;
            let starts = look.pages.clone().step_by(PIECE_PAGES);
            starts.map(move |start| (look, start..(start + piece).min(look.pages.end)))
        })
        .collect();
    let new_judge = || Judge {
        core,
        world,
        buffer: vec![[0; PAGE_SIZE]; PIECE_PAGES],
        kinds: Vec::new(),
        kinds_from: 0,
    };
    let judged: Vec<Judged> = shard.pool.install(|| {
        pieces
            .par_iter()
            .map_init(new_judge, |judge, (look, pages)| judge.piece(look, pages.clone()))
            .collect()
    });
    // In order, so that equal histories have equal outcomes.
    judged.into_iter().fold(Judged::default(), Judged::append)
}

struct Judge<'a> {
    core: &'a Core,
    world: &'a World,
    buffer: Vec<Page>,
    /// What lies at merged pages of the piece, from `kinds_from` on.
    kinds: Vec<Option<Kind>>,
    kinds_from: u64,
}

impl Judge<'_> {
    fn piece(&mut self, look: &Look, pages: Range<u64>) -> Judged {
        let mut judged = Judged::default();
        if look.reason != Reason::Again {
            self.ask_kinds(&look.region, pages.clone());
        }
        match look.reason {
            Reason::Written(Kind::Private) => self.read(&look.region, pages.clone(), &mut judged),
            Reason::Written(Kind::Frame) => {}
            Reason::Written(Kind::Zero) => {
                for index in pages.clone() {
                    self.became_zero(&look.region, index, &mut judged);
                }
            }
            Reason::Again => {
                for index in pages.clone() {
                    self.again(&look.region, index, &mut judged);
                }
            }
        }
        self.ask_nodes(&look.region, pages, &mut judged.candidates);
        judged
    }

    /// A look may be older than the page's merge: it was queued as written, and before its turn
    /// came another page took it for a partner. Only what a merged page is *now* tells whether the
    /// program wrote to it since; to end its share on an old look would free a frame in use.
    fn ask_kinds(&mut self, region: &Region, pages: Range<u64>) {
        let is_merged = |index: u64| {
            let state = self.world.record(region.page(index)).state();
            matches!(state, PageState::Merged(_) | PageState::Zero)
        };
        self.kinds.clear();
        self.kinds_from = pages.start;
        if pages.clone().any(is_merged) {
            let vpns = region.vpn(pages.start)..region.vpn(pages.end);
            if let Err(error) = region.program.memory.kinds(vpns, &mut self.kinds) {
                self.core.report(error);
            }
        }
    }

    /// Whether a merged page of the piece is known to have left what it was merged with. Where
    /// nothing is mapped at this moment, nothing is known: a frame need not be.
    fn has_left(&self, index: u64, merged_with: Kind) -> bool {
        let at = usize::try_from(index - self.kinds_from).ok();
        let kind = at.and_then(|at| self.kinds.get(at)).copied().flatten();
        kind.is_some_and(|kind| kind != merged_with)
    }

    /// Reads and judges adjacent pages, passing over what can't be read.
    fn read(&mut self, region: &Region, pages: Range<u64>, judged: &mut Judged) {
        let mut at = pages.start;
        while at < pages.end {
            let wanted = usize::try_from(pages.end - at).expect("a piece");
            let read = region
                .program
                .memory
                .read(region.vpn(at), self.buffer[..wanted].as_flattened_mut())
                .min(wanted);
            for (index, content) in (at..).zip(&self.buffer[..read]) {
                let fingerprint = self.core.prints.of(content);
                self.written(region, index, fingerprint, judged);
            }
            at += read as u64;
            if at < pages.end {
                self.vanished(region, at, judged);
                at += 1;
            }
        }
    }

    fn written(&self, region: &Region, index: u64, found: Fingerprint, judged: &mut Judged) {
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
                if self.has_left(index, Kind::Frame) {
                    judged.broken.push(Broken { page, kpfn, left: PageState::Seen(found) });
                    region.pending.add(index);
                }
                return;
            }
            PageState::Zero => {
                if !self.has_left(index, Kind::Zero) {
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

    fn again(&mut self, region: &Region, index: u64, judged: &mut Judged) {
        let page = region.page(index);
        let record = self.world.record(page);
        let known = match record.state() {
            PageState::Unread => return self.read(region, index..index + 1, judged),
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
    fn became_zero(&self, region: &Region, index: u64, judged: &mut Judged) {
        if self.world.record(region.page(index)).state() != PageState::Zero {
            self.vanished(region, index, judged);
        }
    }

    /// The page has no memory of its own any more.
    fn vanished(&self, region: &Region, index: u64, judged: &mut Judged) {
        let page = region.page(index);
        let record = self.world.record(page);
        let tally = &self.core.tally;
        match record.state() {
            PageState::Untouched => return,
            PageState::Unshared(_) if !self.world.remove_unshared(page) => return,
            PageState::Busy => return,
            PageState::Merged(kpfn) => {
                if self.has_left(index, Kind::Frame) {
                    judged.broken.push(Broken { page, kpfn, left: PageState::Untouched });
                    tally.touched.sub(1);
                }
                return;
            }
            PageState::Zero => {
                if !self.has_left(index, Kind::Zero) {
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
    fn ask_nodes(&self, region: &Region, pages: Range<u64>, candidates: &mut Vec<Candidate>) {
        if candidates.is_empty() || self.core.nids.len() == 1 {
            return;
        }
        let mut nids = Vec::new();
        let asked = region.vpn(pages.start)..region.vpn(pages.end);
        // Where the machine can't tell a page's node, the page waits for another look.
        let _ = region.program.memory.nodes_of(asked, &mut nids);
        candidates.retain_mut(|candidate| {
            let index = candidate.page.0 - region.first.0;
            let nid = usize::try_from(index - pages.start).ok().and_then(|at| nids.get(at));
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

fn candidate(page: PageId, fingerprint: Fingerprint) -> Candidate {
    Candidate { tree: TreeId(0), fingerprint, page, node: 0 }
}
