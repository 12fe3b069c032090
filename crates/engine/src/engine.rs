//! The engine as its users see it: regions, knobs, counters, and the shards' threads.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use numerge_stable_tree::Kpfn;
use numerge_topology::Nid;

use crate::clock::Clock;
use crate::core::{Core, Parts, Policy};
use crate::counters::{Counters, Progress, StageTimes, Work};
use crate::fingerprint::Fingerprinter;
use crate::handles::{ProgramHandle, RegionHandle};
use crate::homes;
use crate::knobs::{Knob, KnobError};
use crate::late;
use crate::machine::{Frames, Memory, MemoryError, Nodes, Vpn};
use crate::nodes::{self, NodeReport, PoolReport};
use crate::offline::OfflineError;
use crate::program::Program;
use crate::region::Region;
use crate::run::Inner;
use crate::shard::Shard;
use crate::unmerge::{UnmergeError, unmerge_all, unregister};

/// The most threads a node gets when nothing else is said.
const DEFAULT_THREADS: usize = 4;

/// How an engine is to be.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Threads of each node's pool; None: as many as the node has CPUs, but no more than 4.
    pub threads_per_node: Option<usize>,
    /// The share of its mappings (`vm.max_map_count`) that a program may use before merging stops
    /// adding to them, in percent, the program's own included.
    pub mapping_share_percent: u64,
    /// Where prunes take the time from.
    pub clock: Clock,
    /// Bits of the fingerprints that are used; fewer than 120 make collisions likely, for tests.
    pub fingerprint_bits: u32,
    /// Whether `run=1` is carried out by threads; otherwise only [`Engine::full_scan`] scans.
    pub background: bool,
    /// Whether threads of a node with nothing to do look at pages of nodes with more than enough.
    pub help_other_nodes: bool,
    /// Whether frames that the operating system moved to another node than their tree's
    /// (`merge_across_nodes=0`) are moved back, rather than placed in the tree of where they are.
    pub move_frames_back: bool,
    /// Whether, for the advisor, a full scan is over with each visit of every page; otherwise when
    /// [`Engine::full_scan_is_over`] says so, for owners that count full scans in another way.
    pub advise_by_visits: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads_per_node: None,
            mapping_share_percent: 50,
            clock: Clock::default(),
            fingerprint_bits: 120,
            background: true,
            help_other_nodes: false,
            move_frames_back: false,
            advise_by_visits: true,
        }
    }
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A thread could not be started.
    #[error("can't start threads for node {nid}: {reason}")]
    Threads {
        /// The node.
        nid: Nid,
        /// What the system said.
        reason: String,
    },
    /// No random bytes for the fingerprints' secret.
    #[error("the system gave no random bytes for the fingerprints' secret: {0}")]
    Secret(getrandom::Error),
    /// An option is out of range.
    #[error("{option} can't be {value}: allowed is {allowed}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What it was to be.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
}

/// Why a range was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// There are no pages in it.
    #[error("a region needs at least one page")]
    Empty,
    /// Part of it is registered already.
    #[error("pages {:#x}..{:#x} overlap a region that is registered already", .0.start.0, .0.end.0)]
    Overlaps(Range<Vpn>),
    /// More pages than the engine can track, or no memory for their records.
    #[error("can't track {pages} more pages: no memory for their records")]
    TooMany {
        /// How many.
        pages: u64,
    },
    /// The machine refused.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A merging engine for one security domain.
///
/// Dropping it unmerges and unregisters everything; [`Engine::shut_down`] does the same and says
/// whether it went well.
pub struct Engine {
    inner: Arc<Inner>,
}

