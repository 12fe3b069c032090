//! What all shards share, and how far they are in their passes.

use std::sync::Arc;
use std::time::Duration;

use numerge_stable_tree::sync::{AtomicU64, Ordering};
use numerge_stable_tree::{EntryRef, Forest, Handle, Kpfn, Terms, TreeId};
use numerge_topology::Nid;
use rayon::ThreadPool;

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::advisor::Began;
use crate::clock::Clock;
use crate::counters::{Counters, Progress, StageTimes, Tally, Work};
use crate::fingerprint::Fingerprinter;
use crate::homes;
use crate::judge::Scanned;
use crate::knobs::{Knob, Knobs};
use crate::late::Late;
use crate::machine::{Frames, MemoryError, Nodes, PAGE_SIZE};
use crate::migrate;
use crate::scan::Cursor;
use crate::shard::Shard;
use crate::world::World;

/// Full scans after which pages that could not be merged are tried again.
pub const RETRY_PASSES: u64 = 16;

/// The most tries, at a time, to end a grace period.
const FLUSHES: u32 = 4;

/// Errors kept for whoever asks.
const ERRORS_KEPT: usize = 16;

/// The engine without its threads.
pub(crate) struct Core {
    pub(crate) forest: Forest,
    pub(crate) prints: Arc<Fingerprinter>,
    pub(crate) frames: Arc<dyn Frames>,
    pub(crate) nodes: Arc<dyn Nodes>,
    /// The nodes, in order. A node is known by its place here.
    pub(crate) nids: Vec<Nid>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) knobs: Knobs,
    pub(crate) tally: Tally,
    pub(crate) clock: Clock,
    pub(crate) mapping_share_percent: u64,
    pub(crate) policy: Policy,
    pub(crate) late: Late,
    world: RwLock<World>,
    /// By unstable tree: the pages in it, for who can't wait for the world.
    unshared: Vec<Arc<AtomicU64>>,
    /// What the world took when it was last looked at.
    world_bytes: AtomicU64,
    passes: Mutex<Passes>,
    /// A full scan is over.
    scanned: Condvar,
    /// [`Nodes::migrations`] when frames were last asked for their node. Who holds this takes frames
    /// from trees to the queue and back; waited for only by who has no other lock.
    swept: Mutex<Option<u64>>,
    /// Taken after all others.
    scan_began: Mutex<Began>,
    errors: Mutex<Vec<MemoryError>>,
}

/// What the engine's owner has chosen for good.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Threads of a node with nothing to do look at pages of others.
    pub(crate) help_other_nodes: bool,
    /// Frames that were moved off their tree's node are moved back.
    pub(crate) move_frames_back: bool,
    /// The advisor takes visits of all pages for full scans.
    pub(crate) advise_by_visits: bool,
}

/// How far the shards are in the full scan that is under way.
struct Passes {
    /// Who ended a pass since all had ended one.
    ended: Vec<bool>,
    /// Whose pass does not count, since it got something to scan after its beginning.
    void: Vec<bool>,
    /// Who is offline and has handed over all it had.
    gone: Vec<bool>,
}

