//! A connection: who is there, and a thread that reads what it says.
//!
//! That thread never waits for the engine, so that answers get through to who waits for them: what
//! concerns the engine goes to the worker (`worker`), by the inbox.

use std::num::NonZero;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use numerge_engine::ProgramHandle;
use numerge_engine::machine::{Memory, PAGE_SIZE};
use numerge_linux::{RemoteProcess, Serving};
use numerge_protocol::limits::VERSION;
use numerge_protocol::{Buffer, Reason, SendError, Socket, ToClient, ToEngine};
use parking_lot::Mutex;

use crate::book::Lie;
use crate::domain::Member;
use crate::host::Host;
use crate::inbox::{Inbox, Order};
use crate::link::Link;
use crate::mappings::Counted;
use crate::memory::RemoteMemory;
use crate::options::Options;
use crate::pages::range;
use crate::rejection::Rejection;
use crate::worker::Worker;

/// How long a client may take to introduce itself.
const HELLO_WAIT: Duration = Duration::from_secs(5);
/// How long it may take to read that there is an end to it.
const REJECT_WAIT: Duration = Duration::from_millis(100);

/// A client that is served.
pub(crate) struct Client {
    pub(crate) pid: NonZero<i32>,
    pub(crate) user: u32,
    pub(crate) domain: Member,
    pub(crate) memory: Arc<RemoteMemory>,
    pub(crate) inbox: Inbox,
    /// What the engine counts of it.
    pub(crate) program: ProgramHandle,
    /// Pages registered.
    pub(crate) registered: AtomicU64,
    pub(crate) counted: Mutex<Counted>,
    /// Whether a message is being received or taken in.
    is_taking_in: AtomicBool,
    /// Whether its process has greeted again, and carries out nothing any more that it was asked here.
    is_superseded: AtomicBool,
    /// Given up before the engine takes anything that the client maps for free.
    serving: Mutex<Option<Serving>>,
}

/// Who has introduced itself.
struct Guest {
    pid: NonZero<i32>,
    user: u32,
    pidfd: OwnedFd,
    process: RemoteProcess,
    domain: Member,
    serving: Serving,
}

/// Serves a connection until it ends.
pub(crate) fn serve(host: &Arc<Host>, number: u64, socket: Socket) {
    let Ok(link) = Link::new(socket) else { return };
    let mut buffer = Buffer::new();
    let guest = match greet(host, &link, &mut buffer) {
        Ok(Some(guest)) => guest,
        Ok(None) => return,
        Err(rejection) => {
            host.log_rejected(link.socket(), &rejection);
            link.send_patiently(&rejection.message(), REJECT_WAIT);
            return;
        }
    };
    let Guest { pid, user, pidfd, process, domain, serving } = guest;
    let memory = Arc::new(RemoteMemory::new(process, Arc::clone(domain.pools()), link));
    let client = Arc::new(Client {
        pid,
        user,
        program: domain.engine().program(&(Arc::clone(&memory) as Arc<dyn Memory>)),
        memory,
        domain,
        inbox: Inbox::default(),
        registered: AtomicU64::new(0),
        counted: Mutex::default(),
        is_taking_in: AtomicBool::new(false),
        is_superseded: AtomicBool::new(false),
        serving: Mutex::new(Some(serving)),
    });
    if !host.welcome(number, &client) || client.send_welcome(&host.options).is_err() {
        return;
    }
    host.on_behalf_of(user, |unsaid| {
        tracing::info!(%pid, uid = user, domain = %client.domain.id(), unsaid, "client has come");
    });
    std::thread::scope(|scope| {
        let work = || Worker::new(host, &client).run();
        let worker = std::thread::Builder::new().name("numerge-worker".into());
        if worker.spawn_scoped(scope, work).is_err() {
            let rejection = Rejection::new(Reason::Unavailable, "no thread could be started");
            client.reject(host, &rejection);
        } else {
            client.listen(host, &mut buffer, pidfd.as_fd());
        }
        client.end();
    });
    // For each thread that it keeps waiting it keeps its place among the clients, too.
    client.memory.process().wait_for_looks();
    host.on_behalf_of(user, |unsaid| tracing::info!(%pid, uid = user, unsaid, "client has gone"));
}

