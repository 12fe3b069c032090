//! The control files of a server.

use std::path::Path;
use std::sync::{Arc, Weak};

use numerge::{Counters, Knob, KnobError, MemoryError, Nid, NodeReport, UnmergeError};
use numerge_control_fs::{ControlFs, MountError, Source};
use numerge_server::Server;

/// Times that everything is unmerged for one write of 2 to `run`, while programs do not answer.
const UNMERGE_TRIES: u32 = 10;

/// Shows the files of a server at a directory. They do not keep the server from ending but while a
/// file is being read or written.
pub(crate) fn show(directory: &Path, server: &Arc<Server>) -> Result<ControlFs, MountError> {
    let source = Shown { nids: server.nids(), server: Arc::downgrade(server) };
    ControlFs::mount(directory, Arc::new(source))
}

struct Shown {
    server: Weak<Server>,
    nids: Vec<Nid>,
}

impl Source for Shown {
    fn knob(&self, knob: Knob) -> u64 {
        self.server.upgrade().map_or_else(|| knob.default_value(), |server| server.knob(knob))
    }

    /// A program on a busy machine may be silent for longer than the server has patience, and users of
    /// the kernel's file do not try again: so that is done for them, some times.
    fn set(&self, knob: Knob, value: u64) -> Result<(), KnobError> {
        let Some(server) = self.server.upgrade() else { return Ok(()) };
        let is_silence = |error: &KnobError| {
            matches!(error, KnobError::Unmerge(UnmergeError::Memory(MemoryError::NoAnswer)))
        };
        let mut done = server.set(knob, value);
        for _ in 1..UNMERGE_TRIES {
            // Somebody else may have set it meanwhile.
            if !done.as_ref().is_err_and(is_silence) || server.knob(knob) != 0 {
                break;
            }
            done = server.set(knob, value);
        }
        done
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
        self.server.upgrade().map_or_else(Vec::new, |server| server.nodes())
    }
}
