//! A scanner shard: one for each node, with threads bound to the node's CPUs (S4.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use numerge_topology::Nid;
use parking_lot::{Mutex, MutexGuard};
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::counters::Counter;
use crate::cpu::CpuTime;
use crate::machine::Nodes;
use crate::scan::Cursor;

/// The part of the engine that scans what lies on one node.
pub(crate) struct Shard {
    /// Its place among the shards, and its node's among the nodes.
    pub(crate) index: usize,
    pub(crate) nid: Nid,
    threads: usize,
    /// Whether all its threads could be bound to its node.
    bound: Arc<AtomicBool>,
    /// Of its scanner and its pool's threads.
    pub(crate) cpu: Arc<CpuTime>,
    /// None while the node is offline.
    pool: Mutex<Option<Arc<ThreadPool>>>,
    cursor: Mutex<Cursor>,
    /// Whether its scanner is between the beginning and the end of a batch.
    busy: AtomicBool,
    /// Pages of this node looked at by its own threads, and by those of other nodes.
    pub(crate) scanned_here: Counter,
    pub(crate) scanned_elsewhere: Counter,
    /// Looks at pages of this node that were left out (`smart_scan`).
    pub(crate) skipped: Counter,
    /// Merged pages at home here found written to since.
    pub(crate) broken: Counter,
    /// Stable nodes that left this node's tree for the migrate queue, and that came to it from there.
    pub(crate) queued: Counter,
    pub(crate) replaced: Counter,
    /// [`Nodes::migrations`] when candidates were last asked for their node.
    migrations: Mutex<Option<u64>>,
}

impl Shard {
    /// With `threads` threads.
    pub(crate) fn new(
        index: usize,
        nid: Nid,
        threads: usize,
        nodes: &Arc<dyn Nodes>,
    ) -> Result<Self, ThreadPoolBuildError> {
        let shard = Self {
            index,
            nid,
            threads,
            bound: Arc::default(),
            cpu: Arc::default(),
            pool: Mutex::default(),
            cursor: Mutex::default(),
            busy: AtomicBool::new(false),
            scanned_here: Counter::default(),
            scanned_elsewhere: Counter::default(),
            skipped: Counter::default(),
            broken: Counter::default(),
            queued: Counter::default(),
            replaced: Counter::default(),
            migrations: Mutex::default(),
        };
        shard.start(nodes)?;
        Ok(shard)
    }

    pub(crate) const fn threads(&self) -> usize {
        self.threads
    }

    /// Its node, as an index into the engine's nodes.
    pub(crate) fn node(&self) -> u16 {
        u16::try_from(self.index).expect("checked when the engine was built")
    }

    /// Starts its pool: its node is online.
    pub(crate) fn start(&self, nodes: &Arc<dyn Nodes>) -> Result<(), ThreadPoolBuildError> {
        let (nid, nodes, bound) = (self.nid, Arc::clone(nodes), Arc::clone(&self.bound));
        let (begun, ended) = (Arc::clone(&self.cpu), Arc::clone(&self.cpu));
        bound.store(true, Ordering::SeqCst);
        let pool = ThreadPoolBuilder::new()
            .num_threads(self.threads)
            .thread_name(move |thread| format!("numerge-{nid}-{thread}"))
            // A thread that may not be bound (a described machine, a CPU set without this node)
            // still does its work, from elsewhere.
            .start_handler(move |_| {
                bind(&*nodes, nid, &bound);
                begun.begin(&*nodes);
            })
            .exit_handler(move |_| ended.end())
            .build()?;
        *self.pool.lock() = Some(Arc::new(pool));
        Ok(())
    }

    /// Binds the calling thread, its scanner, to its node.
    pub(crate) fn bind(&self, nodes: &dyn Nodes) {
        bind(nodes, self.nid, &self.bound);
    }

    /// Whether all its threads run on its node's CPUs, or on the nearest if it has none.
    pub(crate) fn is_bound(&self) -> bool {
        self.bound.load(Ordering::SeqCst)
    }

    /// Tries again to bind the scanner, which calls this, and the pool, where that failed: a node's
    /// memory can come back before its CPUs.
    pub(crate) fn bind_again(&self, nodes: &dyn Nodes) {
        if !self.bound.swap(true, Ordering::SeqCst) {
            self.bind(nodes);
            let _ = self.pool().map(|pool| pool.broadcast(|_| self.bind(nodes)));
        }
    }

    /// Ends its pool, once what is at work there has ended: its node goes offline.
    pub(crate) fn stop(&self) {
        *self.pool.lock() = None;
    }

    /// Its threads. None while its node is offline.
    pub(crate) fn pool(&self) -> Option<Arc<ThreadPool>> {
        self.pool.lock().clone()
    }

    /// Whether its node is online.
    pub(crate) fn is_online(&self) -> bool {
        self.pool.lock().is_some()
    }

    /// Where its pass stands. Whoever holds this is the shard's scanner.
    pub(crate) fn cursor(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock()
    }

    /// Whether memory may have moved since this was last asked.
    pub(crate) fn is_news(&self, migrations: Option<u64>) -> bool {
        let last = std::mem::replace(&mut *self.migrations.lock(), migrations);
        migrations.is_none() || migrations != last
    }

    /// Has candidates asked for their node again by its next pass: it got some that it has not asked.
    pub(crate) fn forget_news(&self) {
        *self.migrations.lock() = None;
    }

    pub(crate) fn set_busy(&self, busy: bool) {
        // Relaxed: only a hint to those who look for help.
        self.busy.store(busy, Ordering::Relaxed);
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }
}

/// Binds the calling thread to a node, and notes if that can't be.
fn bind(nodes: &dyn Nodes, nid: Nid, bound: &AtomicBool) {
    if nodes.run_on(nid).is_err() {
        bound.store(false, Ordering::SeqCst);
    }
}
