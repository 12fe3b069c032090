//! How a server is to be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use numerge_engine::EngineOptions;
use numerge_engine::machine::PAGE_SIZE;
use numerge_linux::UffdDevice;
use numerge_protocol::{Limits, limits};

/// How a server is to be. What may be had by everybody has limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// Permissions of the socket: who may write to it may connect.
    pub socket_mode: u32,
    /// How each domain's engine is to be.
    pub engine: EngineOptions,
    /// What clients may have.
    pub quotas: Quotas,
    /// Who may be in which security domain.
    pub domains: Domains,
    /// A user whose programs are not served. The engine's own must be, where it serves others too: the
    /// pools' files are that user's, who may allow himself to write to them.
    pub unserved_user: Option<u32>,
    /// Lent to every client that is served, so that those are merged that may not open it. They can have
    /// the kernel wait for them with it, in its own accesses to their memory.
    pub lent_device: Option<Arc<UffdDevice>>,
}

impl Default for Options {
    /// For all users of the host, each in a domain of its own.
    fn default() -> Self {
        Self {
            socket_mode: 0o666,
            engine: EngineOptions::default(),
            quotas: Quotas::default(),
            domains: Domains::default(),
            unserved_user: None,
            lent_device: None,
        }
    }
}

/// The most that clients may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quotas {
    /// Clients at one time.
    pub clients: usize,
    /// Clients of one user at one time, so that one can't keep all others out.
    pub clients_of_user: usize,
    /// Security domains at one time. One without clients makes room for another.
    pub domains: usize,
    /// Regions of a client.
    pub regions: u32,
    /// Pages of a client that the engine keeps records of, 8 bytes and more each.
    pub pages: u64,
    /// The same of all clients of one user together.
    pub pages_of_user: u64,
    /// The same of all clients.
    pub pages_of_all: u64,
}

impl Default for Quotas {
    /// 1024 clients, 256 of them of one user, in 64 domains, each with 65 536 regions of 1 TiB together; but
    /// those of one user with no more than four times what the machine has as memory, and all with no more
    /// than sixteen times. Records of pages that are not there, 16 bytes each, take a 64th of that memory
    /// then, or a 16th.
    fn default() -> Self {
        let machine = rustix::system::sysinfo();
        let bytes = machine.totalram.saturating_mul(machine.mem_unit.into());
        let machine_pages = bytes / PAGE_SIZE as u64;
        Self {
            clients: 1024,
            clients_of_user: 256,
            domains: 64,
            regions: 1 << 16,
            pages: 1 << 28,
            pages_of_user: machine_pages.saturating_mul(4),
            pages_of_all: machine_pages.saturating_mul(16),
        }
    }
}

impl Quotas {
    /// What a client is told.
    pub(crate) fn limits(&self) -> Limits {
        let most = u32::try_from(limits::REGIONS).unwrap_or(u32::MAX);
        let pages = self.pages.min(self.pages_of_user).min(self.pages_of_all);
        let pages = pages.clamp(1, limits::ADDRESS_PAGES);
        Limits {
            regions: self.regions.clamp(1, most),
            region_pages: pages,
            pages,
            merge_runs: u32::try_from(limits::MERGE_RUNS).unwrap_or(u32::MAX),
            merge_pages: u32::try_from(crate::memory::QUESTION_PAGES).unwrap_or(u32::MAX),
        }
    }
}

/// Who may be in which security domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Domains {
    /// Whether a client that asks for no domain gets one with the other clients of its user and user
    /// namespace; else it is turned away.
    pub by_user: bool,
    /// Domains that clients can ask for by name.
    pub named: BTreeMap<String, Members>,
}

impl Default for Domains {
    fn default() -> Self {
        Self { by_user: true, named: BTreeMap::new() }
    }
}

/// Who may be in a named domain.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Members {
    /// Users by their numbers.
    pub users: BTreeSet<u32>,
}
