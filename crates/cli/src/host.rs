//! An engine for other programs: the server that their agents connect to, and the socket to ask it by.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use numerge::control::{Answer, Answers, Listener, Request, path_beside};
use numerge::{Knob, NodeReport, Options as EngineOptions};
use numerge_control_fs::{ControlFs, MountError, Mounted, errno};
use numerge_server::{ClientInfo, Domain, Domains, Options, Server};
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::files;
use crate::metrics::{self, Metrics};
use crate::processes::Processes;
use crate::together::Together;
use crate::value;

/// Between looks at whether questions are still being answered.
const SETTLE: Duration = Duration::from_millis(5);
/// How long they may take before this process ends all the same.
const REQUESTS_WAIT: Duration = Duration::from_secs(10);

/// `KNOB=VALUE` of the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Setting {
    knob: Knob,
    value: u64,
}

impl Setting {
    /// `run=0`.
    pub(crate) const STOPPED: Self = Self { knob: Knob::Run, value: 0 };
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Knob::ALL.map(Knob::name).join(", ");
        let (name, value) = text.split_once('=').ok_or("KNOB=VALUE is wanted")?;
        let knob = Knob::from_name(name)
            .ok_or_else(|| format!("no knob '{name}': there are {}", known()))?;
        let value = value::parse(knob, value)?;
        Ok(Self { knob, value })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.knob, self.value)
    }
}

/// Where agents connect, and beside it where knobs and counters are asked for.
pub(crate) struct Sockets {
    agents: numerge_server::Listener,
    control: UnixListener,
    /// That socket's file, if it is ours.
    control_path: Option<PathBuf>,
}

impl Sockets {
    /// Binds what was not passed.
    pub(crate) fn bind(
        path: &Path,
        agents: Option<OwnedFd>,
        control: Option<OwnedFd>,
        options: &Options,
    ) -> Result<Self, Box<dyn Error>> {
        let agents = match agents {
            Some(passed) => passed.try_into()?,
            None => numerge_server::Listener::bind(path, options.socket_mode)?,
        };
        if let Some(passed) = control {
            return Ok(Self { agents, control: passed.into(), control_path: None });
        }
        let beside = path_beside(path);
        let failed = |error: io::Error| format!("{}: {error}", beside.display());
        // What a daemon that was killed has left; whoever listens at the other owns this too.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(error).into());
            }
            _ => {}
        }
        let control = Listener::socket(&beside).map_err(failed)?;
        Ok(Self { agents, control, control_path: Some(beside) })
    }
}

/// A server, and who answers for it.
pub(crate) struct Host {
    /// Gone before the server is.
    files: Option<ControlFs>,
    metrics: Option<Metrics>,
    control: Listener,
    server: Arc<Server>,
}

impl Host {
    /// Serves who connects, and answers questions; scans, unless the settings say otherwise.
    pub(crate) fn start(
        sockets: Sockets,
        options: Options,
        settings: &[Setting],
    ) -> Result<Self, Box<dyn Error>> {
        let server = Arc::new(Server::listen(sockets.agents, options)?);
        // Last of all what makes them begin.
        let run = settings.iter().rev().find(|setting| setting.knob == Knob::Run);
        for setting in settings.iter().filter(|setting| setting.knob != Knob::Run) {
            server.set(setting.knob, setting.value)?;
        }
        server.set(Knob::Run, run.map_or(1, |setting| setting.value))?;
        let answers = Arc::new(Answering(Arc::downgrade(&server)));
        let control = Listener::serve(sockets.control, sockets.control_path, answers)?;
        Ok(Self { files: None, metrics: None, control, server })
    }

    /// Answers who asks for metrics, until the end.
    pub(crate) fn give_metrics(&mut self, socket: metrics::Socket) -> io::Result<()> {
        self.metrics = Some(Metrics::serve(socket, Arc::downgrade(&self.server))?);
        Ok(())
    }

    /// Shows control files where they are mounted, until the end; with `processes`, theirs too.
    pub(crate) fn show_files(
        &mut self,
        mounted: Mounted,
        processes: Option<Arc<Processes>>,
    ) -> Result<(), MountError> {
        self.files = Some(files::show(mounted, &self.server, processes)?);
        Ok(())
    }

    /// Leaves the files where they are when this process ends, dead: who is in their namespace is not
    /// to find others in their place.
    pub(crate) fn leave_files(&mut self) {
        if let Some(files) = self.files.take() {
            std::mem::forget(files);
        }
    }

    /// Leaves the engine to end with this process, which ends now: what is merged outlives it.
    pub(crate) fn abandon(self) {
        drop(self.files);
        drop(self.control);
        std::mem::forget(self.server);
    }

    /// Ends. With `keep`, what is merged stays so for as long as its programs live; else all of it is
    /// unmerged first, as far as they answer. Gives how many did not.
    pub(crate) fn shut_down(self, keep: bool) -> usize {
        let Self { files, metrics, control, mut server } = self;
        drop(files);
        drop(metrics);
        drop(control);
        // Requests that are being answered come to an end, those that would take long as well.
        let began = Instant::now();
        loop {
            match Arc::try_unwrap(server) {
                Ok(server) => return server.shut_down(keep),
                Err(shared) => server = shared,
            }
            server.interrupt_unmerging();
            if began.elapsed() >= REQUESTS_WAIT {
                // Its engine waits for a program: see ARCHITECTURE.md. The clients find that it has ended.
                let clients = server.client_count();
                std::mem::forget(server);
                return clients;
            }
            std::thread::sleep(SETTLE);
        }
    }
}