impl Engine {
    /// An engine with `run=0` and no regions.
    ///
    /// # Errors
    /// [`EngineError`], with nothing left behind.
    pub fn new(
        frames: Arc<dyn Frames>,
        nodes: Arc<dyn Nodes>,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let EngineOptions {
            threads_per_node,
            mapping_share_percent,
            clock,
            fingerprint_bits,
            background,
            help_other_nodes,
            move_frames_back,
            advise_by_visits,
        } = options;
        if threads_per_node.is_some_and(|threads| !(1..=1024).contains(&threads)) {
            let value = threads_per_node.unwrap_or(0) as u64;
            return Err(EngineError::Option {
                option: "threads_per_node",
                value,
                allowed: "1 to 1024",
            });
        }
        if mapping_share_percent > 100 {
            return Err(EngineError::Option {
                option: "mapping_share_percent",
                value: mapping_share_percent,
                allowed: "0 to 100",
            });
        }
        let known = nodes.topology().nodes();
        if known.len() > usize::from(u16::MAX) {
            let value = known.len() as u64;
            return Err(EngineError::Option { option: "nodes", value, allowed: "1 to 65535" });
        }
        let nids: Vec<_> = known.iter().map(|node| node.nid).collect();
        let shards = known
            .iter()
            .enumerate()
            .map(|(index, node)| {
                let threads = threads_per_node.unwrap_or(node.cpus.len().clamp(1, DEFAULT_THREADS));
                Shard::new(index, node.nid, threads, &nodes).map_err(|error| EngineError::Threads {
                    nid: node.nid,
                    reason: error.to_string(),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let prints = Fingerprinter::new(fingerprint_bits).map_err(EngineError::Secret)?;
        let policy = Policy { help_other_nodes, move_frames_back, advise_by_visits };
        let core = Core::new(Parts {
            prints: Arc::new(prints),
            frames,
            nodes,
            nids,
            shards,
            clock,
            mapping_share_percent,
            policy,
        });
        let engine = Self { inner: Inner::new(core, background) };
        for index in 0..engine.inner.core.shards.len() {
            let started = engine.inner.start(index);
            started.map_err(|(nid, reason)| EngineError::Threads { nid, reason })?;
        }
        Ok(engine)
    }

    /// Registers a range of a program's memory. Nothing of it is merged until `run` is 1.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing is changed then.
    pub fn register(
        &self,
        memory: &Arc<dyn Memory>,
        pages: Range<Vpn>,
    ) -> Result<RegionHandle, RegisterError> {
        let region = self.inner.register(memory, pages)?;
        self.inner.notify();
        Ok(RegionHandle { inner: Arc::clone(&self.inner), region })
    }

    /// The program with this memory, whether any of it is registered or not.
    #[must_use]
    pub fn program(&self, memory: &Arc<dyn Memory>) -> ProgramHandle {
        let program = self.inner.program(memory);
        ProgramHandle { inner: Arc::clone(&self.inner), program }
    }

    /// The value of a knob.
    #[must_use]
    pub fn knob(&self, knob: Knob) -> u64 {
        self.inner.core.knobs.get(knob)
    }

    /// Sets a knob. `run=2` returns when everything is unmerged, while other calls go on.
    ///
    /// # Errors
    /// [`KnobError`]; the knob keeps its value, but for a `run=2` that ran into an error: what is
    /// merged still stays merged then, and `run` is 0.
    pub fn set(&self, knob: Knob, value: u64) -> Result<(), KnobError> {
        knob.check(value)?;
        match (knob, value) {
            (Knob::Run, 2) => self.inner.unmerge()?,
            (Knob::Run, 1) if self.knob(Knob::Run) != 1 => {
                self.inner.core.begin_to_advise();
                self.inner.core.knobs.set(knob, value);
            }
            (Knob::AdvisorMode, _) => self.inner.core.set_advisor_mode(value),
            (Knob::PagesToScan, _) if self.inner.core.is_advised() => Err(KnobError::Advised)?,
            _ if knob.needs_nothing_shared() => self.inner.set_unshared(knob, value)?,
            _ => self.inner.core.knobs.set(knob, value),
        }
        self.inner.notify();
        Ok(())
    }

    /// The counters now.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner.core.counters()
    }

    /// How far it is, without what takes time to count.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.inner.core.progress()
    }

    /// What it has done, without what takes time to count.
    #[must_use]
    pub fn work(&self) -> Work {
        self.inner.core.work()
    }

    /// Waits until more than `since` full scans are over, but no longer than `most`.
    pub fn wait_for_full_scan(&self, since: u64, most: Duration) {
        self.inner.core.wait_for_full_scan(since, most);
    }

    /// Tells the advisor that what its owner counts as a full scan is over.
    pub fn full_scan_is_over(&self) {
        self.inner.core.advise();
    }

    /// Where the time went.
    #[must_use]
    pub fn stage_times(&self) -> StageTimes {
        self.inner.core.stage_times()
    }

    /// Takes the errors that scanning met since this was last asked: the last 16.
    #[must_use]
    pub fn take_errors(&self) -> Vec<MemoryError> {
        std::mem::take(&mut *self.inner.core.errors())
    }

    /// Every node: what was done there, and what is there.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeReport> {
        let reader = self.inner.core.forest.register();
        nodes::report(&self.inner.core, &reader)
    }

    /// Every node's frame pool: where its frames are.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolReport> {
        let reader = self.inner.core.forest.register();
        nodes::pools(&self.inner.core, &reader)
    }

