//! Third stage: which frame each candidate can share, or which page it can make a new one with.
//!
//! Candidates of equal fingerprint are taken together: one look-up in the stable tree for all of
//! them, then one in the unstable tree for what found no room (S3.2).

use numerge_stable_tree::{EntryRef, Fingerprint, Guard, Handle, Kpfn, PageId, Terms, TreeId};
use rayon::prelude::*;

use crate::core::Core;
use crate::judge::Candidate;
use crate::knobs::Knob;
use crate::piece::piece_pages;
use crate::shard::Shard;
use crate::world::World;

/// Look-ups under one guard.
const PIN_GROUPS: usize = 64;

/// A page and what it is to be mapped to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Merge {
    pub(crate) page: PageId,
    pub(crate) fingerprint: Fingerprint,
    /// None: the machine's page of zeros.
    pub(crate) kpfn: Option<Kpfn>,
    pub(crate) tree: TreeId,
    pub(crate) node: u16,
}

/// Pages of equal fingerprint that need new frames: at least two a frame, and no more than the
/// sharing limit.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) tree: TreeId,
    pub(crate) node: u16,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) pages: Vec<PageId>,
    pub(crate) frames: usize,
}

/// Whether candidates are looked up in the stable tree too. Those whose fingerprint was found there
/// with other content are not, the second time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    Both,
    UnstableOnly,
}

#[derive(Default)]
pub(crate) struct Found {
    /// Pages whose share of a frame is reserved, and pages of zeros.
    pub(crate) merges: Vec<Merge>,
    pub(crate) groups: Vec<Group>,
}

/// Candidates of equal fingerprint for which no frame has room.
struct Leftover {
    first: Candidate,
    pages: Vec<PageId>,
    /// The page that waited for them in the unstable tree. It is looked at now, for if it has
    /// changed since, what would come about is a frame with one sharer.
    partner: Option<PageId>,
}

/// Looks up a batch's candidates; they must be sorted.
pub(crate) fn find(
    core: &Core,
    world: &World,
    reader: &Handle,
    shard: &Shard,
    candidates: &[Candidate],
    scope: Scope,
) -> Found {
    let mut finder = Finder {
        core,
        world,
        scope,
        zero: core.knobs.is_on(Knob::UseZeroPages).then_some(core.prints.zero),
        terms: core.terms(),
        found: Found::default(),
        leftovers: Vec::new(),
        shares: Vec::new(),
    };
    let mut crowded = Vec::new();
    let groups: Vec<&[Candidate]> =
        candidates.chunk_by(|a, b| (a.tree, a.fingerprint) == (b.tree, b.fingerprint)).collect();
    for some in groups.chunks(PIN_GROUPS) {
        // Candidates are sorted by tree: nearly always all of them are for one.
        let tree = some[0][0].tree;
        let firsts = some.iter().map(|group| (group[0].fingerprint, group[0].page));
        world.unstable(tree).prefetch(&world.pages, firsts);
        // A guard for each chunk: a guard held long holds up reclamation for everyone.
        let guard = reader.pin();
        crowded.extend(some.iter().filter(|group| !finder.group(&guard, group)));
    }
    crowded.into_iter().for_each(|group| finder.crowded_group(reader, group));
    let mut leftovers = std::mem::take(&mut finder.leftovers);
    finder.drop_changed_partners(shard, &mut leftovers);
    leftovers.into_iter().for_each(|leftover| finder.pair(reader, leftover));
    finder.found
}

struct Finder<'a> {
    core: &'a Core,
    world: &'a World,
    scope: Scope,
    zero: Option<Fingerprint>,
    terms: Terms,
    found: Found,
    leftovers: Vec<Leftover>,
    shares: Vec<(Kpfn, u32)>,
}

