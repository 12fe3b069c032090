//! The server: what its owner asks of it, its beginning and its end.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use numerge_engine::{Counters, Knob, KnobError, ProgramCounters};
use numerge_linux::mappings_limit;
use numerge_protocol::{Listener, SocketError};
use numerge_topology::{Topology, TopologyError};

use crate::accept::accept_all;
use crate::domain::{Domain, DomainId};
use crate::host::Host;
use crate::mappings;
use crate::options::Options;
use crate::stalls::Stalls;

/// How long clients have to leave once the server ends.
const LEAVE_WAIT: Duration = Duration::from_secs(10);
/// How long their threads have to end after that.
const END_WAIT: Duration = Duration::from_secs(10);

/// How long nothing may get unmerged until `run=2` reports that clients do not answer; for who tries again
/// by himself, and for others.
const PATIENCE: Duration = Duration::from_secs(1);
const MUCH_PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The machine's nodes can't be told.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A thread or a descriptor could not be had.
    #[error("{call}: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A client, for statistics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientInfo {
    /// The process.
    pub pid: i32,
    /// Its user.
    pub user: u32,
    /// Its security domain.
    pub domain: DomainId,
    /// Pages it has registered.
    pub pages_registered: u64,
    /// What merging did to it.
    pub counters: ProgramCounters,
    /// Mappings that it has, its own included, when they were last counted. Where there are many programs
    /// with many, not all are counted each time. None if that could not be done, or was not yet.
    pub mappings: Option<u64>,
    /// Mappings that it may have, its own included, before merging adds no more. None if the machine does
    /// not say how many a program may have.
    pub mappings_budget: Option<u64>,
    /// Times that it kept the engine waiting.
    pub stalls: Stalls,
}