    /// Takes a node's memory out of use, before it goes offline: its shard ends and another one takes
    /// over, the pages that are mapped to frames there get memory of their own, and nothing is merged
    /// there until the node is back. Scanning goes on elsewhere, and regions stay registered. Where
    /// that was done already, does the rest of it.
    ///
    /// The engine follows by itself when the machine takes a node away or brings it back. After this
    /// it waits for the node to go and come back, or for [`Self::online_node`].
    ///
    /// # Errors
    /// [`OfflineError`]; the node is online then, and some of its pages may be unmerged.
    pub fn offline_node(&self, nid: Nid) -> Result<(), OfflineError> {
        self.inner.offline_node(nid)
    }

    /// Takes a node into use again: its shard begins anew.
    ///
    /// # Errors
    /// [`OfflineError`]; the node is offline still.
    pub fn online_node(&self, nid: Nid) -> Result<(), OfflineError> {
        self.inner.online_node(nid)
    }

    /// Takes frames out of use by their numbers: those in use are unmerged, and none is given out.
    ///
    /// # Errors
    /// [`OfflineError`]; the range is in use then, and some of its pages may be unmerged.
    pub fn offline_frames(&self, frames: Range<Kpfn>) -> Result<(), OfflineError> {
        self.inner.offline_frames(frames)
    }

    /// Takes a range of frames into use again, as it was taken out.
    ///
    /// # Errors
    /// [`OfflineError::NotOffline`] if it was not.
    pub fn online_frames(&self, frames: Range<Kpfn>) -> Result<(), OfflineError> {
        self.inner.online_frames(frames)
    }

    /// Visits every registered page, in the calling thread and the nodes' pools, whatever `run` is.
    /// Rests are not taken.
    pub fn full_scan(&self) {
        let core = &self.inner.core;
        let before = core.tally.full_scans.get();
        // More than once only where a shard gave something to one that had been visited.
        for _ in 0..=core.shards.len() {
            core.shards.iter().for_each(|shard| self.scan_node(shard.nid));
            if core.tally.full_scans.get() > before || core.tally.registered.get() == 0 {
                return;
            }
        }
    }

    /// Visits every page that the shard of `nid` scans once, as [`Engine::full_scan`] does for all.
    /// Without such a node, or while it is offline, does nothing.
    pub fn scan_node(&self, nid: Nid) {
        self.inner.follow_nodes(None);
        let core = &self.inner.core;
        let reader = core.forest.register();
        for shard in core.shards.iter().filter(|shard| shard.nid == nid) {
            let _counted = shard.cpu.counted(&*core.nodes);
            let quota = core.knobs.get(Knob::PagesToScan).max(1);
            while shard.is_online() && !core.batch(shard, &reader, quota, || true).ended_pass {}
        }
    }

