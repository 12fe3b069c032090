//! The engine side of host-wide merging: one engine for all programs of a security domain.
//!
//! A [`Server`] listens on a Unix socket. A client is a process with an agent inside, and a connection
//! (`client`): a thread that reads what it says, and a worker (`worker`) that tells the engine. To the
//! engine a client is a [`Memory`](numerge_engine::machine::Memory) (`memory`): looked at from here,
//! with [`numerge_linux::RemoteProcess`], and changed by asking the client (`book`, `link`).
//!
//! Architecture invariants:
//! - **Nobody waits for a client but its own worker**, and the engine a bounded time. The reader of a
//!   connection never waits for the engine, so that answers always get through.
//! - **A client is believed only about its own memory.** What it says decides what happens to its own
//!   pages, and when frames are free: but a frame is given back only once no process maps it, but for
//!   those of which the engine knows all ([`numerge_linux::FramePools::serve`]).
//! - **No frame that an unanswered question names is given up while its client lives**: it may be
//!   mapped at any moment.
//! - **Nothing is asked about a page after the client said that it is gone**, until it is registered
//!   anew and the engine has forgotten what was there.
//! - Every queue, and everything that grows at a client's will, has a limit.

mod accept;
mod allotments;
mod answers;
mod book;
mod chatter;
mod client;
mod domain;
mod heap;
mod host;
mod inbox;
mod journal;
mod known;
mod link;
mod mappings;
mod memory;
mod nodes;
mod options;
mod pages;
mod rejection;
mod scans;
mod server;
mod settings;
mod stalls;
mod worker;

pub use domain::{Domain, DomainId};
pub use numerge_protocol::{Listener, Socket, SocketError, proc_files};
pub use options::{Domains, Members, Options, Quotas};
pub use server::{BindError, ClientInfo, Server};
pub use stalls::Stalls;
