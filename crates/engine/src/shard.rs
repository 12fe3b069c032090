//! A scanner shard: one for each node, with threads bound to the node's CPUs (S4.2).

use std::sync::Arc;

use numerge_topology::Nid;
use parking_lot::{Mutex, MutexGuard};
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::machine::Nodes;
use crate::scan::Cursor;

/// The part of the engine that scans what lies on one node.
pub(crate) struct Shard {
    /// Its place among the shards, and its node's among the nodes.
    pub(crate) index: usize,
    pub(crate) nid: Nid,
    pub(crate) pool: ThreadPool,
    cursor: Mutex<Cursor>,
}

impl Shard {
    pub(crate) fn new(
        index: usize,
        nid: Nid,
        threads: usize,
        nodes: &Arc<dyn Nodes>,
    ) -> Result<Self, ThreadPoolBuildError> {
        let pinned = Arc::clone(nodes);
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(move |thread| format!("numerge-{nid}-{thread}"))
            // A thread that may not be bound (a described machine, a CPU set without this node)
            // still does its work, from elsewhere.
            .start_handler(move |_| drop(pinned.run_on(nid)))
            .build()?;
        Ok(Self { index, nid, pool, cursor: Mutex::default() })
    }

    /// Where its pass stands. Whoever holds this is the shard's scanner.
    pub(crate) fn cursor(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock()
    }
}