    /// Stops scanning, unmerges everything and lets go of all regions.
    ///
    /// # Errors
    /// If memory for private copies runs out, or a program does not answer. What is merged then stays
    /// merged and valid until the process ends.
    pub fn shut_down(self) -> Result<(), MemoryError> {
        self.inner.stop_threads();
        self.inner.unregister_all()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.inner.stop_threads();
        // What can't be unmerged stays merged: `Inner` is then never freed, since regions still
        // stand in it, and every page keeps its content.
        if self.inner.unregister_all().is_err() {
            std::mem::forget(Arc::clone(&self.inner));
        }
    }
}

impl Inner {
    fn program(&self, memory: &Arc<dyn Memory>) -> Arc<Program> {
        let mut programs = self.programs.lock();
        programs.retain(|program| program.strong_count() > 0);
        let mut known = programs.iter().filter_map(Weak::upgrade);
        known.find(|program| Arc::ptr_eq(&program.memory, memory)).unwrap_or_else(|| {
            let new = Program::new(Arc::clone(memory), self.core.mapping_share_percent);
            let new = Arc::new(new);
            programs.push(Arc::downgrade(&new));
            new
        })
    }

    fn register(
        &self,
        memory: &Arc<dyn Memory>,
        pages: Range<Vpn>,
    ) -> Result<Arc<Region>, RegisterError> {
        if pages.is_empty() {
            return Err(RegisterError::Empty);
        }
        let program = self.program(memory);
        let count = pages.end.0 - pages.start.0;
        let mut world = self.core.world_mut();
        let overlaps = world.regions().any(|region| {
            Arc::ptr_eq(&region.program, &program)
                && region.pages.start < pages.end
                && pages.start < region.pages.end
        });
        if overlaps {
            return Err(RegisterError::Overlaps(pages));
        }
        let (slot, first) =
            world.pages.track(count).map_err(|_| RegisterError::TooMany { pages: count })?;
        if let Err(error) = memory.register(pages.clone()) {
            world.pages.untrack(slot);
            return Err(error.into());
        }
        let region = Arc::new(Region::new(program, pages, slot, first));
        homes::find_homes(&self.core, &world, &region);
        world.insert(Arc::clone(&region));
        self.core.tally.registered.add(count);
        drop(world);
        let all: Vec<_> = region.segments().map(|n| (Arc::clone(&region), n)).collect();
        homes::place_records(&self.core, &all);
        Ok(region)
    }

    fn set_unshared(&self, knob: Knob, value: u64) -> Result<(), KnobError> {
        let core = &self.core;
        if core.knobs.get(knob) == value {
            return Ok(());
        }
        // Known without waiting for the world, which is being unmerged, perhaps (S5.2).
        let shared = core.tally.shared.get();
        if shared > 0 {
            return Err(KnobError::Busy { knob, shared });
        }
        let reader = core.forest.register();
        let world = core.world_mut();
        late::collect(core, &world, &reader);
        // A frame that pages may be mapped to at any moment is shared, too.
        let shared = core.tally.shared.get().max(core.late.frames().len() as u64);
        if shared > 0 {
            return Err(KnobError::Busy { knob, shared });
        }
        core.knobs.set(knob, value);
        if knob == Knob::MergeAcrossNodes {
            world.forget_candidates();
        }
        Ok(())
    }

    fn unmerge(&self) -> Result<(), UnmergeError> {
        let core = &self.core;
        core.knobs.set(Knob::Run, 2);
        self.notify();
        let reader = core.forest.register();
        let done = unmerge_all(core, &reader, &|| core.knobs.get(Knob::Run) == 2);
        core.return_freed(&reader);
        if matches!(done, Err(UnmergeError::Memory(_))) && core.knobs.get(Knob::Run) == 2 {
            core.knobs.set(Knob::Run, 0);
        }
        done
    }

    fn unregister_all(&self) -> Result<(), MemoryError> {
        let core = &self.core;
        let reader = core.forest.register();
        let regions: Vec<Arc<Region>> = core.world().regions().map(Arc::clone).collect();
        // All of them, whatever becomes of the first.
        let done: Vec<_> = regions.iter().map(|region| unregister(core, &reader, region)).collect();
        core.return_freed(&reader);
        done.into_iter().collect()
    }
}
