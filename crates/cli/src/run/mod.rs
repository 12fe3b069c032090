//! `numerge run`: a command and its descendants, their memory merged.

mod as_ksm;
mod command;
mod stats;

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use numerge::{AGENT_AS_KSM, AGENT_DOMAIN, AGENT_MEMORY_MERGE, AGENT_SCOPE, AGENT_SOCKET};
use numerge::{Options as EngineOptions, default_socket};
use numerge_server::{Domains, Members, Socket};

use crate::host::{self, Setting};
use crate::log;
use crate::processes::Processes;
use command::{Copies, End, Environment};
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
    /// The security domain to merge in, as the daemon's configuration names it; an engine of COMMAND's own
    /// has it for this user
    #[arg(long, value_name = "NAME", value_parser = domain_name)]
    domain: Option<String>,
    /// Writes the counters to FILE in the end, as JSON, as they last were while COMMAND ran. Those of a
    /// daemon are the whole host's, and for who may ask it; with --set, say, there is an engine of COMMAND's own
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Starts COMMAND so many times
    #[arg(short = 'n', value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    copies: u32,
    /// Sets a knob before COMMAND starts; may be repeated. Uses an engine of its own, not the daemon
    #[arg(long = "set", value_name = "KNOB=VALUE")]
    settings: Vec<Setting>,
    /// Shows control files at DIR, as the kernel's in /sys/kernel/mm/ksm. Uses an engine of its own
    #[arg(long, value_name = "DIR", conflicts_with = "as_ksm")]
    control_dir: Option<PathBuf>,
    /// Shows control files to COMMAND in the place of the kernel's, at /sys/kernel/mm/ksm and in
    /// /proc/PID, and begins with the kernel's defaults: nothing is merged until COMMAND writes 1 to
    /// `run`. Uses an engine of its own
    #[arg(long)]
    as_ksm: bool,
    /// Has the engine log this and what matters more, on standard error; without, it is COMMAND's alone.
    /// Uses an engine of its own
    #[arg(long, value_enum)]
    log: Option<log::Level>,
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
    let own = if daemon.is_none() { Some(start_own(arguments)?) } else { None };
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
        &environment(arguments, &agent, &socket, own.is_some()),
        arguments.copies,
    );
    let copies = match started {
        Ok(copies) => copies,
        Err(error) => {
            let program = arguments.command[0].to_string_lossy();
            crate::complain(&format_args!("can't run {program}: {error}"));
            // As a shell has it.
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return Ok(ExitCode::from(if missing { 127 } else { 126 }));
        }
    };
    let end = copies.wait()?;
    let written = sampler.map(Sampler::finish);
    drop(own);
    if let Some(Err(error)) = written {
        crate::complain(&error);
    }
    match end {
        End::Status(status) => Ok(ExitCode::from(status)),
        End::Signal(signal) => {
            command::end_by(signal);
            Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)))
        }
    }
}

/// An engine for the command alone.
fn start_own(arguments: &Arguments) -> Result<host::Own, Box<dyn Error>> {
    arguments.log.into_iter().for_each(log::start);
    // There is no administrator to ask: a domain of the engine's own has this user in it.
    let members = Members { users: [rustix::process::geteuid().as_raw()].into() };
    let named = arguments.domain.iter().map(|name| (name.clone(), members.clone())).collect();
    let domains = Domains { named, ..Domains::default() };
    if !arguments.as_ksm {
        let mut own = host::Own::start(&arguments.settings, EngineOptions::default(), domains)?;
        if let Some(directory) = &arguments.control_dir {
            own.show_files(directory, None)?;
        }
        return Ok(own);
    }
    // Before the engine has threads.
    as_ksm::enter_namespace()?;
    let settings = [&[Setting::STOPPED], &arguments.settings[..]].concat();
    let engine = EngineOptions {
        mapping_share_percent: as_ksm::MAPPING_SHARE_PERCENT,
        ..EngineOptions::default()
    };
    let mut own = host::Own::start(&settings, engine, domains)?;
    let processes = Arc::new(Processes::default());
    let directory = Path::new(as_ksm::DIRECTORY);
    own.show_files(directory, Some(Arc::clone(&processes)))?;
    own.leave_files();
    processes.show_in_proc(directory, &proc_socket(own.socket()))?;
    Ok(own)
}

/// The socket of a daemon that answers there, if one is to be used.
fn find_daemon(arguments: &Arguments) -> Result<Option<PathBuf>, Box<dyn Error>> {
    let for_own = [
        ("--set", !arguments.settings.is_empty()),
        ("--control-dir", arguments.control_dir.is_some()),
        ("--as-ksm", arguments.as_ksm),
        ("--log", arguments.log.is_some()),
    ];
    if let Some((option, _)) = for_own.iter().find(|(_, is_given)| *is_given) {
        return match &arguments.socket {
            Some(socket) => Err(format!(
                "{option} is for an engine of COMMAND's own, and --socket {} is a daemon's",
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

/// Where processes ask for files in `/proc`, of an engine whose agents connect to `socket`.
fn proc_socket(socket: &Path) -> PathBuf {
    socket.with_extension("proc")
}

/// What the agent in the command and its descendants goes by.
fn environment(arguments: &Arguments, agent: &Path, socket: &Path, is_own: bool) -> Environment {
    let mut preload = agent.as_os_str().to_owned();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let scope = match arguments.scope {
        Scope::Advised => "advised",
        Scope::Mapped => "mapped",
    };
    // What a program has set that executes this one.
    let merge = std::env::var_os(AGENT_MEMORY_MERGE).unwrap_or_else(|| "0".into());
    // A daemon's, or that of a command that this one is run by. A new engine knows nothing of it.
    let inherited = |name| if is_own { None } else { std::env::var_os(name) };
    let domain = arguments.domain.as_ref().map(OsString::from);
    let proc_files = arguments.as_ksm.then(|| proc_socket(socket).into());
    vec![
        ("LD_PRELOAD", Some(preload)),
        (AGENT_SOCKET, Some(socket.into())),
        (AGENT_SCOPE, Some(scope.into())),
        (AGENT_MEMORY_MERGE, Some(merge)),
        (AGENT_DOMAIN, domain.or_else(|| inherited(AGENT_DOMAIN))),
        (AGENT_AS_KSM, proc_files.or_else(|| inherited(AGENT_AS_KSM))),
    ]
}

fn domain_name(name: &str) -> Result<String, numerge_protocol::Violation> {
    numerge_protocol::check_domain(name).map(|()| name.to_owned())
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
