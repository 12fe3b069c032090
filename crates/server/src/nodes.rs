//! NUMA nodes over all domains.

use std::collections::BTreeMap;

use numerge_engine::{Nid, NodeReport};

use crate::server::Server;

impl Server {
    /// The nodes of this machine that the engines know: always the same.
    #[must_use]
    pub fn nids(&self) -> Vec<Nid> {
        self.topology().nodes().iter().map(|node| node.nid).collect()
    }

    /// Every node, all domains together; without any, nothing but its state. `full_scans` is that of
    /// [`Server::counters`] from before the rest was counted, so that who has seen it rise by two finds the
    /// rest settled.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeReport> {
        let full_scans = self.full_scans();
        let nothing = |nid| (nid, NodeReport { full_scans, ..NodeReport::nothing_on(nid) });
        let mut nodes: BTreeMap<Nid, NodeReport> = self.nids().into_iter().map(nothing).collect();
        for report in self.domains().iter().flat_map(|domain| domain.engine().nodes()) {
            if let Some(node) = nodes.get_mut(&report.nid) {
                node.add(&report);
            }
        }
        nodes.into_values().collect()
    }
}
