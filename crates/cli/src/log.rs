//! What an engine logs, on standard error.

use std::io::{self, IsTerminal};

use clap::ValueEnum;

/// What is logged: this and what matters more.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// Why the engine can't go on
    Error,
    /// Clients that are turned away, or do not answer; what runs out, such as memory for frames
    Warn,
    /// Beginning and end, clients that come and go, knobs that are set, run=2 and its end, frames that
    /// moved to other nodes
    Info,
    /// How merging, pruning of chains and unmerging get on, a line a second at most for each domain
    Debug,
}

impl From<Level> for tracing::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::ERROR,
            Level::Warn => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
        }
    }
}

/// Logs from now on. To be called once.
pub(crate) fn start(level: Level) {
    let level: tracing::Level = level.into();
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_max_level(level)
        // It would say on standard error that nothing can be said there, and panic.
        .log_internal_errors(false)
        .init();
}
