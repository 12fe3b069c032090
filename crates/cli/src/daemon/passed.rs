//! Sockets that a service manager has bound and passes: see sd_listen_fds(3).

use std::error::Error;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;
use rustix::net::{SocketType, sockopt};

/// The first of them.
const FIRST: RawFd = 3;
/// Most of them: that for agents and that for questions.
const MOST: RawFd = 2;

/// The sockets that were passed; what is none of them the daemon binds itself.
#[derive(Default, Debug)]
pub(super) struct Passed {
    /// SOCK_SEQPACKET: where agents connect.
    pub(super) agents: Option<OwnedFd>,
    /// SOCK_STREAM: where knobs and counters are asked for.
    pub(super) control: Option<OwnedFd>,
}

impl Passed {
    /// Takes them. To be called once, before anything is opened.
    pub(super) fn take() -> Result<Self, Box<dyn Error>> {
        let mut passed = Self::default();
        for number in FIRST..FIRST + count()? {
            // SAFETY: this descriptor was passed to this process for it to take, and this is called once.
            let socket = unsafe { OwnedFd::from_raw_fd(number) };
            rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)
                .map_err(|error| format!("descriptor {number} that was passed: {error}"))?;
            let kind = sockopt::socket_type(&socket)
                .map_err(|error| format!("descriptor {number} that was passed: {error}"))?;
            let place = match kind {
                SocketType::SEQPACKET => &mut passed.agents,
                SocketType::STREAM => &mut passed.control,
                _ => {
                    return Err(format!(
                        "descriptor {number} that was passed is another socket: {WANTED}"
                    )
                    .into());
                }
            };
            if place.replace(socket).is_some() {
                return Err(format!("two sockets of one type were passed: {WANTED}").into());
            }
        }
        Ok(passed)
    }
}

const WANTED: &str = "that was passed must be a socket: ListenSequentialPacket for agents, ListenStream for questions";

/// How many were passed to this process.
fn count() -> Result<RawFd, Box<dyn Error>> {
    let variable = |name| std::env::var(name).ok();
    if variable("LISTEN_PID") != Some(std::process::id().to_string()) {
        return Ok(0);
    }
    let count = variable("LISTEN_FDS").unwrap_or_default();
    match count.parse() {
        Ok(number @ 0..=MOST) => Ok(number),
        _ => Err(format!("LISTEN_FDS={count}: 0 to {MOST} sockets can be passed").into()),
    }
}