pub(crate) struct Parts {
    pub(crate) prints: Arc<Fingerprinter>,
    pub(crate) frames: Arc<dyn Frames>,
    pub(crate) nodes: Arc<dyn Nodes>,
    pub(crate) nids: Vec<Nid>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) clock: Clock,
    pub(crate) mapping_share_percent: u64,
    pub(crate) policy: Policy,
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { prints, frames, nodes, nids, shards, clock, mapping_share_percent, policy } =
            parts;
        let trees = nids.len();
        let none = vec![false; shards.len()];
        let world = World::new(trees);
        Self {
            forest: Forest::new(u16::try_from(trees).expect("checked when it was built")),
            prints,
            frames,
            nodes,
            passes: Mutex::new(Passes { ended: none.clone(), void: none.clone(), gone: none }),
            scanned: Condvar::new(),
            swept: Mutex::default(),
            nids,
            shards,
            knobs: Knobs::default(),
            tally: Tally::default(),
            clock,
            mapping_share_percent,
            policy,
            late: Late::default(),
            unshared: world.unshared_counters(),
            world_bytes: AtomicU64::new(0),
            world: RwLock::new(world),
            scan_began: Mutex::default(),
            errors: Mutex::default(),
        }
    }

    pub(crate) fn world(&self) -> RwLockReadGuard<'_, World> {
        self.world.read()
    }

    /// Waits until no batch is under way, and lets none begin.
    pub(crate) fn world_mut(&self) -> RwLockWriteGuard<'_, World> {
        self.world.write()
    }

    pub(crate) fn node_index(&self, nid: Nid) -> Option<u16> {
        let index = self.nids.iter().position(|known| *known == nid)?;
        u16::try_from(index).ok()
    }

    /// The node that stands at `at` of a machine's answer, if it is one of the engine's.
    pub(crate) fn node_of(&self, nids: &[Option<Nid>], at: usize) -> Option<u16> {
        self.node_index(nids.get(at).copied().flatten()?)
    }

    /// The shard that does a node's work: its own, or that of the nearest node that is online.
    pub(crate) fn shard_for(&self, node: u16) -> u16 {
        if self.shards[usize::from(node)].is_online() {
            return node;
        }
        let distance = |other: &u16| {
            let (from, to) = (self.nids[usize::from(node)], self.nids[usize::from(*other)]);
            self.nodes.topology().distance(from, to)
        };
        let online = (0..self.node_count()).filter(|n| self.shards[usize::from(*n)].is_online());
        online.min_by_key(distance).unwrap_or(node)
    }

    /// The threads that do a node's work.
    pub(crate) fn pool(&self, node: u16) -> Arc<ThreadPool> {
        loop {
            // Another one if that shard is stopped just now; the last that is online never is.
            if let Some(pool) = self.shards[usize::from(self.shard_for(node))].pool() {
                return pool;
            }
        }
    }

    /// Nodes whose threads may help with a node's pages, and those threads.
    pub(crate) fn helpers(&self, node: u16) -> Vec<(u16, Arc<ThreadPool>)> {
        if !self.policy.help_other_nodes {
            return Vec::new();
        }
        let others = (0..self.node_count()).zip(&self.shards);
        others
            .filter(|(other, shard)| *other != node && !shard.is_busy())
            .filter_map(|(other, shard)| Some((other, shard.pool()?)))
            .collect()
    }

    /// Counts pages looked at by the threads of a node, and left out by them, by the nodes they are on.
    pub(crate) fn count_scanned(&self, threads: u16, pages: impl Iterator<Item = Scanned>) {
        // A node without CPUs has its work done by the nearest that has some, and one whose CPUs are
        // not for this program, by any.
        let nearest = self.nodes.topology().nearest_with_cpus(self.nids[usize::from(threads)]);
        let nearest = nearest.filter(|_| self.shards[usize::from(threads)].is_bound());
        let at_work = nearest.and_then(|node| self.node_index(node.nid));
        for Scanned { node, looked, skipped } in pages {
            let node = node.unwrap_or(threads);
            let shard = &self.shards[usize::from(node)];
            let counter =
                if at_work == Some(node) { &shard.scanned_here } else { &shard.scanned_elsewhere };
            counter.add(looked);
            shard.skipped.add(skipped);
        }
    }

    pub(crate) fn node_count(&self) -> u16 {
        u16::try_from(self.nids.len()).expect("checked when the engine was built")
    }

    /// Whether each node has trees of its own (`merge_across_nodes=0`).
    pub(crate) fn has_tree_per_node(&self) -> bool {
        self.nids.len() > 1 && !self.knobs.is_on(Knob::MergeAcrossNodes)
    }

    pub(crate) fn tree_of(&self, node: u16) -> TreeId {
        TreeId(if self.has_tree_per_node() { node } else { 0 })
    }

    /// How shares are to be taken now.
    pub(crate) fn terms(&self) -> Terms {
        Terms {
            limit: self.knobs.get_u32(Knob::MaxPageSharing),
            now_ms: self.clock.now_ms(),
            prune_ms: self.knobs.get_u32(Knob::StableNodeChainsPruneMillisecs),
        }
    }

    /// Whether the frames of an entry have this content. Under the guard that the entry was found
    /// by, none of them is used for anything else.
    pub(crate) fn entry_is(&self, entry: EntryRef<'_>, content: &[u8; PAGE_SIZE]) -> bool {
        let mut resident = [0; PAGE_SIZE];
        self.frames.read(entry.kpfn(), &mut resident);
        resident == *content
    }

    /// The head of the list of a frame's sharers.
    pub(crate) fn rmap_head(&self, kpfn: Kpfn) -> &AtomicU64 {
        self.forest.rmap_head(kpfn).expect("a frame with sharers has a stable node")
    }

    pub(crate) fn report(&self, error: MemoryError) {
        let mut errors = self.errors();
        if errors.len() == ERRORS_KEPT {
            errors.remove(0);
        }
        errors.push(error);
    }

    pub(crate) fn errors(&self) -> MutexGuard<'_, Vec<MemoryError>> {
        self.errors.lock()
    }

    /// False if scanning is not wanted any more.
    pub(crate) fn begin_pass(
        &self,
        shard: &Shard,
        cursor: &mut Cursor,
        reader: &Handle,
        is_wanted: &impl Fn() -> bool,
    ) -> bool {
        let migrations = self.has_tree_per_node().then(|| self.migrations());
        // Without the world: it takes as long as there are frames.
        if let Some(migrations) = migrations.filter(|_| is_wanted()) {
            self.sweep(reader, migrations);
        }
        let world = self.world();
        if !is_wanted() {
            return false;
        }
        self.passes().void[shard.index] = false;
        let given = homes::give_away(self, &world, shard, cursor);
        let moved = migrations.is_some_and(|migrations| shard.is_news(migrations));
        // Also where the trees have become one since: a frame whose last sharer went while it was
        // queued is given back from there.
        if self.forest.queued_len() > 0
            && let Some(_moving) = self.swept.try_lock()
        {
            migrate::place_queued(self, &world, reader, shard);
        }
        let passes = self.tally.full_scans.get();
        let retry = passes % RETRY_PASSES == RETRY_PASSES - 1
            && self.tally.held.get() + self.tally.over_budget.get() > 0;
        if retry {
            world.regions().for_each(|region| world.retry(region, shard.node()));
        }
        cursor.begin(&world, shard.index, moved);
        drop(world);
        homes::place_records(self, &given);
        true
    }

    /// Looks for frames that were moved, if any memory was since that was last done. One shard does
    /// it for all.
    fn sweep(&self, reader: &Handle, migrations: Option<u64>) {
        let Some(mut swept) = self.swept.try_lock() else { return };
        if migrations.is_none() || migrations != *swept {
            *swept = migrations.filter(|_| migrate::sweep(self, reader));
        }
    }

    /// Keeps frames where they are, in a tree or on the queue, until the result is dropped.
    pub(crate) fn hold_frames(&self) -> MutexGuard<'_, Option<u64>> {
        self.swept.lock()
    }

    /// None if the machine can't say.
    fn migrations(&self) -> Option<u64> {
        self.nodes.migrations().ok()
    }

    fn passes(&self) -> MutexGuard<'_, Passes> {
        self.passes.lock()
    }

    /// A shard got something to scan, which its pass that is under way may leave out.
    pub(crate) fn scan_again(&self, shard: u16) {
        let mut passes = self.passes();
        passes.ended[usize::from(shard)] = false;
        passes.void[usize::from(shard)] = true;
        drop(passes);
        // Nor has it asked where those candidates are.
        self.shards[usize::from(shard)].forget_news();
    }

    /// A shard ended and has nothing left to scan, or is back: full scans don't wait for it, or do.
    pub(crate) fn set_gone(&self, shard: u16, gone: bool) {
        let mut passes = self.passes();
        passes.gone[usize::from(shard)] = gone;
        passes.ended[usize::from(shard)] = false;
    }

    /// A full scan is over when every shard has ended a pass since the last one was (S3.4).
    pub(crate) fn end_pass(&self, shard: &Shard) {
        if self.world().regions().next().is_none() {
            return;
        }
        let mut passes = self.passes();
        if !passes.void[shard.index] {
            passes.ended[shard.index] = true;
        }
        if passes.ended.iter().zip(&passes.gone).all(|(ended, gone)| *ended || *gone) {
            passes.ended.fill(false);
            self.tally.full_scans.add(1);
            self.scanned.notify_all();
            if self.policy.advise_by_visits {
                self.advise();
            }
        }
    }

    /// Where the full scan that is under way began.
    pub(crate) fn scan_began(&self) -> MutexGuard<'_, Began> {
        self.scan_began.lock()
    }

    /// Waits until more than `since` full scans are over, or too long.
    pub(crate) fn wait_for_full_scan(&self, since: u64, most: Duration) {
        let mut passes = self.passes();
        let is_same = |_: &mut Passes| self.tally.full_scans.get() <= since;
        self.scanned.wait_while_for(&mut passes, is_same, most);
    }

    pub(crate) fn progress(&self) -> Progress {
        // First: none is among them that is not among those attempted.
        let late = self.late.len() as u64;
        Progress {
            full_scans: self.tally.full_scans.get(),
            attempted: self.tally.attempted.get(),
            refused: self.tally.refused.get(),
            deferred: self.tally.deferred.get(),
            over_budget: self.tally.over_budget.get(),
            late,
            pages_registered: self.tally.registered.get(),
        }
    }

    pub(crate) fn work(&self) -> Work {
        let tally = &self.tally;
        let (pruned, made_regular) = self.forest.prunes();
        Work {
            merged: tally.merged.get(),
            broken: tally.broken.get(),
            unmerged: tally.unmerged.get(),
            pruned,
            made_regular,
            queued: self.shards.iter().map(|shard| shard.queued.get()).sum(),
            replaced: self.shards.iter().map(|shard| shard.replaced.get()).sum(),
            frames_refused: tally.frames_refused.get(),
        }
    }

    /// Gives frames whose grace period is over back to the pools.
    pub(crate) fn return_freed(&self, reader: &Handle) {
        // Where nothing else is going on, a grace period is over after a few.
        for _ in 0..FLUSHES {
            reader.flush();
            let freed: Vec<Kpfn> = std::iter::from_fn(|| self.forest.freed()).collect();
            if !freed.is_empty() {
                self.frames.free(&freed);
            }
            if self.forest.epoch_lag() == 0 {
                break;
            }
        }
    }

    /// Waits for no batch and no unmerging (S5.2).
    pub(crate) fn counters(&self) -> Counters {
        let tally = &self.tally;
        // First, and `registered` last: no kind of pages may be more than all.
        let went = tally.registered.went();
        let touched = tally.touched.get();
        let [shared, sharing, zero] =
            [&tally.shared, &tally.sharing, &tally.zero].map(|counter| counter.get());
        let [held, over_budget] = [tally.held.get(), tally.over_budget.get()];
        // Acquire: pairs with the Release of who changes the tree, as with `Counter`.
        let unshared = self.unshared.iter().map(|counter| counter.load(Ordering::Acquire));
        let unshared: u64 = unshared.sum();
        let registered = tally.registered.since(went);
        // A page that went from one tree to another meanwhile may be counted in both.
        let unshared = unshared.min(registered);
        Counters {
            pages_shared: shared,
            pages_sharing: sharing,
            pages_unshared: unshared,
            // While a batch runs the others may be ahead of `touched` for a moment.
            pages_volatile: touched.saturating_sub(shared + sharing + zero + unshared),
            pages_scanned: tally.scanned.get(),
            pages_skipped: tally.skipped.get(),
            full_scans: tally.full_scans.get(),
            stable_node_chains: self.forest.stable_node_chains(),
            stable_node_dups: self.forest.stable_node_dups(),
            ksm_zero_pages: zero,
            pages_registered: registered,
            pages_untouched: registered.saturating_sub(touched),
            pages_held: held,
            pages_over_budget: over_budget,
            pages_broken: tally.broken.get(),
            fingerprint_collisions: tally.collisions.get(),
            frames_refused: tally.frames_refused.get(),
            stable_nodes_queued: self.forest.queued_len() as u64,
            stable_nodes_replaced: self.shards.iter().map(|shard| shard.replaced.get()).sum(),
            epoch_lag: self.forest.epoch_lag(),
            metadata_bytes: self.world_bytes()
                + self.forest.metadata_bytes()
                + self.frames.metadata_bytes(),
        }
    }

    /// What the world takes, or where it is being changed, took before.
    fn world_bytes(&self) -> u64 {
        if let Some(world) = self.world.try_read() {
            // Relaxed: a figure, nothing is ordered by it.
            self.world_bytes.store(world.metadata_bytes(), Ordering::Relaxed);
        }
        // Relaxed: as above.
        self.world_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn stage_times(&self) -> StageTimes {
        StageTimes {
            scan: std::time::Duration::from_nanos(self.tally.read_nanos.get()),
            merge: std::time::Duration::from_nanos(self.tally.merge_nanos.get()),
            merge_cpu: std::time::Duration::from_nanos(self.tally.merge_cpu_nanos.get()),
        }
    }
}
