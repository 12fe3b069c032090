//! The engine as its users see it: regions, knobs, counters, and the shards' threads.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use numerge_stable_tree::Handle;
use numerge_topology::Nid;
use parking_lot::{Condvar, Mutex};

use crate::clock::Clock;
use crate::core::{Core, Parts};
use crate::counters::{Counters, StageTimes};
use crate::fingerprint::Fingerprinter;
use crate::knobs::{Knob, KnobError};
use crate::machine::{Frames, Memory, MemoryError, Nodes, Vpn};
use crate::pending::Pending;
use crate::program::Program;
use crate::region::Region;
use crate::shard::Shard;
use crate::unmerge::{UnmergeError, unmerge_all, unregister};

/// How long a scanner rests that found nothing to look at in a whole pass although it need not.
const IDLE_REST: Duration = Duration::from_millis(1);

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
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads_per_node: None,
            mapping_share_percent: 50,
            clock: Clock::default(),
            fingerprint_bits: 120,
            background: true,
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

struct Inner {
    core: Core,
    /// Guards nothing: what waiters wait for is in the knobs and in `stop`.
    signal: Mutex<()>,
    changed: Condvar,
    stop: AtomicBool,
    programs: Mutex<Vec<Arc<Program>>>,
}

/// A merging engine for one security domain.
///
/// Dropping it unmerges and unregisters everything; [`Engine::shut_down`] does the same and says
/// whether it went well.
pub struct Engine {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
}

