//! Nodes that come and go, and frames that are not to be used: by command, and as the machine does
//! it (S4.5).

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numerge_stable_tree::{Closing, Kpfn};
use numerge_topology::Nid;

use crate::offline::{OfflineError, What, empty, empty_frames, stop_shard};
use crate::run::Inner;

/// How long to wait before following the machine is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What is offline.
pub(crate) struct Hotplug {
    /// Of each node: taken offline by command, and not gone from the machine since. The machine's
    /// word that it is there does not bring it back then.
    commanded: Vec<bool>,
    closed: Vec<Closing>,
    /// When following the machine failed last.
    failed: Option<Instant>,
}

impl Hotplug {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { commanded: vec![false; nodes], closed: Vec::new(), failed: None }
    }
}

impl Inner {
    /// Takes a node offline.
    pub(crate) fn offline_node(self: &Arc<Self>, nid: Nid) -> Result<(), OfflineError> {
        let node = self.known_node(nid)?;
        let mut hotplug = self.hotplug.lock();
        self.take_node(node)?;
        hotplug.commanded[usize::from(node)] = true;
        Ok(())
    }

    /// Brings a node back.
    pub(crate) fn online_node(self: &Arc<Self>, nid: Nid) -> Result<(), OfflineError> {
        let node = self.known_node(nid)?;
        let mut hotplug = self.hotplug.lock();
        hotplug.commanded[usize::from(node)] = false;
        self.bring_node(node)
    }

    /// Takes frames offline.
    pub(crate) fn offline_frames(&self, range: Range<Kpfn>) -> Result<(), OfflineError> {
        if range.is_empty() || range.end.0 > 1 << Kpfn::BITS {
            return Err(OfflineError::NoRange(range));
        }
        let mut hotplug = self.hotplug.lock();
        let overlaps =
            |closed: &Closing| closed.range().start < range.end && range.start < closed.range().end;
        if let Some(closed) = hotplug.closed.iter().find(|closed| overlaps(closed)) {
            return Err(OfflineError::AlreadyOffline(closed.range()));
        }
        let mut closed: Vec<_> = hotplug.closed.iter().map(Closing::range).collect();
        closed.push(range.clone());
        self.core.frames.withhold(&closed);
        let reader = self.core.forest.register();
        let done = empty_frames(&self.core, &reader, &range);
        self.core.return_freed(&reader);
        match done {
            Ok(closing) => {
                hotplug.closed.push(closing);
                Ok(())
            }
            Err(error) => {
                closed.pop();
                self.core.frames.withhold(&closed);
                Err(error)
            }
        }
    }

    /// Brings frames back.
    pub(crate) fn online_frames(&self, range: Range<Kpfn>) -> Result<(), OfflineError> {
        let mut hotplug = self.hotplug.lock();
        let place = hotplug.closed.iter().position(|closed| closed.range() == range);
        let closing = hotplug.closed.swap_remove(place.ok_or(OfflineError::NotOffline(range))?);
        self.core.forest.open(closing);
        let closed: Vec<_> = hotplug.closed.iter().map(Closing::range).collect();
        self.core.frames.withhold(&closed);
        Ok(())
    }

    /// Does as the machine has done: ends the shards of nodes that are gone, and starts those of
    /// nodes that are back. `caller` is the shard whose thread this is; its own node another sees to.
    pub(crate) fn follow_nodes(self: &Arc<Self>, caller: Option<usize>) {
        if self.core.nids.len() == 1 {
            return;
        }
        // One at a time; who finds another at it, or a command, leaves it to them.
        let Some(mut hotplug) = self.hotplug.try_lock() else { return };
        if hotplug.failed.is_some_and(|failed| failed.elapsed() < RETRY) || self.is_stopping() {
            return;
        }
        let Ok(online) = self.core.nodes.online() else { return };
        let mut done = Ok(());
        for node in 0..self.core.node_count() {
            let shard = &self.core.shards[usize::from(node)];
            let is_there = online.contains(&shard.nid);
            let commanded = &mut hotplug.commanded[usize::from(node)];
            *commanded &= is_there;
            if is_there && !*commanded && !shard.is_online() {
                done = done.and(self.bring_node(node));
            } else if !is_there && shard.is_online() && caller != Some(shard.index) {
                done = done.and(self.take_node(node));
            }
        }
        hotplug.failed = done.is_err().then(Instant::now);
    }

    fn take_node(self: &Arc<Self>, node: u16) -> Result<(), OfflineError> {
        let core = &self.core;
        let shard = &core.shards[usize::from(node)];
        if shard.is_online() {
            stop_shard(core, node)?;
            self.join(shard.index);
        }
        let reader = core.forest.register();
        let done = empty(core, &reader, &What::Node(shard.nid));
        core.return_freed(&reader);
        if done.is_err() {
            // As it was, but for pages that are unmerged.
            self.bring_node(node)?;
        }
        done
    }

    fn bring_node(self: &Arc<Self>, node: u16) -> Result<(), OfflineError> {
        let shard = &self.core.shards[usize::from(node)];
        if shard.is_online() {
            return Ok(());
        }
        let nid = shard.nid;
        shard
            .start(&self.core.nodes)
            .map_err(|error| OfflineError::Threads { nid, reason: error.to_string() })?;
        self.core.set_gone(node, false);
        if let Err((nid, reason)) = self.start(shard.index) {
            shard.stop();
            self.core.set_gone(node, true);
            return Err(OfflineError::Threads { nid, reason });
        }
        Ok(())
    }

    fn known_node(&self, nid: Nid) -> Result<u16, OfflineError> {
        self.core.node_index(nid).ok_or_else(|| {
            let known: Vec<String> = self.core.nids.iter().map(ToString::to_string).collect();
            OfflineError::UnknownNode { nid, known: known.join(", ") }
        })
    }
}
