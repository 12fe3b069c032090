//! The control files of a server.

use std::sync::{Arc, Weak};

use numerge::{Counters, Knob, KnobError, Nid, NodeReport};
use numerge_control_fs::{ControlFs, MountError, Mounted, Source};
use numerge_server::Server;

use crate::recent::Recent;

/// Shows the files of a server where they are mounted. They do not keep the server from ending but while a
/// file is being read or written.
pub(crate) fn show(mounted: Mounted, server: &Arc<Server>) -> Result<ControlFs, MountError> {
    let nodes = Arc::new(Recent::default());
    let source = Shown { nids: server.nids(), nodes, server: Arc::downgrade(server) };
    ControlFs::serve(mounted, Arc::new(source))
}

struct Shown {
    server: Weak<Server>,
    nids: Vec<Nid>,
    nodes: Arc<Recent>,
}

impl Source for Shown {
    fn knob(&self, knob: Knob) -> u64 {
        self.server.upgrade().map_or_else(|| knob.default_value(), |server| server.knob(knob))
    }

    /// Users of the kernel's file do not try again, so that is done for them.
    fn set(&self, knob: Knob, value: u64) -> Result<(), KnobError> {
        self.server.upgrade().map_or(Ok(()), |server| server.set_patiently(knob, value))
    }

    fn interrupt(&self) {
        if let Some(server) = self.server.upgrade() {
            server.interrupt_unmerging();
        }
    }

    fn counters(&self) -> Counters {
        self.server.upgrade().map_or_else(Counters::default, |server| server.counters())
    }

    fn nids(&self) -> Vec<Nid> {
        self.nids.clone()
    }

    fn nodes(&self) -> Vec<NodeReport> {
        let server = self.server.clone();
        self.nodes.get(move || server.upgrade().map_or_else(Vec::new, |server| server.nodes()))
    }
}
