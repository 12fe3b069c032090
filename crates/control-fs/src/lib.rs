//! The files of /sys/kernel/mm/ksm, for an engine in user space: what reads and writes the kernel's
//! steers and watches numerge, unmodified.
//!
//! A FUSE file system with the names, modes, formats and error numbers of Linux 6.18, of what a
//! [`Source`] has to say. The facts about the kernel's files that it goes by are in
//! `tests/facts/linux-6.18.txt`, printed by `ksm-facts`, which prints the same of these.
//!
//! | file | what |
//! | --- | --- |
//! | `run` ... `advisor_target_scan_time` | the knobs |
//! | `pages_shared` ... `general_profit` | the counters |
//! | `nodes/N/` | counters of a NUMA node |
//! | `numerge/` | counters that the kernel does not have |
//! | `numerge/proc/PID/` | where a source tells of processes: what the kernel has in `/proc/PID/` |
//!
//! What is read is as it is when a reader begins at the file's beginning; nothing is cached here. A write to
//! `run` of 2 returns when everything is unmerged, and meanwhile all files can be read and written. If
//! the writer gets a signal, unmerging stops, `run` is 0, and the write fails with EINTR. If somebody else
//! writes 0 or 1, it stops too, and the write fails with ECANCELED.
//!
//! A file's inode number may change from one look-up to the next (see `tree`).

mod files;
mod filesystem;
mod handles;
mod mount;
mod place;
mod processes;
mod relay;
mod source;
mod text;
mod tree;
mod turns;
mod writes;

pub use mount::{ControlFs, MountError};
pub use place::{Mounted, keep};
pub use source::{Process, Source, errno};
pub use text::{MODES, parse};
