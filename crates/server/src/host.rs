//! What is common to all of a server's threads: who is connected, which domains there are, and whether it
//! is ending.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numerge_engine::{ADVISOR_SCAN_TIME, Knob};
use numerge_protocol::{Reason, Socket};
use numerge_topology::Topology;
use parking_lot::{Condvar, Mutex};
use rustix::event::EventfdFlags;

use crate::allotments::Allotments;
use crate::chatter::Chatter;
use crate::client::Client;
use crate::domain::{Domain, DomainId, Member};
use crate::journal::Journal;
use crate::options::Options;
use crate::rejection::Rejection;
use crate::scans::Scans;

/// Least time between two looks at who maps frames that are to be given back; and it is at most this
/// share of the time that is spent on it.
const SETTLE_EVERY: Duration = Duration::from_millis(100);
const SETTLE_SHARE: u32 = 20;

/// What is common to all of a server's threads.
pub(crate) struct Host {
    pub(crate) options: Options,
    chatter: Chatter,
    topology: Arc<Topology>,
    pub(crate) domains: Mutex<Registry>,
    /// By number.
    clients: Mutex<BTreeMap<u64, Connection>>,
    /// A client is no more.
    left: Condvar,
    stopping: Mutex<bool>,
    stopped: Condvar,
    /// Readable once the server stops.
    stop: OwnedFd,
    pub(crate) scans: Scans,
    pub(crate) allotments: Allotments,
}

/// Who is connected.
struct Connection {
    user: u32,
    /// None until it is welcome.
    client: Option<Arc<Client>>,
}

/// Domains, and what was set for all.
#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) domains: BTreeMap<DomainId, Arc<Domain>>,
    pub(crate) settings: BTreeMap<Knob, u64>,
    /// Times that `run` was set.
    pub(crate) runs: u64,
}

impl Registry {
    /// As it was set.
    pub(crate) fn value(&self, knob: Knob) -> u64 {
        self.settings.get(&knob).copied().unwrap_or_else(|| knob.default_value())
    }

    /// Whether `pages_to_scan` is the advisors' to set.
    pub(crate) fn is_advised(&self) -> bool {
        self.value(Knob::AdvisorMode) == ADVISOR_SCAN_TIME
    }
}