/// Serves programs that connect. Dropping it ends it as [`Server::shut_down`] does, and what is merged
/// stays so.
pub struct Server {
    host: Arc<Host>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path`.
    ///
    /// # Errors
    /// [`BindError`], with nothing left behind.
    pub fn bind(path: &Path, options: Options) -> Result<Self, BindError> {
        let listener = Listener::bind(path, options.socket_mode)?;
        Self::listen(listener, options)
    }

    /// Serves who connects to a socket that is there already.
    ///
    /// # Errors
    /// [`BindError`], with nothing left behind.
    pub fn listen(listener: Listener, options: Options) -> Result<Self, BindError> {
        listener.set_nonblocking(true)?;
        let topology = Arc::new(Topology::discover()?);
        let host = Host::new(options, topology)
            .map_err(|source| BindError::System { call: "eventfd", source })?;
        let host = Arc::new(host);
        let mut server = Self { host, threads: Vec::new() };
        // All threads of the server come from these, and have their signals blocked too.
        let _quiet = numerge_linux::Quiet::begin();
        let accept = Arc::clone(&server.host);
        server.start("numerge-accept", move || accept_all(&accept, &listener))?;
        let settle = Arc::clone(&server.host);
        server.start("numerge-settle", move || settle.settle())?;
        let scans = Arc::clone(&server.host);
        server.start("numerge-scans", move || scans.count_scans())?;
        Ok(server)
    }

    fn start(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), BindError> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(run);
        let thread =
            thread.map_err(|source| BindError::System { call: "start a thread", source })?;
        self.threads.push(thread);
        Ok(())
    }

    /// The domains there are now, each with its engine.
    #[must_use]
    pub fn domains(&self) -> Vec<Arc<Domain>> {
        self.host.all_domains()
    }

    /// The counters of all domains together. When `full_scans` has risen by two, what had not changed
    /// before it began to is settled.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let full_scans = self.full_scans();
        let domains = self.host.all_domains();
        let all = domains.iter().map(|domain| domain.engine().counters());
        let all = all.fold(Counters::default(), |a, b| sum(&a, &b));
        Counters { full_scans, ..all }
    }

    pub(crate) fn full_scans(&self) -> u64 {
        self.host.scans.over()
    }

    /// The value of a knob, as it was set for all domains; of what advisors set, the largest.
    #[must_use]
    pub fn knob(&self, knob: Knob) -> u64 {
        self.host.knob(knob)
    }

    pub(crate) fn topology(&self) -> &Topology {
        self.host.topology()
    }

    /// Has a `run=2` that is under way end soon: `run` is 0 then, and what is merged still stays so.
    /// Without one, does nothing.
    pub fn interrupt_unmerging(&self) {
        self.host.interrupt_unmerging();
    }

    /// Sets a knob for all domains, and those to come. `run=2` returns when everything is unmerged,
    /// while other calls go on.
    ///
    /// # Errors
    /// [`KnobError`] of the first domain that had one. The knob keeps its value everywhere then, but for
    /// `run=2`: what could not be unmerged stays merged, and `run` is 0, or what it was set to
    /// meanwhile.
    pub fn set(&self, knob: Knob, value: u64) -> Result<(), KnobError> {
        self.host.set(knob, value, PATIENCE)
    }

    /// The same for people and scripts, who don't try again: clients that do not answer, as programs on a busy
    /// machine may not for a while, are waited for longer.
    ///
    /// # Errors
    /// As [`Server::set`].
    pub fn set_patiently(&self, knob: Knob, value: u64) -> Result<(), KnobError> {
        self.host.set(knob, value, MUCH_PATIENCE)
    }

    /// How many clients there are, those that have not introduced themselves included.
    #[must_use]
    pub fn client_count(&self) -> usize {
        self.host.client_count()
    }

    /// The clients that are served. Takes longer the more there are, and not the more they have.
    #[must_use]
    pub fn clients(&self) -> Vec<ClientInfo> {
        let clients = self.host.all_clients();
        mappings::count_some(&clients);
        let limit = mappings_limit().ok();
        let now = Instant::now();
        clients
            .iter()
            .map(|client| ClientInfo {
                pid: client.pid.get(),
                user: client.user,
                domain: client.domain.id().clone(),
                pages_registered: client.registered_pages(),
                counters: client.program.counters(),
                mappings: client.counted.lock().mappings,
                mappings_budget: limit.map(|limit| client.program.mappings_budget(limit)),
                stalls: client.memory.book().stalls(now),
            })
            .collect()
    }

    /// How many pages a process has registered, and what merging did to it; None if it is no client.
    #[must_use]
    pub fn process(&self, pid: i32) -> Option<(u64, ProgramCounters)> {
        // Of a process that has come again, the last.
        let clients = self.host.all_clients();
        let client = clients.iter().rev().find(|client| client.pid.get() == pid)?;
        Some((client.registered_pages(), client.program.counters()))
    }

    /// Frames that wait to be given back, since a process may map them that is no client.
    #[must_use]
    pub fn waiting_frames(&self) -> u64 {
        self.host.all_domains().iter().map(|domain| domain.pools().waiting_frames()).sum()
    }

    /// Ends: accepts nobody any more, tells the clients, and waits a while for them to leave. With
    /// `keep`, what is merged stays merged; else the clients give their pages memory of their own.
    /// Gives how many clients did not leave. Their memory is whole all the same: frames outlive the
    /// server for as long as they are mapped.
    pub fn shut_down(mut self, keep: bool) -> usize {
        self.stop(keep)
    }

    fn stop(&mut self, keep: bool) -> usize {
        if self.threads.is_empty() {
            return 0;
        }
        // No frame is given back from here on.
        self.host.stop();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
        for domain in self.host.all_domains() {
            // 0 is a value that it takes.
            let _ = domain.engine().set(Knob::Run, 0);
        }
        self.host.all_clients().iter().for_each(|client| client.send_leave(keep));
        let stayed = self.host.wait_for_clients(LEAVE_WAIT);
        self.host.all_clients().iter().for_each(|client| client.memory.link().hang_up());
        self.host.wait_for_clients(END_WAIT);
        self.host.forget_domains();
        stayed
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(true);
    }
}

/// The counters of two domains together.
fn sum(a: &Counters, b: &Counters) -> Counters {
    Counters {
        pages_shared: a.pages_shared + b.pages_shared,
        pages_sharing: a.pages_sharing + b.pages_sharing,
        pages_unshared: a.pages_unshared + b.pages_unshared,
        pages_volatile: a.pages_volatile + b.pages_volatile,
        pages_scanned: a.pages_scanned + b.pages_scanned,
        pages_skipped: a.pages_skipped + b.pages_skipped,
        // Counted otherwise: see `scans`.
        full_scans: 0,
        stable_node_chains: a.stable_node_chains + b.stable_node_chains,
        stable_node_dups: a.stable_node_dups + b.stable_node_dups,
        ksm_zero_pages: a.ksm_zero_pages + b.ksm_zero_pages,
        pages_registered: a.pages_registered + b.pages_registered,
        pages_untouched: a.pages_untouched + b.pages_untouched,
        pages_held: a.pages_held + b.pages_held,
        pages_over_budget: a.pages_over_budget + b.pages_over_budget,
        pages_broken: a.pages_broken + b.pages_broken,
        fingerprint_collisions: a.fingerprint_collisions + b.fingerprint_collisions,
        frames_refused: a.frames_refused + b.frames_refused,
        stable_nodes_queued: a.stable_nodes_queued + b.stable_nodes_queued,
        stable_nodes_replaced: a.stable_nodes_replaced + b.stable_nodes_replaced,
        epoch_lag: a.epoch_lag + b.epoch_lag,
        metadata_bytes: a.metadata_bytes + b.metadata_bytes,
    }
}