/// Receives `Hello` and finds out who it is and where it belongs. None if it says nothing, or goes
/// again.
fn greet(host: &Host, link: &Link, buffer: &mut Buffer) -> Result<Option<Guest>, Rejection> {
    let other = |error: &dyn std::fmt::Display| Rejection::new(Reason::Other, error.to_string());
    let received = match link.receive(buffer, Some(HELLO_WAIT), None) {
        Ok(Some(received)) => received,
        Ok(None) => return Ok(None),
        Err(error) => return Rejection::of_receiving(&error).map_or(Ok(None), Err),
    };
    let (ToEngine::Hello { page_size, domain, .. }, fds) = received else {
        return Err(Rejection::protocol("the first message must be Hello"));
    };
    if usize::try_from(page_size) != Ok(PAGE_SIZE) {
        let text = format!("pages have {PAGE_SIZE} bytes here, not {page_size}");
        return Err(Rejection::new(Reason::PageSize, text));
    }
    let peer = link.socket().peer().map_err(|error| other(&error))?;
    if host.options.unserved_user == Some(peer.uid) {
        let text = format!("the daemon serves all users but its own, {}", peer.uid);
        return Err(Rejection::new(Reason::Permission, text));
    }
    let Some(pid) = peer.pid else {
        let text = "the client is in a PID namespace that the engine does not see into";
        return Err(Rejection::new(Reason::Permission, text));
    };
    let pidfd = link.socket().peer_pidfd().map_err(|error| other(&error))?;
    let pidfd: OwnedFd = pidfd.ok_or_else(|| other(&"this kernel has no SO_PEERPIDFD"))?;
    let pagemap = fds.into_iter().next();
    let pagemap = pagemap.ok_or_else(|| Rejection::protocol("Hello without a pagemap"))?;
    let process = RemoteProcess::new(pid.get(), pidfd.as_fd(), pagemap)?;
    let namespace = process.user_namespace();
    let namespace = namespace.map_err(|error| {
        Rejection::new(Reason::Permission, format!("/proc/PID/ns/user: {error}"))
    })?;
    let id = host.options.domains.resolve(peer.uid, namespace, domain.as_deref())?;
    let domain = host.join(&id)?;
    let serving = domain.pools().serve(pid, peer.uid).map_err(|error| other(&error))?;
    // Lives still, so that it is this one which is served, and no later one of its number.
    if process.is_gone() {
        return Ok(None);
    }
    Ok(Some(Guest { pid, user: peer.uid, pidfd, process, domain, serving }))
}

impl Client {
    /// Tells the client that it is served, and lends it what it may need for that.
    fn send_welcome(&self, options: &Options) -> Result<(), SendError> {
        let link = self.memory.link();
        link.send(&ToClient::Welcome { version: VERSION, limits: options.quotas.limits() })?;
        match &options.lent_device {
            Some(device) => link.send_lending(&ToClient::Userfaultfd, device.as_fd()),
            None => Ok(()),
        }
    }

    /// Reads what the client says until the connection ends, or the process that a pidfd stands for.
    fn listen(&self, host: &Host, buffer: &mut Buffer, process: BorrowedFd<'_>) {
        loop {
            self.is_taking_in.store(false, Ordering::SeqCst);
            self.memory.link().wait_for_input(process);
            self.is_taking_in.store(true, Ordering::SeqCst);
            let taken = match self.memory.link().receive(buffer, None, Some(process)) {
                Ok(Some((message, _))) => self.take(message),
                Ok(None) => return,
                Err(error) => {
                    Rejection::of_receiving(&error).map_or(Ok(ControlFlow::Break(())), Err)
                }
            };
            match taken {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return,
                Err(rejection) => return self.reject(host, &rejection),
            }
        }
    }

    /// Takes in a message; breaks after the last.
    fn take(&self, message: ToEngine<'_>) -> Result<ControlFlow<()>, Rejection> {
        let lied = |lie: Lie| Rejection::protocol(lie.to_string());
        let memory = &self.memory;
        let order = match message {
            ToEngine::Hello { .. } => return Err(Rejection::protocol("a second Hello")),
            ToEngine::Done { sequence, answer } => {
                memory.hear(|book| book.answer(sequence, &answer)).map_err(lied)?;
                return Ok(ControlFlow::Continue(()));
            }
            ToEngine::Bye => {
                memory.hear(|book| book.forget_asked());
                return Ok(ControlFlow::Break(()));
            }
            ToEngine::Register { region, span } => {
                memory.hear(|_| ());
                Order::Register(region, range(span))
            }
            ToEngine::Gone { span } => {
                // At once: from here on nothing is asked about them.
                memory.hear(|book| book.bury(range(span))).map_err(lied)?;
                Order::Gone(range(span))
            }
            ToEngine::Unregister { region } => {
                memory.hear(|_| ());
                Order::Unregister(region)
            }
        };
        if self.inbox.push(order) {
            Ok(ControlFlow::Continue(()))
        } else {
            Err(Rejection::protocol("more messages than can be carried out"))
        }
    }

    /// There is no connection any more.
    fn end(&self) {
        self.memory.book().leave();
        // First: from then on the engine takes what the client maps for free, and who gives frames
        // back has to look for itself.
        drop(self.serving.lock().take());
        self.memory.end();
        self.inbox.close();
        self.memory.link().hang_up();
    }

    /// Tells the client why, and ends the connection.
    pub(crate) fn reject(&self, host: &Host, rejection: &Rejection) {
        host.log_rejected(self.memory.link().socket(), rejection);
        self.memory.link().send_patiently(&rejection.message(), REJECT_WAIT);
        self.memory.link().hang_up();
    }

    /// Tells the client that the engine ends.
    pub(crate) fn send_leave(&self, keep: bool) {
        self.memory.book().leave();
        if !self.memory.link().send_patiently(&ToClient::Leave { keep }, REJECT_WAIT) {
            self.memory.link().hang_up();
        }
    }

    /// Its process has greeted again.
    pub(crate) fn supersede(&self) {
        self.is_superseded.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_superseded(&self) -> bool {
        self.is_superseded.load(Ordering::SeqCst)
    }

    pub(crate) fn is_taking_in(&self) -> bool {
        self.is_taking_in.load(Ordering::SeqCst)
    }

    pub(crate) fn registered_pages(&self) -> u64 {
        // Relaxed: a counter, nothing is ordered by it.
        self.registered.load(Ordering::Relaxed)
    }
}