/// Does not keep the server from ending but while it answers.
struct Answering(Weak<Server>);

impl Answers for Answering {
    fn answer(&self, request: Request) -> Answer {
        let Some(server) = self.0.upgrade() else {
            return Answer::error(libc::ESHUTDOWN, "the engine is ending");
        };
        let unknown = |name: &str| {
            let known = Knob::ALL.map(Knob::name).join(", ");
            Answer::error(libc::ENOENT, format_args!("no knob '{name}': there are {known}"))
        };
        match request {
            Request::Get(name) => match Knob::from_name(&name) {
                Some(knob) => Answer::Value(server.knob(knob)),
                None => unknown(&name),
            },
            Request::Set { knob: name, value } => match Knob::from_name(&name) {
                Some(knob) => match server.set_patiently(knob, value) {
                    Ok(()) => Answer::Value(server.knob(knob)),
                    Err(error) => Answer::error(errno(&error), error),
                },
                None => unknown(&name),
            },
            Request::Status => Answer::Status(status(&server)),
            Request::Nodes => Answer::Nodes(nodes(&server)),
        }
    }
}

fn status(server: &Server) -> Value {
    let mut status = numerge::json::counters(&server.counters());
    let clients = server.clients();
    let domain = |domain: &Arc<Domain>| {
        let mut fields = numerge::json::counters(&domain.engine().counters());
        fields.insert("name".into(), domain.id().to_string().into());
        let its = clients.iter().filter(|client| client.domain == *domain.id());
        fields.extend(together(&its.collect()));
        Value::Object(fields)
    };
    let domains: Vec<Value> = server.domains().iter().map(domain).collect();
    status.extend(together(&clients.iter().collect()));
    status.insert("domains".into(), domains.into());
    status.insert("clients".into(), clients.iter().map(client).collect());
    Value::Object(status)
}

fn client(client: &ClientInfo) -> Value {
    let mut fields = Map::from_iter([
        ("pid".into(), client.pid.into()),
        ("uid".into(), client.user.into()),
        ("domain".into(), client.domain.to_string().into()),
        ("pages_registered".into(), client.pages_registered.into()),
        ("pages_merged".into(), client.counters.pages_merged.into()),
        ("ksm_zero_pages".into(), client.counters.ksm_zero_pages.into()),
        ("pages_saved".into(), client.counters.pages_saved.into()),
        ("pages_broken".into(), client.counters.pages_broken.into()),
        ("mappings_budget".into(), client.mappings_budget.into()),
    ]);
    fields.extend(together(&[client].into_iter().collect()));
    Value::Object(fields)
}

/// What programs have together, or what one has.
fn together(all: &Together) -> Map<String, Value> {
    let Together { mappings, stalls } = *all;
    Map::from_iter([
        ("mappings".into(), mappings.into()),
        ("stalls".into(), stalls.count.into()),
        ("stalled_ms".into(), milliseconds(stalls.total).into()),
        ("longest_stall_ms".into(), milliseconds(stalls.longest).into()),
    ])
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Takes as long as there are frames, and with several nodes, pages.
fn nodes(server: &Server) -> Value {
    let node = |node: &NodeReport| {
        let mut fields = numerge::json::node(node);
        fields.insert("name".into(), format!("node {}", node.nid).into());
        fields.insert("pages_registered".into(), node.pages_home.into());
        Value::Object(fields)
    };
    server.nodes().iter().map(node).collect()
}

/// A server of one command's own, at a socket that nobody else can reach.
pub(crate) struct Own {
    host: Option<Host>,
    socket: PathBuf,
    // Dropped last: the sockets are in it.
    _directory: TempDir,
}

impl Own {
    pub(crate) fn start(
        settings: &[Setting],
        engine: EngineOptions,
        domains: Domains,
    ) -> Result<Self, Box<dyn Error>> {
        let place = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let place = place.filter(|place| place.is_dir()).unwrap_or_else(std::env::temp_dir);
        let directory = tempfile::Builder::new()
            .prefix("numerge-")
            .tempdir_in(&place)
            .map_err(|error| in_place(&place, &error))?;
        let socket = directory.path().join("socket");
        let options = Options { socket_mode: 0o600, engine, domains, ..Options::default() };
        let sockets = Sockets::bind(&socket, None, None, &options)?;
        let host = Host::start(sockets, options, settings)?;
        Ok(Self { host: Some(host), socket, _directory: directory })
    }

    /// Shows control files at a directory; with `processes`, theirs too.
    pub(crate) fn show_files(
        &mut self,
        directory: &Path,
        processes: Option<Arc<Processes>>,
    ) -> Result<(), MountError> {
        let mounted = Mounted::new(directory)?;
        self.host.as_mut().map_or(Ok(()), |host| host.show_files(mounted, processes))
    }

    /// See [`Host::leave_files`].
    pub(crate) fn leave_files(&mut self) {
        if let Some(host) = &mut self.host {
            host.leave_files();
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

fn in_place(place: &Path, error: &io::Error) -> String {
    format!("can't make a directory for a socket in {}: {error}", place.display())
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(host) = self.host.take() {
            // Descendants of the command that live on keep what they have; nobody waits for them.
            host.abandon();
        }
    }
}
