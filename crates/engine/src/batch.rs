//! The pipeline: one batch from its first look to its last record.

use std::time::Instant;

use numerge_stable_tree::{Handle, PageState, TreeId};
use parking_lot::RwLockReadGuard;

use crate::core::Core;
use crate::find::{Found, Merge, Scope, find};
use crate::judge::{Candidate, judge};
use crate::late;
use crate::machine::Outcome;
use crate::plan::plan;
use crate::record::{record, record_broken, record_over_budget};
use crate::scan::Look;
use crate::shard::Shard;
use crate::supply::supply;
use crate::world::World;

/// The most pages that are under way at once: enough for long runs, few enough for their tables to
/// stay in a core's cache, and for others to have their turn.
const BATCH_PAGES: u64 = 1 << 14;

/// What a batch did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Batch {
    /// Pages looked at.
    pub(crate) looked: u64,
    /// Whether it was the last of its shard's pass.
    pub(crate) ended_pass: bool,
}

impl Core {
    /// One batch of a shard's pass, `most` pages or fewer, on the shard's pool. A pass that is over
    /// begins anew.
    ///
    /// Whether scanning is still wanted is asked again once nothing else can come between: an
    /// unmerging that has been told that all is done must not find pages merged afterwards.
    pub(crate) fn batch(
        &self,
        shard: &Shard,
        reader: &Handle,
        most: u64,
        is_wanted: impl Fn() -> bool,
    ) -> Batch {
        let began = Instant::now();
        let mut cursor = shard.cursor();
        if !shard.is_online() {
            return Batch::default();
        }
        if !cursor.is_under_way() && !self.begin_pass(shard, &mut cursor, reader, &is_wanted) {
            return Batch::default();
        }
        let mut errors = Vec::new();
        let quota = most.min(BATCH_PAGES);
        let (looks, ended_pass) = {
            // A region that is walked must not go meanwhile: a new one at its place would miss what
            // was written.
            let world = self.world();
            cursor.next(self, &world, quota, &mut errors)
        };
        errors.into_iter().for_each(|error| self.report(error));

        let world = self.world_with_room(&looks);
        if !is_wanted() {
            cursor.put_back(looks);
            return Batch::default();
        }
        late::collect(self, &world, reader);
        // Those of a region that is being let go of wait: if that fails, they are still to be done,
        // for what was written is reported once.
        let (closing, looks): (Vec<Look>, Vec<Look>) =
            looks.into_iter().partition(|look| look.region.is_closing());
        cursor.set_aside(closing);
        let looked = looks.iter().map(|look| look.pages.end - look.pages.start).sum();
        let skipped =
            if looked > 0 { self.pipeline(&world, reader, shard, &looks, began) } else { 0 };
        drop(world);
        self.return_freed(reader);
        self.tally.scanned.add(looked - skipped);
        self.tally.skipped.add(skipped);
        if ended_pass {
            self.end_pass(shard);
        }
        Batch { looked, ended_pass }
    }

    /// The tables, with room for what a batch may add.
    fn world_with_room(&self, looks: &[Look]) -> RwLockReadGuard<'_, World> {
        let pages: u64 = looks.iter().map(|look| look.pages.end - look.pages.start).sum();
        let more = usize::try_from(pages).expect("a batch is in memory");
        loop {
            let world = self.world();
            if !world.must_grow(more) {
                return world;
            }
            drop(world);
            let mut world = self.world_mut();
            if !self.has_tree_per_node() {
                world.fit_first(usize::try_from(self.unmerged()).unwrap_or(more));
            }
            self.resize(&mut world, more);
        }
    }

    /// Fits the unstable trees to their pages and `more` to come, and where each node has its own,
    /// puts them there (S4.2).
    pub(crate) fn resize(&self, world: &mut World, more: usize) {
        world.resize(more);
        if self.has_tree_per_node() {
            for (node, nid) in (0..).zip(&self.nids) {
                // Where that can't be done they are read from afar.
                let _ = self.nodes.place(world.unstable(TreeId(node)).bytes(), *nid);
            }
        }
    }

    /// Pages with content that are not merged.
    fn unmerged(&self) -> u64 {
        let tally = &self.tally;
        let merged = tally.shared.get() + tally.sharing.get() + tally.zero.get();
        tally.touched.get().saturating_sub(merged)
    }

    /// Gives how many looks were left out.
    fn pipeline(
        &self,
        world: &World,
        reader: &Handle,
        shard: &Shard,
        looks: &[Look],
        began: Instant,
    ) -> u64 {
        shard.set_busy(true);
        let mut judged = judge(self, world, shard, looks);
        shard.set_busy(false);
        record_broken(self, world, reader, &judged.broken);
        shard.broken.add(judged.broken.len() as u64);
        judged.candidates.sort_unstable();
        let found = find(self, world, reader, shard, &judged.candidates, Scope::Both);
        let found_at = Instant::now();
        self.tally.read_nanos.add(nanos(found_at - began));
        if found.merges.is_empty() && found.groups.is_empty() {
            return judged.skipped;
        }
        let cpu = self.nodes.thread_cpu_time();
        let collided = self.merge(world, reader, found);
        if !collided.is_empty() {
            let found = find(self, world, reader, shard, &collided, Scope::UnstableOnly);
            for again in self.merge(world, reader, found) {
                world.record(again.page).set(PageState::Held(again.fingerprint));
                self.tally.held.add(1);
            }
        }
        self.tally.merge_nanos.add(nanos(found_at.elapsed()));
        self.tally.merge_cpu_nanos.add(nanos(self.nodes.thread_cpu_time().saturating_sub(cpu)));
        judged.skipped
    }

    /// From what was found to what is recorded. Gives pages that differ from their frame in spite
    /// of their fingerprint.
    fn merge(&self, world: &World, reader: &Handle, found: Found) -> Vec<Candidate> {
        let Found { mut merges, groups } = found;
        supply(self, world, reader, groups, &mut merges);
        self.execute(world, reader, merges)
    }

    /// Plans, merges and records.
    pub(crate) fn execute(
        &self,
        world: &World,
        reader: &Handle,
        merges: Vec<Merge>,
    ) -> Vec<Candidate> {
        self.tally.attempted.add(merges.len() as u64);
        let planned = plan(world, &self.late, self.clock.now_ms(), merges);
        planned.errors.into_iter().for_each(|error| self.report(error));
        record_over_budget(self, world, reader, &planned.over_budget);
        let outcomes = vec![Outcome::Deferred; planned.deferred.len()];
        let mut collided = record(self, world, reader, &planned.deferred, &outcomes);
        for plan in planned.plans {
            let mut outcomes = Vec::with_capacity(plan.merges.len());
            plan.program.memory.merge(&plan.runs, &mut outcomes);
            collided.append(&mut record(self, world, reader, &plan.merges, &outcomes));
        }
        collided
    }
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
