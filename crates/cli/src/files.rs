//! The control files of a server.

use std::sync::{Arc, Weak};

use numerge::{Counters, Knob, KnobError, Nid, NodeReport};
use numerge_control_fs::{ControlFs, MountError, Mounted, Process, Source};
use numerge_server::Server;

use crate::processes::Processes;
use crate::recent::Recent;

/// Shows the files of a server where they are mounted. They do not keep the server from ending but while a
/// file is being read or written. With `processes` these have files too.
pub(crate) fn show(
    mounted: Mounted,
    server: &Arc<Server>,
    processes: Option<Arc<Processes>>,
) -> Result<ControlFs, MountError> {
    let nodes = Arc::new(Recent::default());
    let source = Shown { nids: server.nids(), nodes, server: Arc::downgrade(server), processes };
    ControlFs::serve(mounted, Arc::new(source))
}

/// Bytes that a page takes that is looked after, at most: frames, which have 160, are nobody's alone.
const RECORD_BYTES: u64 = 24;

struct Shown {
    server: Weak<Server>,
    nids: Vec<Nid>,
    nodes: Arc<Recent>,
    processes: Option<Arc<Processes>>,
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

    fn processes(&self) -> Option<Vec<u32>> {
        self.processes.as_ref().map(|processes| processes.all())
    }

    fn process(&self, pid: u32) -> Option<Process> {
        let (owner, merges_any) = self.processes.as_ref()?.get(pid)?;
        let number = i32::try_from(pid).ok()?;
        let client = self.server.upgrade().and_then(|server| server.process(number));
        let (registered, counters) = client.unwrap_or_default();
        Some(Process {
            owner,
            merging_pages: counters.pages_merged,
            zero_pages: counters.ksm_zero_pages,
            // As the kernel, which keeps none of a page that it has merged with the page of zeros.
            rmap_items: counters.pages_touched.saturating_sub(counters.ksm_zero_pages),
            rmap_item_bytes: RECORD_BYTES,
            merges_any,
            is_mergeable: merges_any || registered > 0,
        })
    }
}
