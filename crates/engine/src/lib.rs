//! The merging engine: which pages have equal content, and which frames they share.
//!
//! An [`Engine`] watches regions of memory and merges pages of equal content into frames, by the
//! rules of the kernel's KSM with a limit on sharing, one scanner shard for each NUMA node. It
//! knows no system call: memory, frames and nodes are what the traits of [`machine`] say they are.
//!
//! A scan is a pipeline of batches: `scan` asks what changed, `judge` reads and hashes it, `find`
//! looks it up, `supply` makes new frames, `plan` cuts runs, the machine merges them, `record`
//! writes down what came of it.

mod advisor;
mod ages;
mod batch;
mod clock;
mod core;
mod counters;
mod cpu;
mod engine;
mod find;
mod fingerprint;
mod handles;
mod homes;
mod hotplug;
pub mod in_memory;
mod judge;
mod knobs;
mod late;
pub mod machine;
mod migrate;
mod nodes;
mod offline;
mod pending;
mod piece;
mod plan;
mod program;
mod record;
mod region;
mod run;
mod scan;
mod shard;
mod supply;
mod unmerge;
mod world;

pub use clock::Clock;
pub use core::RETRY_PASSES;
pub use counters::{Counters, Progress, StageTimes, Work};
pub use engine::{Engine, EngineError, EngineOptions, RegisterError};
pub use fingerprint::Fingerprinter;
pub use handles::{ProgramHandle, RegionHandle};
pub use knobs::{ADVISOR_NONE, ADVISOR_SCAN_TIME, Knob, KnobError};
pub use nodes::{NodeReport, PagesByNode, PoolReport};
pub use numerge_stable_tree::{Fingerprint, Kpfn};
pub use numerge_topology::{Nid, Topology};
pub use offline::OfflineError;
pub use program::ProgramCounters;
pub use unmerge::UnmergeError;
