//! `numerge run`: a command and its descendants, their memory merged.

mod command;
mod stats;

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use numerge::{AGENT_DOMAIN, AGENT_SCOPE, AGENT_SOCKET, default_socket};
use numerge_server::Socket;

use crate::host::{self, Setting};
use command::{Copies, End};
use stats::Sampler;

/// What of the programs' memory is merged.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scope {
    /// What they mark by madvise(MADV_MERGEABLE) or prctl(PR_SET_MEMORY_MERGE)
    Advised,
    /// Also private anonymous mappings of 1 MiB and more that they make themselves
    Mapped,
}

#[derive(Args)]
pub(crate) struct Arguments {
    /// What of the programs' memory is merged
    #[arg(long, value_enum, default_value_t = Scope::Advised)]
    scope: Scope,
    /// The security domain to merge in, as the daemon's configuration names it
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// Writes the counters to FILE in the end, as JSON, as they last were while COMMAND ran
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Starts COMMAND so many times
    #[arg(short = 'n', value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    copies: u32,
    /// Sets a knob before COMMAND starts; may be repeated. Uses an engine of its own, not the daemon
    #[arg(long = "set", value_name = "KNOB=VALUE")]
    settings: Vec<Setting>,
    /// The daemon's socket [default: NUMERGE_SOCKET, or where a daemon listens if nothing is said]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// What to run, and its arguments
    #[arg(last = true, required = true, num_args = 1..)]
    command: Vec<OsString>,
}

/// Runs the command; its exit status is this program's.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let agent = find_agent()?;
    let daemon = find_daemon(arguments)?;
    let own = if daemon.is_none() { Some(host::Own::start(&arguments.settings)?) } else { None };
    let socket = match (&daemon, &own) {
        (Some(socket), _) => socket.clone(),
        (None, Some(own)) => own.socket().to_path_buf(),
        (None, None) => return Err("no engine".into()),
    };
    let sampler = match &arguments.stats {
        Some(file) => Some(Sampler::start(&socket, file)?),
        None => None,
    };
    let started = Copies::start(
        &arguments.command,
        &environment(arguments, &agent, &socket),
        arguments.copies,
    );
    let copies = match started {
        Ok(copies) => copies,
        Err(error) => {
            eprintln!("numerge: can't run {}: {error}", arguments.command[0].to_string_lossy());
            // As a shell has it.
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return Ok(ExitCode::from(if missing { 127 } else { 126 }));
        }
    };
    let end = copies.wait()?;
    let written = sampler.map(Sampler::finish);
    drop(own);
    if let Some(Err(error)) = written {
        eprintln!("numerge: {error}");
    }
    match end {
        End::Status(status) => Ok(ExitCode::from(status)),
        End::Signal(signal) => {
            command::end_by(signal);
            Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)))
        }
    }
}

/// The socket of a daemon that answers there, if one is to be used.
fn find_daemon(arguments: &Arguments) -> Result<Option<PathBuf>, Box<dyn Error>> {
    if !arguments.settings.is_empty() {
        return match &arguments.socket {
            Some(socket) => Err(format!(
                "--set is for an engine of COMMAND's own, and --socket {} is a daemon's",
                socket.display()
            )
            .into()),
            None => Ok(None),
        };
    }
    let socket = arguments.socket.clone().unwrap_or_else(default_socket);
    // Not where it is asked: that is not for everybody.
    match Socket::connect(&socket) {
        Ok(_) => Ok(Some(socket)),
        // Asked for by name, it must be there.
        Err(error) if arguments.socket.is_some() => {
            Err(format!("no numerge daemon answers at {}: {error}", socket.display()).into())
        }
        Err(_) => Ok(None),
    }
}

/// What the agent in the command and its descendants goes by.
fn environment(arguments: &Arguments, agent: &Path, socket: &Path) -> Vec<(OsString, OsString)> {
    let mut preload = agent.as_os_str().to_owned();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let scope = match arguments.scope {
        Scope::Advised => "advised",
        Scope::Mapped => "mapped",
    };
    let mut environment: Vec<(OsString, OsString)> = vec![
        ("LD_PRELOAD".into(), preload),
        (AGENT_SOCKET.into(), socket.into()),
        (AGENT_SCOPE.into(), scope.into()),
    ];
    if let Some(domain) = &arguments.domain {
        environment.push((AGENT_DOMAIN.into(), domain.into()));
    }
    environment
}

/// The preload library: where NUMERGE_AGENT says, beside this program, or where it is installed.
fn find_agent() -> Result<PathBuf, Box<dyn Error>> {
    const NAME: &str = "libnumerge_agent.so";
    let mut places = Vec::new();
    if let Some(said) = std::env::var_os("NUMERGE_AGENT") {
        places.push(PathBuf::from(said));
    } else if let Some(directory) = std::env::current_exe()?.parent() {
        places.extend(["", "../lib/numerge"].map(|there| directory.join(there).join(NAME)));
    }
    let found = places.iter().find_map(|place| place.canonicalize().ok());
    // The dynamic linker would take either for the end of the name.
    let found = found.filter(|found| !found.to_string_lossy().contains([':', ' ']));
    found.ok_or_else(|| {
        let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        format!(
            "the agent's library is not at {} (or its path has a blank or a colon): build it by \
                 `cargo build -p numerge-agent-preload`, or set NUMERGE_AGENT",
            places.join(" or ")
        )
        .into()
    })
}
