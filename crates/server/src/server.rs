//! The server: accepts clients, has a domain for each kind of them, and speaks for all engines.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use numerge_engine::machine::MemoryError;
use numerge_engine::{Counters, Knob, KnobError, UnmergeError};
use numerge_protocol::{Listener, Reason, Socket, SocketError};
use numerge_topology::{Topology, TopologyError};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags};

use crate::chatter::Chatter;
use crate::client::{self, Client};
use crate::domain::{Domain, DomainId};
use crate::link::Link;
use crate::memory::Answers;
use crate::options::Options;
use crate::rejection::Rejection;
use crate::signals;

/// Least time between two looks at who maps frames that are to be given back; and it is at most this
/// share of the time that is spent on it.
const SETTLE_EVERY: Duration = Duration::from_millis(100);
const SETTLE_SHARE: u32 = 20;

/// Times that unmerging all is tried when clients had not answered yet. Each time some of it gets done.
const UNMERGE_TRIES: u32 = 1 << 20;

/// How long to wait when resources for another client have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How long clients have to leave once the server ends.
const LEAVE_WAIT: Duration = Duration::from_secs(10);
/// How long their threads have to end after that.
const END_WAIT: Duration = Duration::from_secs(10);

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
    /// Of these, pages mapped to frames now, as far as can be told.
    pub pages_merged: u64,
}

/// What is common to all of a server's threads.
pub(crate) struct Host {
    pub(crate) options: Options,
    chatter: Chatter,
    topology: Arc<Topology>,
    domains: Mutex<Registry>,
    /// By number.
    clients: Mutex<BTreeMap<u64, Connection>>,
    /// A client is no more.
    left: Condvar,
    stopping: Mutex<bool>,
    stopped: Condvar,
    /// Readable once the server stops.
    stop: OwnedFd,
}

/// Who is connected.
struct Connection {
    user: u32,
    /// None until it is welcome.
    client: Option<Arc<Client>>,
}

/// Domains, and what was set for all.
#[derive(Default)]
struct Registry {
    domains: BTreeMap<DomainId, Arc<Domain>>,
    settings: BTreeMap<Knob, u64>,
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
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC);
        let stop =
            stop.map_err(|errno| BindError::System { call: "eventfd", source: errno.into() })?;
        let host = Arc::new(Host {
            options,
            chatter: Chatter::default(),
            topology,
            domains: Mutex::default(),
            clients: Mutex::default(),
            left: Condvar::new(),
            stopping: Mutex::new(false),
            stopped: Condvar::new(),
            stop,
        });
        let mut server = Self { host, threads: Vec::new() };
        // All threads of the server come from these, and have their signals blocked too.
        let _blocked = signals::block();
        let accept = Arc::clone(&server.host);
        server.start("numerge-accept", move || accept_all(&accept, &listener))?;
        let settle = Arc::clone(&server.host);
        server.start("numerge-settle", move || settle.settle())?;
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

    /// The counters of all domains together.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let domains = self.host.all_domains();
        let all = domains.iter().map(|domain| domain.engine().counters());
        all.fold(Counters::default(), |a, b| sum(&a, &b))
    }

    /// The value of a knob, as it was set for all domains.
    #[must_use]
    pub fn knob(&self, knob: Knob) -> u64 {
        let set = self.host.domains.lock().settings.get(&knob).copied();
        set.unwrap_or_else(|| knob.default_value())
    }

    /// Sets a knob for all domains, and those to come. `run=2` returns when everything is unmerged,
    /// while other calls go on.
    ///
    /// # Errors
    /// [`KnobError`] of the first domain that had one. The knob keeps its value everywhere then, but for
    /// `run=2`: what could not be unmerged stays merged, and `run` is 0, or what it was set to
    /// meanwhile.
    pub fn set(&self, knob: Knob, value: u64) -> Result<(), KnobError> {
        knob.check(value)?;
        let (before, domains) = {
            let mut registry = self.host.domains.lock();
            let before = registry.settings.insert(knob, value);
            (before, registry.domains.values().cloned().collect::<Vec<_>>())
        };
        let before = before.unwrap_or_else(|| knob.default_value());
        tracing::debug!(%knob, value, "to be set");
        let mut failed = Ok(());
        for domain in &domains {
            let done = self.host.set_in(domain, knob, value);
            if done.is_err() && failed.is_ok() {
                failed = done;
                // Each domain is unmerged as far as it goes.
                if !matches!((knob, value), (Knob::Run, 2)) {
                    break;
                }
            }
        }
        match &failed {
            Ok(()) => tracing::info!(%knob, value, "set"),
            Err(error) => tracing::warn!(%knob, value, %error, "not set"),
        }
        if failed.is_err() {
            let restored = if knob == Knob::Run { 0 } else { before };
            let mut registry = self.host.domains.lock();
            if registry.settings.get(&knob) == Some(&value) {
                registry.settings.insert(knob, restored);
                drop(registry);
                for domain in &domains {
                    // What has the value already is no failure, and what has not did not change.
                    let _ = domain.engine().set(knob, restored);
                }
            }
        }
        failed
    }

    /// How many clients there are, those that have not introduced themselves included.
    #[must_use]
    pub fn client_count(&self) -> usize {
        self.host.clients.lock().len()
    }

    /// The clients that are served.
    #[must_use]
    pub fn clients(&self) -> Vec<ClientInfo> {
        let clients = self.host.all_clients();
        clients
            .iter()
            .map(|client| ClientInfo {
                pid: client.pid.get(),
                user: client.user,
                domain: client.domain.id().clone(),
                pages_registered: client.registered_pages(),
                pages_merged: client.memory.merged_pages(),
            })
            .collect()
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
        self.host.domains.lock().domains.clear();
        stayed
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(true);
    }
}

