//! A client that says whatever bytes it is given, or whatever comes to its mind.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use numerge_protocol::limits::VERSION;
use numerge_protocol::{
    Answer, Buffer, Errno, Outcome, OutcomeRun, ReceiveError, RegionId, Scope, Sequence, Socket,
    Span, ToClient, ToEngine, Unmerged, Vpn,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SendFlags;

use crate::random::Random;

/// The number of a region that nobody has.
const PROBE: RegionId = RegionId(u64::MAX - 7);
/// After so long there is no answer.
const LONG: Duration = Duration::from_secs(20);

fn hello() -> ToEngine<'static> {
    ToEngine::Hello { version: VERSION, page_size: 4096, scope: Scope::Api, domain: None }
}

fn say(socket: &Socket, message: &ToEngine<'_>, fds: &[BorrowedFd<'_>]) {
    // The engine may have hung up.
    let _ = socket.send(message, fds);
}

/// Waits for the next message; None if none comes, Err if none will.
fn hear(socket: &Socket, most: Duration) -> Result<Option<ToClient<'static>>, ()> {
    let until = Instant::now() + most;
    let mut buffer = Buffer::new();
    loop {
        match socket.receive(&mut buffer) {
            Ok(Some((message, _))) => return Ok(Some(message)),
            Err(ReceiveError::WouldBlock) => {}
            _ => return Err(()),
        }
        let left = until.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(socket, PollFlags::IN)];
        let left = Timespec::try_from(left).unwrap();
        if rustix::event::poll(&mut polled, Some(&left)) == Ok(0) {
            return Ok(None);
        }
    }
}

/// A connection of its own, welcome if `is_welcome`.
fn connect(path: &Path, is_welcome: bool) -> Socket {
    let socket = Socket::connect(path).unwrap();
    socket.set_nonblocking(true).unwrap();
    if is_welcome {
        let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
        say(&socket, &hello(), &[pagemap.as_fd()]);
        let welcome = hear(&socket, LONG);
        assert!(matches!(welcome, Ok(Some(ToClient::Welcome { .. }))), "{welcome:?}");
    }
    socket
}

/// Says these bytes, first of all or once it is welcome, and tells what became of it.
pub(crate) fn lie(path: &Path, is_welcome: bool, bytes: &[u8]) -> String {
    let socket = connect(path, is_welcome);
    let sent = rustix::net::send(&socket, bytes, SendFlags::NOSIGNAL);
    assert_eq!(sent, Ok(bytes.len()));
    say(&socket, &ToEngine::Unregister { region: PROBE }, &[]);
    loop {
        match hear(&socket, LONG) {
            Ok(Some(ToClient::Unregistered { region: PROBE, .. })) => return "served".into(),
            Ok(Some(ToClient::Rejected { reason, .. })) => return format!("rejected {reason:?}"),
            Ok(Some(_)) => {}
            Ok(None) => return "no answer".into(),
            Err(()) => return "closed".into(),
        }
    }
}

/// Registers memory, and then says what is allowed to be said, at random and whether it is true or not,
/// until it is turned away or has said so much. The memory is never merged. Gives how much was said.
pub(crate) fn babble(path: &Path, memory: (u64, u64), seed: u64, most: u64) -> u64 {
    let mut random = Random(seed);
    let socket = connect(path, true);
    let (start, pages) = memory;
    let span = |random: &mut Random| {
        let first = random.below(pages);
        Span { start: Vpn(start + first), pages: 1 + random.below(pages - first) }
    };
    say(
        &socket,
        &ToEngine::Register { region: RegionId(0), span: Span { start: Vpn(start), pages } },
        &[],
    );
    let mut asked = VecDeque::new();
    for said in 0..most {
        match hear(&socket, Duration::from_millis(random.below(2))) {
            Ok(Some(ToClient::Rejected { .. })) | Err(()) => return said,
            Ok(Some(ToClient::Merge { sequence, runs })) => {
                asked.push_back((sequence, runs.iter().map(|run| run.span.pages).sum()));
            }
            Ok(Some(ToClient::Unmerge { sequence, .. })) => asked.push_back((sequence, 0)),
            Ok(_) => {}
        }
        let region = RegionId(random.below(6));
        match random.below(20) {
            0..3 => say(&socket, &ToEngine::Register { region, span: span(&mut random) }, &[]),
            3..6 => say(&socket, &ToEngine::Gone { span: span(&mut random) }, &[]),
            6..8 => say(&socket, &ToEngine::Unregister { region }, &[]),
            8 if random.below(20) == 0 => {
                say(&socket, &done(&mut random, Sequence(said), 3), &[]);
            }
            9 if random.below(50) == 0 => say(&socket, &ToEngine::Bye, &[]),
            _ => {
                // Now and then the last question first, or none.
                let next = match random.below(8) {
                    0 => None,
                    1..3 => asked.pop_back(),
                    _ => asked.pop_front(),
                };
                if let Some((sequence, pages)) = next {
                    say(&socket, &done(&mut random, sequence, pages), &[]);
                }
            }
        }
    }
    most
}

/// An answer, mostly of the right kind, to a question about pages to merge; none are to be unmerged.
fn done(random: &mut Random, sequence: Sequence, pages: u64) -> ToEngine<'static> {
    let unmerged =
        [Unmerged::Done, Unmerged::Done, Unmerged::OutOfMemory, Unmerged::Failed(Errno(5))];
    let chosen = usize::try_from(random.below(4)).unwrap();
    let answer = match (random.below(200), pages) {
        (0, _) => Answer::Mappings { used: 5, limit: 6 },
        (1..10, _) => Answer::Refused(Errno(22)),
        (_, 0) => Answer::Unmerged(unmerged[chosen]),
        _ => {
            let mut runs = Vec::new();
            (0..pages).for_each(|_| OutcomeRun::push(&mut runs, outcome(random)));
            Answer::Merged(runs.into())
        }
    };
    ToEngine::Done { sequence, answer }
}

fn outcome(random: &mut Random) -> Outcome {
    match random.below(12) {
        0 => Outcome::Differs,
        1 => Outcome::Pinned,
        2 => Outcome::Refused,
        3 => Outcome::Gone,
        4 => Outcome::Exhausted,
        _ => Outcome::Merged,
    }
}
