//! Mappings of processes that may mean harm, which nobody waits for too long.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Counted, FileId, ProcessId, Shared, read_maps};
use crate::looker;

/// How long a process's mappings may take to be read.
const READ_WAIT: Duration = Duration::from_secs(1);
/// Most processes at one time whose mappings are waited for by lookers that were left behind.
const UNANSWERED: usize = 16;

/// Processes whose mappings are waited for.
#[derive(Default, Debug)]
pub(crate) struct Unanswered {
    processes: Mutex<BTreeSet<ProcessId>>,
}

impl Unanswered {
    fn processes(&self) -> MutexGuard<'_, BTreeSet<ProcessId>> {
        // A set: whole whoever panicked.
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process that is waited for until this is dropped.
struct Waited {
    unanswered: Arc<Unanswered>,
    process: ProcessId,
}

impl Waited {
    fn begin(unanswered: &Arc<Unanswered>, process: ProcessId) -> Self {
        unanswered.processes().insert(process);
        Self { unanswered: Arc::clone(unanswered), process }
    }
}

impl Drop for Waited {
    fn drop(&mut self) {
        self.unanswered.processes().remove(&self.process);
    }
}

/// Reads mappings by the calling thread's looker.
pub(super) struct Reader {
    files: Arc<[FileId]>,
    unanswered: Arc<Unanswered>,
}

impl Reader {
    pub(super) fn new(files: Vec<FileId>, unanswered: Arc<Unanswered>) -> Self {
        Self { files: files.into(), unanswered }
    }

    /// What a process maps of the files. `TimedOut` if that takes too long, or did before and is waited for
    /// still; and for all where there are as many of those as allowed.
    pub(super) fn read(&self, pid: u32, counted: Counted) -> io::Result<Vec<Shared>> {
        let process = ProcessId::of(pid)?;
        {
            let unanswered = self.unanswered.processes();
            if unanswered.contains(&process) || unanswered.len() >= UNANSWERED {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let waited_for = Waited::begin(&self.unanswered, process);
        let files = Arc::clone(&self.files);
        let read = move |_: &looker::Began| {
            let mut shared = Vec::new();
            let read = read_maps(process.pid, &files, counted, &mut shared);
            drop(waited_for);
            read.map(|()| shared)
        };
        looker::call(READ_WAIT, read)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s6_who_is_waited_for_is_not_asked_again() {
        let unanswered = Arc::new(Unanswered::default());
        let reader = Reader::new(Vec::new(), Arc::clone(&unanswered));
        let me = std::process::id();
        let is_read = || match reader.read(me, Counted::All) {
            Ok(shared) => shared.is_empty(),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                false
            }
        };
        assert!(is_read());
        assert!(is_read(), "it has answered");
        let process = ProcessId::of(me).expect("stat");
        unanswered.processes().insert(process);
        assert!(!is_read());
        unanswered.processes().remove(&process);
        assert!(is_read());
        let others = (0..UNANSWERED as u64).map(|n| ProcessId { pid: 0, start_ticks: n });
        unanswered.processes().extend(others);
        assert!(!is_read(), "as many as allowed");
    }
}
