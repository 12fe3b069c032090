//! The control files' place: mounted while the daemon is root, and taken away though it is not any more.

use std::error::Error;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use numerge_control_fs::Mounted;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// What this program is started with as a keeper.
const COMMAND: &str = "keep-files";

/// Mounts control files, if that is wanted or can be. A daemon that is to become another user leaves them
/// to a keeper.
pub(super) fn mount(
    wanted: Option<&Path>,
    socket: &Path,
    becomes_user: bool,
) -> Result<Option<Mounted>, Box<dyn Error>> {
    let at = |directory: &Path| -> Result<Mounted, Box<dyn Error>> {
        let mut mounted = Mounted::new(directory)?;
        if becomes_user {
            let mut keeper = Command::new("/proc/self/exe");
            // Signals of a terminal are not for it.
            keeper.arg(COMMAND).current_dir("/").process_group(0);
            let started = mounted.leave_to(keeper);
            started.map_err(|error| format!("can't start who takes files away: {error}"))?;
        }
        Ok(mounted)
    };
    if let Some(directory) = wanted {
        return at(directory).map(Some);
    }
    if socket != Path::new(numerge::DAEMON_SOCKET) {
        return Ok(None);
    }
    let mounted = at(&socket.with_file_name("ksm"));
    Ok(mounted.inspect_err(|error| tracing::warn!(%error, "no control files")).ok())
}

/// What [`Mounted::leave_to`] passes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Where they are mounted
    path: std::path::PathBuf,
    /// The mount's number
    number: u64,
    /// Whether to remove the directory
    #[arg(action = clap::ArgAction::Set)]
    is_made: bool,
}

/// Takes files away once who started this has ended.
pub(crate) fn keep(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    // A service manager ends all processes of the daemon's, and this is to be the last.
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    numerge_control_fs::keep(&arguments.path, arguments.number, arguments.is_made);
    Ok(())
}
