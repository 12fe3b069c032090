//! The device /dev/userfaultfd, for who may not open it: an engine that may can lend it.
//!
//! That takes a conversation of its own, before there is anything that merges.

use std::time::{Duration, Instant};

use numerge_linux::UffdDevice;
use numerge_protocol::{Buffer, ReceiveError, RegionId, Socket, ToClient, ToEngine};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::config::Config;
use crate::greeting::{End, greet, rejected};
use crate::service::IDLE;
use crate::threads;

/// How long an engine that has welcomed this process may take to lend the device, or not to.
const LOAN_WAIT: Duration = Duration::from_secs(1);
/// A region that there is not. The engine says so, and not before it has lent the device, if it does.
const NO_REGION: RegionId = RegionId(u64::MAX);

/// Asks an engine for the device. None if it does not lend it.
pub(crate) fn ask(socket: &Socket, config: &Config) -> Result<Option<UffdDevice>, End> {
    socket.set_nonblocking(true).map_err(|_| End::ForNow)?;
    let mut buffer = Buffer::new();
    greet(socket, config, &mut buffer, |most| wait(socket, most))?;
    let lent = receive(socket, &mut buffer);
    // If it is not sent, the engine sees the end of the connection.
    let _ = socket.send_with(&ToEngine::Bye, &[], &mut buffer);
    lent
}

fn receive(socket: &Socket, buffer: &mut Buffer) -> Result<Option<UffdDevice>, End> {
    let question = ToEngine::Unregister { region: NO_REGION };
    socket.send_with(&question, &[], buffer).map_err(|_| End::ForNow)?;
    let until = Instant::now() + LOAN_WAIT;
    loop {
        match socket.receive(buffer) {
            Ok(Some((ToClient::Userfaultfd, fds))) => {
                let lent = fds.into_iter().next().map(UffdDevice::lent).transpose();
                return lent.map_err(|error| End::ForEver(error.to_string()));
            }
            Ok(Some((ToClient::Unregistered { .. }, _))) => return Ok(None),
            Ok(Some((ToClient::Rejected { reason, text }, _))) => {
                return Err(rejected(reason, &text));
            }
            Err(ReceiveError::WouldBlock) => {}
            _ => return Err(End::ForNow),
        }
        wait(socket, until.checked_duration_since(Instant::now()).ok_or(End::ForNow)?);
    }
}

/// Waits until there is something to receive; at most `most`, nor longer than [`IDLE`].
fn wait(socket: &Socket, most: Duration) {
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    let most = Timespec::try_from(most.min(IDLE)).ok();
    if rustix::event::poll(&mut polled, most.as_ref()) == Ok(0) {
        threads::end_with_program();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use numerge_protocol::limits::VERSION;
    use numerge_protocol::{Limits, RegionError, Scope};

    use super::*;

    /// What comes of asking an engine that says this after its welcome.
    fn answered(message: &ToClient<'_>, file: Option<&str>) -> Result<Option<UffdDevice>, End> {
        let config = Config {
            socket: "/nowhere".into(),
            scope: Scope::Advised,
            domain: None,
            proc_files: None,
        };
        let (agent, engine) = Socket::pair().expect("a connection");
        let limits =
            Limits { regions: 1, region_pages: 1, pages: 1, merge_runs: 1, merge_pages: 1 };
        let file = file.map(|file| File::open(file).expect(file));
        let fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        engine.send(&ToClient::Welcome { version: VERSION, limits }, &[]).expect("sent");
        engine.send(message, &fds).expect("sent");
        let lent = ask(&agent, &config);
        drop(agent);
        let mut buffer = Buffer::new();
        let mut said = Vec::new();
        while let Some((message, _)) = engine.receive(&mut buffer).expect("a message") {
            said.push(message);
        }
        // In any case it takes its leave.
        assert_eq!(said.last(), Some(&ToEngine::Bye));
        lent
    }

    #[test]
    fn what_is_lent_is_looked_at() {
        let lent = answered(&ToClient::Userfaultfd, Some("/dev/null"));
        assert!(
            matches!(&lent, Err(End::ForEver(why)) if why.contains("it is another file")),
            "{lent:?}"
        );
        match File::open("/dev/userfaultfd") {
            Ok(_) => {
                let lent = answered(&ToClient::Userfaultfd, Some("/dev/userfaultfd"));
                assert!(matches!(lent, Ok(Some(_))), "{lent:?}");
            }
            Err(error) => println!("SKIPPED: /dev/userfaultfd: {error}"),
        }
    }

    #[test]
    fn who_answers_something_else_first_does_not_lend_it() {
        let error = Some(RegionError::Unknown);
        let lent = answered(&ToClient::Unregistered { region: NO_REGION, error }, None);
        assert!(matches!(lent, Ok(None)), "{lent:?}");
        let lent = answered(&ToClient::Leave { keep: true }, None);
        assert!(matches!(lent, Err(End::ForNow)), "{lent:?}");
    }
}
