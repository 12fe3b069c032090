//! The shards' threads: when they scan, and how they rest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use numerge_stable_tree::Handle;
use numerge_topology::Nid;
use parking_lot::{Condvar, Mutex};

use crate::core::Core;
use crate::hotplug::Hotplug;
use crate::knobs::Knob;
use crate::program::Program;

/// How long a scanner rests at least, although it need not, that found less than a batch to look at in a whole
/// pass: its walks over unchanged memory would take a CPU from those whose memory it is.
const IDLE_REST: Duration = Duration::from_millis(1);

/// How long a thread that could not be bound to its node goes on before it is tried again.
const UNBOUND: Duration = Duration::from_secs(1);

/// An engine and what its threads share.
pub(crate) struct Inner {
    pub(crate) core: Core,
    /// Guards nothing: what waiters wait for is in the knobs and in `stop`.
    signal: Mutex<()>,
    changed: Condvar,
    stop: AtomicBool,
    /// For as long as anybody knows of them: a program's memory goes with its last region and handle.
    pub(crate) programs: Mutex<Vec<Weak<Program>>>,
    /// Whether `run=1` is carried out by threads.
    background: bool,
    /// By shard.
    threads: Mutex<Vec<Option<JoinHandle<()>>>>,
    pub(crate) hotplug: Mutex<Hotplug>,
}

impl Inner {
    pub(crate) fn new(core: Core, background: bool) -> Arc<Self> {
        let shards = core.shards.len();
        Arc::new(Self {
            core,
            signal: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            programs: Mutex::default(),
            background,
            threads: Mutex::new((0..shards).map(|_| None).collect()),
            hotplug: Mutex::new(Hotplug::new(shards)),
        })
    }

    /// Starts a shard's thread, if threads are wanted.
    pub(crate) fn start(self: &Arc<Self>, index: usize) -> Result<(), (Nid, String)> {
        if !self.background {
            return Ok(());
        }
        let (inner, nid) = (Arc::clone(self), self.core.shards[index].nid);
        // Held until the thread is in it: who ends all threads finds it there, or it is not started.
        let mut threads = self.threads.lock();
        if self.is_stopping() {
            return Ok(());
        }
        let thread = std::thread::Builder::new()
            .name(format!("numerge-{nid}"))
            .spawn(move || inner.scan(index))
            .map_err(|error| (nid, error.to_string()))?;
        threads[index] = Some(thread);
        Ok(())
    }

    /// Waits for the end of the thread of a shard that was stopped.
    pub(crate) fn join(&self, index: usize) {
        self.notify();
        let thread = self.threads.lock()[index].take();
        // A scanner that panicked has said so; its regions are still let go of in order.
        let _ = thread.map(JoinHandle::join);
    }

    /// Ends all threads, for good.
    pub(crate) fn stop_threads(&self) {
        self.stop.store(true, Ordering::SeqCst);
        (0..self.core.shards.len()).for_each(|index| self.join(index));
    }

    pub(crate) fn notify(&self) {
        // Taken so that no waiter is between its look at the knobs and its wait.
        drop(self.signal.lock());
        self.changed.notify_all();
    }

    /// Whether all threads are to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Whether a shard's thread is to end.
    fn is_over(&self, index: usize) -> bool {
        self.is_stopping() || !self.core.shards[index].is_online()
    }

    /// A shard's thread.
    fn scan(self: &Arc<Self>, index: usize) {
        let core = &self.core;
        let shard = &core.shards[index];
        // As in the pool: a thread that may not be bound does its work from elsewhere.
        shard.bind(&*core.nodes);
        let _counted = shard.cpu.counted(&*core.nodes);
        let mut bound_at = Instant::now();
        let reader = core.forest.register();
        let (mut looked_in_pass, mut looked_since_rest) = (0, 0);
        while self.wait_for_work(index, &reader) {
            let quota = core.knobs.get(Knob::PagesToScan);
            if quota == 0 {
                let rest = Duration::from_millis(core.knobs.get(Knob::SleepMillisecs));
                self.rest(index, rest.max(IDLE_REST));
                continue;
            }
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
                if looked_in_pass < quota {
                    rest = rest.max(IDLE_REST);
                }
                looked_in_pass = 0;
                self.follow_nodes(Some(index));
                if bound_at.elapsed() >= UNBOUND {
                    shard.bind_again(&*core.nodes);
                    bound_at = Instant::now();
                }
            }
            self.rest(index, rest);
        }
    }

    /// Waits for `run` to be 1 and a region to be there. False when the shard ends.
    fn wait_for_work(&self, index: usize, reader: &Handle) -> bool {
        loop {
            if self.is_over(index) {
                return false;
            }
            if self.core.knobs.get(Knob::Run) == 1 && self.core.tally.registered.get() > 0 {
                return true;
            }
            self.core.return_freed(reader);
            let mut signal = self.signal.lock();
            let ready = self.core.knobs.get(Knob::Run) == 1 && self.core.tally.registered.get() > 0;
            if !ready && !self.is_over(index) {
                self.changed.wait(&mut signal);
            }
        }
    }

    fn rest(&self, index: usize, rest: Duration) {
        let mut signal = self.signal.lock();
        if !rest.is_zero() && !self.is_over(index) && self.core.knobs.get(Knob::Run) == 1 {
            self.changed.wait_for(&mut signal, rest);
        }
    }
}