impl Host {
    pub(crate) fn new(options: Options, topology: Arc<Topology>) -> io::Result<Self> {
        Ok(Self {
            allotments: Allotments::new(&options.quotas),
            options,
            chatter: Chatter::default(),
            topology,
            domains: Mutex::default(),
            clients: Mutex::default(),
            left: Condvar::new(),
            stopping: Mutex::new(false),
            stopped: Condvar::new(),
            stop: rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?,
            scans: Scans::default(),
        })
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    // Domains.

    pub(crate) fn all_domains(&self) -> Vec<Arc<Domain>> {
        self.domains.lock().domains.values().cloned().collect()
    }

    /// Lets go of all domains, where nobody is served any more.
    pub(crate) fn forget_domains(&self) {
        self.domains.lock().domains.clear();
    }

    /// A knob as it was set for all domains; of what advisors set, the largest.
    pub(crate) fn knob(&self, knob: Knob) -> u64 {
        let registry = self.domains.lock();
        if knob == Knob::PagesToScan && registry.is_advised() {
            let advised = registry.domains.values().map(|domain| domain.engine().knob(knob));
            return advised.max().unwrap_or_else(|| registry.value(knob));
        }
        registry.value(knob)
    }

    /// Whether a knob was set to a value for all domains.
    pub(crate) fn is_set(&self, knob: Knob, value: u64) -> bool {
        self.domains.lock().value(knob) == value
    }

    /// A place in the domain of that name, which is made if it is missing.
    pub(crate) fn join(&self, id: &DomainId) -> Result<Member, Rejection> {
        let unavailable = |text: String| Rejection::new(Reason::Unavailable, text);
        // Let go of without the lock, which takes time.
        let _evicted;
        let mut registry = self.domains.lock();
        if let Some(domain) = registry.domains.get(id) {
            return Ok(domain.join());
        }
        if registry.domains.len() >= self.options.quotas.domains {
            let idle = registry.domains.iter().find(|(_, domain)| domain.is_idle());
            let idle = idle.map(|(id, _)| id.clone());
            let idle =
                idle.ok_or_else(|| unavailable("as many security domains as allowed".into()))?;
            _evicted = registry.domains.remove(&idle);
        }
        let domain = Domain::new(id.clone(), &self.topology, self.options.engine.clone())
            .map_err(|error| unavailable(error.to_string()))?;
        // The advisor last: it begins with what is set for it.
        let is_last = |knob: &Knob| *knob == Knob::AdvisorMode;
        let (last, first): (Vec<_>, Vec<_>) =
            registry.settings.iter().partition(|(knob, _)| is_last(knob));
        for (&knob, &value) in first.into_iter().chain(last) {
            domain.engine().set(knob, value).map_err(|error| unavailable(error.to_string()))?;
        }
        let domain = Arc::new(domain);
        let member = domain.join();
        registry.domains.insert(id.clone(), domain);
        Ok(member)
    }

    // What is said in the log.

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

    // Clients.

    pub(crate) fn all_clients(&self) -> Vec<Arc<Client>> {
        self.clients.lock().values().filter_map(|connection| connection.client.clone()).collect()
    }

    /// Whether a client is served still.
    pub(crate) fn is_listed(&self, client: &Arc<Client>) -> bool {
        self.all_clients().iter().any(|other| Arc::ptr_eq(other, client))
    }

    /// How many there are, those that have not introduced themselves included.
    pub(crate) fn client_count(&self) -> usize {
        self.clients.lock().len()
    }

    /// Gives another client of a user a place in the list; false if there may be no other.
    pub(crate) fn admit(&self, number: u64, user: u32) -> bool {
        let mut clients = self.clients.lock();
        let quotas = &self.options.quotas;
        let same = clients.values().filter(|connection| connection.user == user).count();
        let is_admitted = clients.len() < quotas.clients && same < quotas.clients_of_user;
        if is_admitted {
            clients.insert(number, Connection { user, client: None });
        }
        is_admitted
    }

    /// A client has gone.
    pub(crate) fn dismiss(&self, number: u64) {
        let client = self.clients.lock().remove(&number);
        // Its domain may go with it, which takes time.
        drop(client);
        self.left.notify_all();
    }

    /// Lists a client as served; false if the server is ending.
    pub(crate) fn welcome(&self, number: u64, client: &Arc<Client>) -> bool {
        // Held, so that who ends the server finds it in the list, or it is not welcome.
        let mut clients = self.clients.lock();
        if *self.stopping.lock() {
            return false;
        }
        // Only what is older: of two that greet at a time, the younger may be listed first.
        for older in
            clients.range(..number).filter_map(|(_, connection)| connection.client.as_ref())
        {
            if older.pid == client.pid && older.user == client.user {
                older.supersede();
            }
        }
        let connection = clients.get_mut(&number);
        connection.is_some_and(|connection| connection.client.replace(Arc::clone(client)).is_none())
    }

    // The end.

    /// Readable once the server stops.
    pub(crate) const fn stop_signal(&self) -> &OwnedFd {
        &self.stop
    }

    /// Waits a while; true at once when the server stops.
    pub(crate) fn waits_to_stop(&self, most: Duration) -> bool {
        let mut stopping = self.stopping.lock();
        self.stopped.wait_while_for(&mut stopping, |stopping| !*stopping, most);
        *stopping
    }

    pub(crate) fn stop(&self) {
        {
            let _clients = self.clients.lock();
            *self.stopping.lock() = true;
        }
        self.stopped.notify_all();
        // Fails only if it is readable already.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }

    /// Waits until there are no clients, and gives how many there are still.
    pub(crate) fn wait_for_clients(&self, most: Duration) -> usize {
        let mut clients = self.clients.lock();
        self.left.wait_while_for(&mut clients, |clients| !clients.is_empty(), most);
        clients.len()
    }

    /// Gives frames back that nobody maps any more, and has said what engines do, until the server stops.
    pub(crate) fn settle(&self) {
        let (mut wait, mut journal) = (SETTLE_EVERY, Journal::default());
        while !self.waits_to_stop(wait) {
            let domains = self.all_domains();
            journal.say(&domains);
            let began = Instant::now();
            for domain in domains {
                if domain.pools().waiting_frames() > 0 {
                    domain.pools().settle();
                }
            }
            wait = SETTLE_EVERY.max(began.elapsed() * SETTLE_SHARE);
        }
    }
}
