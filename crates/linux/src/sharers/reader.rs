//! Mappings of processes that may mean harm, read by a thread that is left behind if it takes too long.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Counted, FileId, ProcessId, Shared, read_maps};

/// How long a process's mappings may take to be read.
const READ_WAIT: Duration = Duration::from_secs(1);
/// Most processes at one time whose mappings are waited for by threads that were left behind.
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

/// A thread that reads mappings.
struct Thread {
    orders: Sender<(ProcessId, Counted)>,
    answers: Receiver<io::Result<Vec<Shared>>>,
}

/// Reads mappings by a thread, and another one when that was left behind.
pub(super) struct Reader {
    files: Arc<[FileId]>,
    unanswered: Arc<Unanswered>,
    thread: Option<Thread>,
}

impl Reader {
    pub(super) fn new(files: Vec<FileId>, unanswered: Arc<Unanswered>) -> Self {
        Self { files: files.into(), unanswered, thread: None }
    }

    /// What a process maps of the files. `TimedOut` if that takes too long, or did before and is waited for
    /// still; and for all where there are as many of those as allowed.
    pub(super) fn read(&mut self, pid: u32, counted: Counted) -> io::Result<Vec<Shared>> {
        let process = ProcessId::of(pid)?;
        {
            let unanswered = self.unanswered.processes();
            if unanswered.contains(&process) || unanswered.len() >= UNANSWERED {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => self.start()?,
        };
        // Before it is ordered: the thread takes it out again.
        self.unanswered.processes().insert(process);
        let sent = thread.orders.send((process, counted));
        match sent.ok().and_then(|()| thread.answers.recv_timeout(READ_WAIT).ok()) {
            Some(answer) => {
                self.thread = Some(thread);
                answer
            }
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn start(&self) -> io::Result<Thread> {
        let (orders, ordered) = channel::<(ProcessId, Counted)>();
        let (answer, answers) = channel();
        let (files, unanswered) = (Arc::clone(&self.files), Arc::clone(&self.unanswered));
        let run = move || {
            while let Ok((process, counted)) = ordered.recv() {
                let mut shared = Vec::new();
                let read = read_maps(process.pid, &files, counted, &mut shared);
                unanswered.processes().remove(&process);
                // Nobody waits any more if it took too long.
                if answer.send(read.map(|()| shared)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("numerge-sharers".into()).spawn(run)?;
        Ok(Thread { orders, answers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s6_who_is_waited_for_is_not_asked_again() {
        let unanswered = Arc::new(Unanswered::default());
        let mut reader = Reader::new(Vec::new(), Arc::clone(&unanswered));
        let me = std::process::id();
        let mut is_read = || match reader.read(me, Counted::All) {
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