impl Host {
    fn all_domains(&self) -> Vec<Arc<Domain>> {
        self.domains.lock().domains.values().cloned().collect()
    }

    fn all_clients(&self) -> Vec<Arc<Client>> {
        self.clients.lock().values().filter_map(|connection| connection.client.clone()).collect()
    }

    /// Sets a knob of one domain. The engine waits for no client that does not answer at once, so that it
    /// can't unmerge those that are busy; they are waited for here, where nobody else waits, and asked
    /// again for as long as one of them gets on.
    fn set_in(&self, domain: &Arc<Domain>, knob: Knob, value: u64) -> Result<(), KnobError> {
        let mut silent = BTreeSet::new();
        for _ in 0..UNMERGE_TRIES {
            match domain.engine().set(knob, value) {
                Err(KnobError::Unmerge(UnmergeError::Memory(MemoryError::NoAnswer))) => {}
                done => return done,
            }
            let mut clients = self.all_clients();
            clients.retain(|client| Arc::ptr_eq(&client.domain, domain));
            let pages_left = domain.engine().counters().pages_sharing;
            tracing::debug!(domain = %domain.id(), pages_left, "unmerging: waits for answers");
            let mut gets_on = false;
            for client in clients {
                // Once is enough for all of this.
                if silent.contains(&client.pid) {
                    continue;
                }
                match client.memory.wait_for_answers() {
                    Answers::NoneWanted => {}
                    Answers::All => gets_on = true,
                    Answers::Silence => {
                        tracing::warn!(pid = client.pid, uid = client.user, "does not answer");
                        silent.insert(client.pid);
                    }
                }
            }
            if !gets_on || self.domains.lock().settings.get(&knob) != Some(&value) {
                break;
            }
        }
        Err(KnobError::Unmerge(UnmergeError::Memory(MemoryError::NoAnswer)))
    }

    /// The domain of that name, made if it is missing.
    pub(crate) fn domain(&self, id: &DomainId) -> Result<Arc<Domain>, Rejection> {
        let unavailable = |text: String| Rejection::new(Reason::Unavailable, text);
        let mut registry = self.domains.lock();
        if let Some(domain) = registry.domains.get(id) {
            return Ok(Arc::clone(domain));
        }
        if registry.domains.len() >= self.options.quotas.domains {
            let idle = registry.domains.iter().find(|(_, domain)| Arc::strong_count(domain) == 1);
            let idle = idle.map(|(id, _)| id.clone());
            let idle =
                idle.ok_or_else(|| unavailable("as many security domains as allowed".into()))?;
            registry.domains.remove(&idle);
        }
        let domain = Domain::new(id.clone(), &self.topology, self.options.engine.clone())
            .map_err(|error| unavailable(error.to_string()))?;
        for (&knob, &value) in &registry.settings {
            domain.engine().set(knob, value).map_err(|error| unavailable(error.to_string()))?;
        }
        let domain = Arc::new(domain);
        registry.domains.insert(id.clone(), Arc::clone(&domain));
        Ok(domain)
    }

    /// Has something said that a user's client has caused, if it may say so much; `say` is told how
    /// much was not said before.
    pub(crate) fn on_behalf_of(&self, user: u32, say: impl FnOnce(u64)) {
        if let Some(unsaid) = self.chatter.may_say(user) {
            say(unsaid);
        }
    }

