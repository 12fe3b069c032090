//! How a conversation with an engine begins.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use numerge_engine::machine::PAGE_SIZE;
use numerge_protocol::limits::VERSION;
use numerge_protocol::{Buffer, Limits, Reason, ReceiveError, Socket, ToClient, ToEngine};

use crate::config::Config;

/// How long an engine may take for its answer to `Hello`.
const WELCOME_WAIT: Duration = Duration::from_secs(10);

/// Why a conversation ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Worth another try.
    ForNow,
    /// Another try would end the same.
    ForEver(String),
}

/// Says who this is. `wait` waits for the socket, which does not block, at most so long. Gives what this
/// process is allowed.
pub(crate) fn greet(
    socket: &Socket,
    config: &Config,
    buffer: &mut Buffer,
    wait: impl Fn(Duration),
) -> Result<Limits, End> {
    let pagemap = File::open("/proc/self/pagemap").map_err(|_| End::ForNow)?;
    // Where a security module lets only parents look, the engine may too. If there is none, or the
    // engine's process is not known here, the engine sees for itself whether it may.
    if let Ok(peer) = socket.peer()
        && let Some(pid) = peer.pid
    {
        // SAFETY: names a process; touches no memory.
        unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PTRACER, pid.get(), 0, 0, 0) };
    }
    let hello = ToEngine::Hello {
        version: VERSION,
        page_size: u32::try_from(PAGE_SIZE).unwrap_or(0),
        scope: config.scope,
        domain: config.domain.as_deref().map(Into::into),
    };
    socket.send_with(&hello, &[pagemap.as_fd()], buffer).map_err(|_| End::ForNow)?;
    let until = Instant::now() + WELCOME_WAIT;
    loop {
        match socket.receive(buffer) {
            Ok(Some((ToClient::Welcome { limits, .. }, _))) => return Ok(limits),
            Ok(Some((ToClient::Rejected { reason, text }, _))) => {
                return Err(rejected(reason, &text));
            }
            Err(ReceiveError::WouldBlock) => {}
            _ => return Err(End::ForNow),
        }
        wait(until.checked_duration_since(Instant::now()).ok_or(End::ForNow)?);
    }
}

/// What it means to be turned away.
pub(crate) fn rejected(reason: Reason, text: &str) -> End {
    match reason {
        Reason::TooManyClients | Reason::Unavailable => End::ForNow,
        _ => End::ForEver(format!("the engine does not serve it ({reason:?}): {text}")),
    }
}