impl Finder<'_> {
    /// False, and nothing done, if several contents have the group's fingerprint.
    fn group(&mut self, guard: &Guard<'_>, group: &[Candidate]) -> bool {
        let first = group[0];
        let mut left = group;
        if self.scope == Scope::Both {
            if self.zero == Some(first.fingerprint) {
                self.found.merges.extend(group.iter().map(|candidate| merge(*candidate, None)));
                return true;
            }
            let siblings = self.core.forest.siblings(first.tree, first.fingerprint, guard);
            match (siblings.iter().next(), siblings.len()) {
                (None, _) => {}
                (Some(entry), 1) => left = &group[self.reserve(guard, entry, group)..],
                _ => return false,
            }
        }
        self.take_partner(guard, first, left);
        true
    }

    /// Where several contents have one fingerprint, each page is compared first.
    fn crowded_group(&mut self, reader: &Handle, group: &[Candidate]) {
        let unlike = |one: &&Candidate| !self.reserve_equal(reader, **one);
        let left: Vec<Candidate> = group.iter().filter(unlike).copied().collect();
        self.take_partner(&reader.pin(), group[0], &left);
    }

    /// Reserves shares of an entry's frames for as many of the group as there is room for, and
    /// gives how many that are. Frames side by side get adjacent pages, so that runs come about.
    fn reserve<'g>(
        &mut self,
        guard: &'g Guard<'_>,
        entry: EntryRef<'g>,
        group: &[Candidate],
    ) -> usize {
        let mut shares = std::mem::take(&mut self.shares);
        let wanted = group.len() as u64;
        self.core.forest.reserve(guard, entry, wanted, self.terms, &mut shares);
        shares.sort_unstable();
        let mut pages = group.iter();
        let mut taken = 0;
        while !shares.is_empty() {
            shares.retain_mut(|(kpfn, count)| {
                if let Some(candidate) = pages.next() {
                    self.found.merges.push(merge(*candidate, Some(*kpfn)));
                    taken += 1;
                }
                *count -= 1;
                *count > 0
            });
        }
        self.shares = shares;
        taken
    }

    /// The same for one page, of an entry with its content.
    fn reserve_equal(&mut self, reader: &Handle, candidate: Candidate) -> bool {
        // Read before the guard is taken: the page may be frozen by another shard for a moment.
        let Some(content) = self.world.content(candidate.page) else {
            return false;
        };
        let guard = reader.pin();
        let siblings = self.core.forest.siblings(candidate.tree, candidate.fingerprint, &guard);
        let equal = siblings.iter().find(|entry| self.core.entry_is(*entry, &content));
        equal.is_some_and(|entry| self.reserve(&guard, entry, &[candidate]) == 1)
    }

    /// Asks the unstable tree for a partner of pages for which no frame has room. A page alone
    /// without one enters the tree.
    fn take_partner(&mut self, guard: &Guard<'_>, first: Candidate, left: &[Candidate]) {
        let partner = match left {
            [] => return,
            [alone] => match self.take_or_wait(guard, *alone) {
                None => return,
                partner => partner,
            },
            _ => self.world.unstable(first.tree).take(&self.world.pages, first.fingerprint),
        };
        let pages = left.iter().map(|candidate| candidate.page).collect();
        self.leftovers.push(Leftover { first, pages, partner });
    }

    /// A page's partner, or None: then the page has entered the unstable tree, or shares a frame.
    ///
    /// A frame may have come into the stable tree since the page was looked up there, by another
    /// shard that did not find the page in the unstable tree yet. So that one of the two finds the
    /// other, each looks again after it has entered what it has; for the other side see `supply`.
    fn take_or_wait(&mut self, guard: &Guard<'_>, alone: Candidate) -> Option<PageId> {
        let Candidate { tree, fingerprint, page, .. } = alone;
        let (unstable, records) = (self.world.unstable(tree), &self.world.pages);
        let partner = unstable.take_or_insert(records, fingerprint, page);
        let is_only_shard = self.core.nids.len() == 1;
        if partner.is_some() || is_only_shard || self.scope == Scope::UnstableOnly {
            return partner;
        }
        let siblings = self.core.forest.siblings(tree, fingerprint, guard);
        let (Some(entry), 1) = (siblings.iter().next(), siblings.len()) else { return None };
        let mut shares = Vec::new();
        self.core.forest.reserve(guard, entry, 1, self.terms.without_pruning(), &mut shares);
        for (kpfn, _) in shares {
            if unstable.take_page(records, page) {
                self.found.merges.push(merge(alone, Some(kpfn)));
            } else {
                // Somebody took it for a partner.
                self.core.forest.give_up(guard, kpfn);
            }
        }
        None
    }

    /// Reads all partners, in the order of their memory, on the shard's pool.
    fn drop_changed_partners(&self, shard: &Shard, leftovers: &mut [Leftover]) {
        let mut partners: Vec<(PageId, &mut Leftover)> = leftovers
            .iter_mut()
            .filter_map(|leftover| Some((leftover.partner?, leftover)))
            .collect();
        partners.sort_unstable_by_key(|(page, _)| *page);
        let together = piece_pages(self.core, partners.len());
        self.core.pool(shard.node()).install(|| {
            partners.par_chunks_mut(together).for_each(|some| {
                let pages: Vec<PageId> = some.iter().map(|(page, _)| *page).collect();
                let found = self.world.fingerprints(&pages, &self.core.prints);
                for ((page, leftover), found) in some.iter_mut().zip(found) {
                    if !self.is_still(leftover.first, *page, found) {
                        leftover.partner = None;
                    }
                }
            });
        });
    }

    /// Pages for which no frame has room: with a page that waits in the unstable tree, if there is
    /// one, they need new frames, as few as the limit allows; one that is left over waits (S2.2).
    fn pair(&mut self, reader: &Handle, leftover: Leftover) {
        let Leftover { first, mut pages, partner } = leftover;
        let Candidate { tree, fingerprint, node, .. } = first;
        let limit = self.terms.limit as usize;
        pages.extend(partner);
        while pages.len() % limit == 1 {
            let Some(last) = pages.pop() else { break };
            let alone = Candidate { page: last, ..first };
            let Some(partner) = self.take_or_wait(&reader.pin(), alone) else { break };
            pages.push(last);
            let found = self.world.fingerprints(&[partner], &self.core.prints)[0];
            if self.is_still(first, partner, found) {
                pages.push(partner);
            }
        }
        if !pages.is_empty() {
            let frames = pages.len().div_ceil(limit);
            pages.sort_unstable();
            self.found.groups.push(Group { tree, node, fingerprint, pages, frames });
        }
    }

    /// Whether a page taken from an unstable tree still has the content and the node it had when
    /// it entered (S4.1). If not, or if that can't be told, it is looked at again.
    fn is_still(&self, first: Candidate, page: PageId, found: Option<Fingerprint>) -> bool {
        let same = found == Some(first.fingerprint) && self.is_on_its_tree(first.tree, page);
        if !same {
            self.world.look_again(page);
        }
        same
    }

    fn is_on_its_tree(&self, tree: TreeId, page: PageId) -> bool {
        if !self.core.has_tree_per_node() {
            return true;
        }
        let (region, index) = self.world.locate(page);
        let mut nids = Vec::with_capacity(1);
        let asked = region.vpn(index)..region.vpn(index + 1);
        let _ = region.program.memory.nodes_of(&[asked], &mut nids);
        let node = self.core.node_of(&nids, 0);
        node.is_some_and(|node| self.core.tree_of(node) == tree)
    }
}

fn merge(candidate: Candidate, kpfn: Option<Kpfn>) -> Merge {
    let Candidate { tree, fingerprint, page, node } = candidate;
    Merge { page, fingerprint, kpfn, tree, node }
}
