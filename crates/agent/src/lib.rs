//! The agent: what runs inside a client program, and merges its memory for an engine outside.
//!
//! The preload library (`preload`) passes the program's calls that change mappings to [`calls`], and
//! calls [`begin`] before the program starts. From there:
//!
//! | module | does |
//! | --- | --- |
//! | `calls` | sees to it that each call means what it meant without us |
//! | `known`, `page_set` | what calls ask without the lock: which pages the agent has to do with |
//! | `agent` | the one agent of the process; the lock; what a fork makes of it |
//! | `unasked` | what is wanted without being asked for: scope `mapped`, PR_SET_MEMORY_MERGE |
//! | `space` | what is wanted, noted, registered; what the engine is to be told, in order |
//! | `client` | what merges; a thread that gives memory back for the program's threads |
//! | `service`, `session` | the thread that talks to the engine |
//! | `proc_files` | files of the process's own in `/proc`, where somebody shows them |
//!
//! Architecture invariants:
//! - A thread of the program allocates and frees the agent's memory only while signal handlers are kept
//!   away; and calls nothing that calls the program's malloc, for it may be that malloc that called, but
//!   to start the service thread. Nobody calls that malloc with `AddressSpace` held.
//! - A thread of the program never freezes pages.
//! - What the program's call does and what the engine is told of it happen under one lock. Calls on pages
//!   that are not known take none, and nothing is registered while one is under way that may not have seen
//!   that it is known by now.
//! - Without an engine everything goes on: nothing here waits for one but the service thread, and
//!   `madvise(MADV_MERGEABLE)` a bounded time (`told`), and who is shown files in `/proc` (`proc_files`).
//!
//! # Limits of this version
//! - Of processes made without CLONE_VM, those are seen that are made by fork(3), `_Fork(3)` or clone(2), or
//!   by `syscall(3)` without a stack of their own. Memory of others is right as long as they do not drop (MADV_DONTNEED) what was merged before, and were not
//!   made in the midst of a merge; they are not merged.
//! - Static programs are not seen, nor are system calls that a program makes by instructions of its own. Memory
//!   that was mapped so is not merged. Memory that was mapped by library calls, and is changed so, is at risk: see
//!   ARCHITECTURE.md. Programs that are known to do that are not merged at all (`bypass`).
//! - A signal handler that leaves a call that changes mappings by longjmp(3) keeps all that is offered later
//!   from being merged.
//! - A program with a malloc of its own in place of the C library's is served from its beginning
//!   (`mapped`), but its forked children only once they ask for it (`MADV_MERGEABLE`).

mod agent;
mod api;
mod bypass;
pub mod calls;
mod client;
pub mod config;
mod greeting;
mod known;
mod loan;
mod page_set;
mod proc_files;
mod reserve;
mod service;
mod session;
mod space;
mod sys;
mod threads;
mod told;
mod unasked;

pub use agent::{begin, forking, forking_elsewhere, watch_forks};
pub use api::{Agent, Error, Region, Status};
pub use config::Config;
pub use numerge_linux::{place_for, system_call};
pub use sys::{Answer, errno, set_errno};
pub use threads::keep_until_last;

/// What the preload library defines, for who links the agent to find that it is there.
pub const PRELOADED: &std::ffi::CStr = c"numerge_agent_is_preloaded";
