//! Same-page merging of a program's own memory, from user space.
//!
//! A [`Merger`] is an engine of its own for one process. Memory registered with it is merged page
//! by page with memory of equal content, in this process, as the kernel's KSM would, but in
//! proportion to what changed. What the program reads never changes; what it writes goes to a copy
//! of its own.
//!
//! ```no_run
//! use numerge::{Knob, Merger, Options};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let merger = Merger::new(Options::default())?;
//! let region = merger.allocate(64 << 20)?;
//! for page in 0..region.len() / 4096 {
//!     region.write(page * 4096, b"every page is the same")?;
//! }
//! merger.set(Knob::Run, 1)?;
//! while merger.counters().full_scans < 3 {
//!     std::thread::sleep(std::time::Duration::from_millis(20));
//! }
//! println!("{} bytes saved", merger.counters().bytes_saved());
//! drop(region); // private memory again, then unmapped
//! merger.shut_down()?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/own_memory.rs` is a program that does this, and shows what it got.

pub mod control;
pub mod json;
mod merger;

use std::path::PathBuf;

/// The environment variable that tells an agent where its engine's socket is.
pub const AGENT_SOCKET: &str = "NUMERGE_SOCKET";
/// The environment variable that tells an agent what is to be merged: `advised` or `mapped`.
pub const AGENT_SCOPE: &str = "NUMERGE_SCOPE";
/// The environment variable that tells an agent which security domain to ask for.
pub const AGENT_DOMAIN: &str = "NUMERGE_DOMAIN";
/// The environment variable by which agents hand PR_SET_MEMORY_MERGE on to what their program executes: `0` or
/// `1`.
pub const AGENT_MEMORY_MERGE: &str = "NUMERGE_MEMORY_MERGE";

/// The environment variable that tells an agent who shows its process files in `/proc`, by a socket.
pub const AGENT_AS_KSM: &str = "NUMERGE_AS_KSM";

/// The socket of the host's daemon.
pub const DAEMON_SOCKET: &str = "/run/numerge/numerge.sock";

/// The socket of the engine to use if nothing else is said: [`AGENT_SOCKET`], or the host's daemon's.
#[must_use]
pub fn default_socket() -> PathBuf {
    std::env::var_os(AGENT_SOCKET).map_or_else(|| DAEMON_SOCKET.into(), PathBuf::from)
}

pub use merger::{AllocateError, BuildError, Merger, Region, Registration};
pub use numerge_engine::machine::MemoryError;
pub use numerge_engine::{
    Counters, EngineOptions as Options, Knob, KnobError, Kpfn, Nid, NodeReport, OfflineError,
    PagesByNode, PoolReport, RegisterError, StageTimes, UnmergeError,
};