/// A registered range. Dropping it unregisters the range, and the memory is private then.
pub struct RegionHandle {
    inner: Arc<Inner>,
    region: Arc<Region>,
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
        let core =
            Core::new(Parts { prints, frames, nodes, nids, shards, clock, mapping_share_percent });
        let inner = Arc::new(Inner {
            core,
            signal: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            programs: Mutex::default(),
        });
        let mut engine = Self { inner, threads: Vec::new() };
        if background {
            engine.start()?;
        }
        Ok(engine)
    }

    fn start(&mut self) -> Result<(), EngineError> {
        for index in 0..self.inner.core.shards.len() {
            let inner = Arc::clone(&self.inner);
            let nid = inner.core.shards[index].nid;
            let thread = std::thread::Builder::new()
                .name(format!("numerge-{nid}"))
                .spawn(move || inner.scan(index))
                .map_err(|error| EngineError::Threads { nid, reason: error.to_string() })?;
            self.threads.push(thread);
        }
        Ok(())
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

    /// Visits every registered page once, in the calling thread and the nodes' pools, whatever
    /// `run` is. Rests are not taken.
    pub fn full_scan(&self) {
        self.inner.core.shards.iter().for_each(|shard| self.scan_node(shard.nid));
    }

    /// Visits every page that the shard of `nid` scans once, as [`Engine::full_scan`] does for all.
    /// Without such a node, does nothing.
    pub fn scan_node(&self, nid: Nid) {
        let core = &self.inner.core;
        let reader = core.forest.register();
        for shard in core.shards.iter().filter(|shard| shard.nid == nid) {
            let quota = core.knobs.get(Knob::PagesToScan);
            while !core.batch(shard, &reader, quota, || true).ended_pass {}
        }
    }

    /// Stops scanning, unmerges everything and lets go of all regions.
    ///
    /// # Errors
    /// If memory for private copies runs out. What is merged then stays merged and valid until the
    /// process ends.
    pub fn shut_down(mut self) -> Result<(), MemoryError> {
        self.stop_threads();
        self.inner.unregister_all()
    }

    fn stop_threads(&mut self) {
        self.inner.stop.store(true, Ordering::SeqCst);
        self.inner.notify();
        for thread in self.threads.drain(..) {
            // A scanner that panicked has said so; its regions are still let go of in order.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop_threads();
        // What can't be unmerged stays merged: `Inner` is then never freed, since regions still
        // stand in it, and every page keeps its content.
        if self.inner.unregister_all().is_err() {
            std::mem::forget(Arc::clone(&self.inner));
        }
    }
}

impl RegionHandle {
    /// The pages of the region.
    #[must_use]
    pub fn pages(&self) -> Range<Vpn> {
        self.region.pages.clone()
    }

    /// Unmerges the region's pages and forgets it, as dropping does.
    ///
    /// # Errors
    /// If memory for private copies runs out; the region is registered still.
    pub fn unregister(&self) -> Result<(), MemoryError> {
        let reader = self.inner.core.forest.register();
        let done = unregister(&self.inner.core, &reader, &self.region);
        self.inner.core.return_freed(&reader);
        done
    }
}

impl Drop for RegionHandle {
    fn drop(&mut self) {
        if self.unregister().is_err() {
            // The region still stands in the engine, which must then outlive every page of it.
            std::mem::forget(Arc::clone(&self.inner));
        }
    }
}

impl Inner {
    fn notify(&self) {
        // Taken so that no waiter is between its look at the knobs and its wait.
        drop(self.signal.lock());
        self.changed.notify_all();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// A shard's thread.
    fn scan(&self, index: usize) {
        let core = &self.core;
        let shard = &core.shards[index];
        // As in the pool: a thread that may not be bound does its work from elsewhere.
        let _ = core.nodes.run_on(shard.nid);
        let reader = core.forest.register();
        let (mut looked_in_pass, mut looked_since_rest) = (0, 0);
        while self.wait_for_work(&reader) {
            let quota = core.knobs.get(Knob::PagesToScan);
            let left = quota.saturating_sub(looked_since_rest).max(1);
            let batch = core.batch(shard, &reader, left, || core.knobs.get(Knob::Run) == 1);
            looked_in_pass += batch.looked;
            looked_since_rest += batch.looked;
            if batch.looked > 0 && looked_since_rest < quota && !batch.ended_pass {
                continue;
            }
            looked_since_rest = 0;
            let mut rest = Duration::from_millis(core.knobs.get(Knob::SleepMillisecs));
            if batch.ended_pass {
                if looked_in_pass == 0 {
                    rest = rest.max(IDLE_REST);
                }
                looked_in_pass = 0;
            }
            self.rest(rest);
        }
    }

    /// Waits for `run` to be 1 and a region to be there. False when the engine ends.
    fn wait_for_work(&self, reader: &Handle) -> bool {
        loop {
            if self.stopped() {
                return false;
            }
            if self.core.knobs.get(Knob::Run) == 1 && self.core.tally.registered.get() > 0 {
                return true;
            }
            self.core.return_freed(reader);
            let mut signal = self.signal.lock();
            let ready = self.core.knobs.get(Knob::Run) == 1 && self.core.tally.registered.get() > 0;
            if !ready && !self.stopped() {
                self.changed.wait(&mut signal);
            }
        }
    }

    fn rest(&self, rest: Duration) {
        let mut signal = self.signal.lock();
        if !rest.is_zero() && !self.stopped() && self.core.knobs.get(Knob::Run) == 1 {
            self.changed.wait_for(&mut signal, rest);
        }
    }

    fn program(&self, memory: &Arc<dyn Memory>) -> Arc<Program> {
        let mut programs = self.programs.lock();
        programs.retain(|program| Arc::strong_count(program) > 1);
        let known = programs.iter().find(|program| Arc::ptr_eq(&program.memory, memory));
        known.map(Arc::clone).unwrap_or_else(|| {
            let new = Program::new(Arc::clone(memory), self.core.mapping_share_percent);
            let new = Arc::new(new);
            programs.push(Arc::clone(&new));
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
        let shard = self.home(&pages, memory);
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
        let region = Arc::new(Region {
            program,
            pages,
            slot,
            first,
            pending: Pending::new(count),
            shard,
            closing: AtomicBool::new(false),
        });
        world.insert(Arc::clone(&region));
        self.core.tally.registered.add(count);
        Ok(region)
    }

    /// The shard that is to scan a region: that of the node its first page is on, or where there is
    /// no page yet, the first.
    fn home(&self, pages: &Range<Vpn>, memory: &Arc<dyn Memory>) -> usize {
        let mut nids = Vec::with_capacity(1);
        let _ = memory.nodes_of(pages.start..pages.start.plus(1), &mut nids);
        let node = nids.first().copied().flatten().and_then(|nid| self.core.node_index(nid));
        usize::from(node.unwrap_or(0))
    }

    fn set_unshared(&self, knob: Knob, value: u64) -> Result<(), KnobError> {
        let core = &self.core;
        if core.knobs.get(knob) == value {
            return Ok(());
        }
        let world = core.world_mut();
        let shared = core.tally.shared.get();
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
        let done = unmerge_all(core, &reader, || core.knobs.get(Knob::Run) == 2);
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
