//! `--stats`: the counters as they last were while there was something to count.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use numerge::control::{AskError, Client, path_beside};
use serde_json::Value;

/// Between looks. With its last program everything is gone, so what is written is at most as old.
const POLL: Duration = Duration::from_millis(50);

/// Why there are no statistics.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatsError {
    #[error("can't write statistics to {}: {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "no statistics: {0}; with --set run=1 and no --socket COMMAND has an engine of its own"
    )]
    Ask(#[from] AskError),
    #[error("can't start a thread: {0}")]
    Thread(io::Error),
}

/// Looks at an engine's counters until it is finished.
pub(crate) struct Sampler {
    file: PathBuf,
    stop: Sender<()>,
    thread: JoinHandle<Value>,
}

impl Sampler {
    /// Begins to look. Tries at once whether the file can be written.
    pub(crate) fn start(socket: &Path, file: &Path) -> Result<Self, StatsError> {
        let client = Client::connect(&path_beside(socket))?;
        fs::write(file, "").map_err(|source| StatsError::Write { path: file.into(), source })?;
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("stats".into())
            .spawn(move || look(client, &stopped))
            .map_err(StatsError::Thread)?;
        Ok(Self { file: file.into(), stop, thread })
    }

    /// Writes what was seen.
    pub(crate) fn finish(self) -> Result<(), StatsError> {
        drop(self.stop);
        let seen = self.thread.join().unwrap_or(Value::Null);
        fs::write(&self.file, format!("{seen}\n"))
            .map_err(|source| StatsError::Write { path: self.file, source })
    }
}

fn look(mut client: Client, stopped: &Receiver<()>) -> Value {
    let mut last = Value::Null;
    let mut peak = 0;
    loop {
        if let Ok(now) = client.status() {
            peak = peak.max(now["bytes_saved"].as_u64().unwrap_or(0));
            if last.is_null() || now["pages_registered"].as_u64() > Some(0) {
                last = now;
            }
        }
        last["bytes_saved_peak"] = peak.into();
        if stopped.recv_timeout(POLL) != Err(RecvTimeoutError::Timeout) {
            return last;
        }
    }
}