    /// Logs that a client is turned away.
    pub(crate) fn log_rejected(&self, socket: &Socket, rejection: &Rejection) {
        let Ok(peer) = socket.peer() else { return };
        let Rejection { reason, text } = rejection;
        let pid = peer.pid.map_or(0, NonZero::get);
        self.on_behalf_of(peer.uid, |unsaid| {
            tracing::warn!(pid, uid = peer.uid, ?reason, unsaid, "turned away: {text}");
        });
    }

    /// Lists a client as served; false if the server is ending.
    pub(crate) fn welcome(&self, number: u64, client: &Arc<Client>) -> bool {
        // Held, so that who ends the server finds it in the list, or it is not welcome.
        let mut clients = self.clients.lock();
        if *self.stopping.lock() {
            return false;
        }
        let connection = clients.get_mut(&number);
        connection.is_some_and(|connection| connection.client.replace(Arc::clone(client)).is_none())
    }

    /// Waits a while; true at once when the server stops.
    pub(crate) fn waits_to_stop(&self, most: Duration) -> bool {
        let mut stopping = self.stopping.lock();
        self.stopped.wait_while_for(&mut stopping, |stopping| !*stopping, most);
        *stopping
    }

    fn stop(&self) {
        {
            let _clients = self.clients.lock();
            *self.stopping.lock() = true;
        }
        self.stopped.notify_all();
        // Fails only if it is readable already.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }

    /// Waits until there are no clients, and gives how many there are still.
    fn wait_for_clients(&self, most: Duration) -> usize {
        let mut clients = self.clients.lock();
        self.left.wait_while_for(&mut clients, |clients| !clients.is_empty(), most);
        clients.len()
    }

    /// Gives frames back that nobody maps any more, until the server stops.
    fn settle(&self) {
        let mut wait = SETTLE_EVERY;
        while !self.waits_to_stop(wait) {
            let began = Instant::now();
            for domain in self.all_domains() {
                if domain.pools().waiting_frames() > 0 {
                    domain.pools().settle();
                }
            }
            wait = SETTLE_EVERY.max(began.elapsed() * SETTLE_SHARE);
        }
    }
}

/// A place in the list of clients, given up when the connection's thread ends.
struct Place {
    host: Arc<Host>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let client = self.host.clients.lock().remove(&self.number);
        // Its domain may go with it, which takes time.
        drop(client);
        self.host.left.notify_all();
    }
}

/// Accepts clients until the server stops.
fn accept_all(host: &Arc<Host>, listener: &Listener) {
    let mut number = 0;
    loop {
        let mut polled = [
            PollFd::new(&host.stop, PollFlags::IN),
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        ];
        let _ = rustix::event::poll(&mut polled, None);
        if !polled[0].revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok(socket) => {
                number += 1;
                admit(host, number, socket);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Descriptors or memory have run out, and who waits, waits.
            Err(error) => {
                host.on_behalf_of(rustix::process::geteuid().as_raw(), |unsaid| {
                    tracing::warn!(%error, unsaid, "no other client can be accepted now");
                });
                host.waits_to_stop(ACCEPT_RETRY);
            }
        }
    }
}

/// Starts a client's thread, if there may be another.
fn admit(host: &Arc<Host>, number: u64, socket: Socket) {
    let Ok(peer) = socket.peer() else { return };
    let is_admitted = {
        let mut clients = host.clients.lock();
        let quotas = &host.options.quotas;
        let same = clients.values().filter(|connection| connection.user == peer.uid).count();
        let is_admitted = clients.len() < quotas.clients && same < quotas.clients_of_user;
        if is_admitted {
            clients.insert(number, Connection { user: peer.uid, client: None });
        }
        is_admitted
    };
    if !is_admitted {
        let rejection = Rejection::new(Reason::TooManyClients, "as many clients as allowed");
        host.log_rejected(&socket, &rejection);
        turn_away(socket, &rejection);
        return;
    }
    let place = Place { host: Arc::clone(host), number };
    let serve = move || client::serve(&place.host, place.number, socket);
    let thread = std::thread::Builder::new().name("numerge-client".into()).spawn(serve);
    if let Err(error) = thread {
        // The connection has ended by this.
        host.on_behalf_of(peer.uid, |unsaid| {
            tracing::warn!(uid = peer.uid, %error, unsaid, "no thread for another client");
        });
    }
}

fn turn_away(socket: Socket, rejection: &Rejection) {
    if let Ok(link) = Link::new(socket) {
        // If there is no room for it in a socket that is new, it learns of it by the end.
        let _ = link.send(&rejection.message());
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
        full_scans: a.full_scans + b.full_scans,
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
