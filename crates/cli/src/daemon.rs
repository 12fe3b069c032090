//! `numerge daemon`: one engine for the programs of a host.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use numerge::default_socket;
use numerge_server::{Domains, Members, Options};
use rustix::io::FdFlags;
use serde::Deserialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::host::{Host, Setting};

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
    /// Sets a knob; may be repeated
    #[arg(long = "set", value_name = "KNOB=VALUE")]
    settings: Vec<Setting>,
    /// What becomes of merged pages on SIGTERM
    #[arg(long, value_enum, default_value_t = AtEnd::Unmerge)]
    at_end: AtEnd,
}

/// The configuration file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Whether programs that ask for no domain share one with others of their user.
    #[serde(default = "yes")]
    by_user: bool,
    /// Domains, and who may be in them.
    #[serde(default)]
    domain: BTreeMap<String, ConfigDomain>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigDomain {
    /// Users by their numbers.
    uids: Vec<u32>,
}

const fn yes() -> bool {
    true
}

fn domains(path: &Path) -> Result<Domains, Box<dyn Error>> {
    let refused = |error: &dyn Error| format!("{}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(|error| refused(&error))?;
    let Config { by_user, domain } = toml::from_str(&text).map_err(|error| refused(&error))?;
    let named = domain
        .into_iter()
        .map(|(name, ConfigDomain { uids })| (name, Members { users: uids.into_iter().collect() }));
    Ok(Domains { by_user, named: named.collect() })
}

/// The socket that systemd has bound and passes, if it does: see sd_listen_fds(3).
fn passed_socket() -> Option<OwnedFd> {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let passed = is("LISTEN_PID", &std::process::id().to_string()) && is("LISTEN_FDS", "1");
    // SAFETY: descriptor 3 was passed to this process for it to take, and this is called once.
    let passed = passed.then(|| unsafe { OwnedFd::from_raw_fd(3) })?;
    // What it is, who listens by it will see.
    let _ = rustix::io::fcntl_setfd(&passed, FdFlags::CLOEXEC);
    Some(passed)
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Before anybody can be served: a signal that comes now is not lost.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let socket = arguments.socket.clone().unwrap_or_else(default_socket);
    let domains = arguments.config.as_deref().map(domains).transpose()?.unwrap_or_default();
    if let Some(directory) = socket.parent().filter(|place| !place.as_os_str().is_empty()) {
        fs::create_dir_all(directory)
            .map_err(|error| format!("can't make {}: {error}", directory.display()))?;
    }
    let options = Options { domains, ..Options::default() };
    let host = Host::start(&socket, passed_socket(), options, &arguments.settings)?;
    tracing::info!(socket = %socket.display(), "listening");
    if let Some(signal) = signals.forever().next() {
        tracing::info!(signal, "ending");
    }
    let silent = host.shut_down(arguments.at_end == AtEnd::Keep);
    if silent > 0 {
        tracing::warn!(clients = silent, "did not answer; what they have merged stays so");
    }
    Ok(())
}
