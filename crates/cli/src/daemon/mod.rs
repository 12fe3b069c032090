//! `numerge daemon`: one engine for the programs of a host.

mod config;
pub(crate) mod keeper;
mod passed;
mod user;

use std::error::Error;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use numerge::default_socket;
use numerge_linux::UffdDevice;
use numerge_server::Options;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::host::{Host, Setting, Sockets};
use crate::{log, metrics};
use passed::Passed;

/// What becomes of merged pages when the daemon ends.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AtEnd {
    /// They stay merged, for the next daemon to take over
    Keep,
    /// Their programs get memory of their own again
    Unmerge,
}

#[derive(Args)]
pub(crate) struct Arguments {
    /// Where agents connect [default: NUMERGE_SOCKET, or /run/numerge/numerge.sock for root]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Who may be in which security domain: a TOML file, see the README
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Started as root, becomes this user, who must be nobody else's, once the sockets are there
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Lends /dev/userfaultfd to all programs that it serves: without, only those are merged that may open
    /// it. They can make the kernel wait for them with it: only for users that one trusts as much
    #[arg(long)]
    lend_userfaultfd: bool,
    /// Sets a knob; may be repeated
    #[arg(long = "set", value_name = "KNOB=VALUE")]
    settings: Vec<Setting>,
    /// Where to show control files, as the kernel's in /sys/kernel/mm/ksm [default: /run/numerge/ksm if no
    /// other socket is named and that can be, else nowhere]
    #[arg(long, value_name = "DIR")]
    control_dir: Option<PathBuf>,
    /// Where metrics can be asked for, as OpenMetrics at /metrics by HTTP: a path with a slash, of a Unix
    /// socket for root alone, or a loopback address and a port, for all users of this machine
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<metrics::Address>,
    /// What is logged, on standard error: this and what matters more
    #[arg(long, value_enum, default_value_t = log::Level::Info)]
    log: log::Level,
    /// What becomes of merged pages on SIGTERM
    #[arg(long, value_enum, default_value_t = AtEnd::Unmerge)]
    at_end: AtEnd,
}

/// Makes a directory for sockets if there is none, that programs of all users can reach them in.
fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let passed = Passed::take()?;
    log::start(arguments.log);
    // What would take a file beyond its limit is an error, as for whoever can't be served.
    // SAFETY: a handler that does nothing is safe whenever it runs.
    unsafe { signal_hook::low_level::register(SIGXFSZ, || {}) }?;
    // Before anybody can be served: a signal that comes now is not lost.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let user = arguments.user.as_deref().map(user::find).transpose()?;
    let socket = arguments.socket.clone().unwrap_or_else(default_socket);
    let mut options = Options::default();
    if let Some(path) = &arguments.config {
        options.domains = config::read(path)?;
    }
    if arguments.lend_userfaultfd {
        let device = UffdDevice::open()
            .map_err(|error| format!("--lend-userfaultfd: can't open /dev/userfaultfd: {error}"))?;
        options.lent_device = Some(Arc::new(device));
    }
    if let Some(directory) = socket.parent().filter(|place| !place.as_os_str().is_empty()) {
        make_directory(directory)
            .map_err(|error| format!("can't make {}: {error}", directory.display()))?;
    }
    let sockets = Sockets::bind(&socket, passed.agents, passed.control, &options)?;
    let metrics = arguments.metrics.as_ref().map(metrics::Socket::bind).transpose()?;
    user::raise_descriptor_limit();
    let mounted = keeper::mount(arguments.control_dir.as_deref(), &socket, user.is_some())?;
    if let Some(user) = &user {
        user::become_user(user)?;
        // Its files are that user's, and who owns a file may allow himself to write to it.
        options.unserved_user = Some(user.uid.as_raw());
    }
    user::hide()?;
    let mut host = Host::start(sockets, options, &arguments.settings)?;
    if let Some(metrics) = metrics {
        host.give_metrics(metrics)?;
    }
    if let Some(mounted) = mounted {
        host.show_files(mounted, None)?;
    }
    tracing::info!(socket = %socket.display(), uid = rustix::process::geteuid().as_raw(), "listening");
    if let Some(signal) = signals.forever().next() {
        tracing::info!(signal, "ending");
    }
    let silent = host.shut_down(arguments.at_end == AtEnd::Keep);
    if silent > 0 {
        tracing::warn!(clients = silent, "did not answer; what they have merged stays so");
    }
    Ok(())
}
