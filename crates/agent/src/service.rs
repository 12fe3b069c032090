//! The thread that goes to the engine, again and again, for as long as the process lives.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numerge_linux::{Error, FrameView, ProcessMemory, UffdDevice};
use numerge_protocol::{Socket, SocketError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::agent::{self, Agent, enter};
use crate::bypass::Files;
use crate::client::Client;
use crate::config::Config;
use crate::greeting::End;
use crate::session::Session;
use crate::{loan, threads};

/// Rest after the first connection that came to nothing, and the longest.
const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(5);
/// A connection that lasted as long was worth having.
const LASTING: Duration = Duration::from_secs(1);

/// How long to rest: after each connection that comes to nothing longer.
struct Rest(Duration);

impl Rest {
    const fn new() -> Self {
        Self(FIRST_REST)
    }

    fn next(&mut self) -> Duration {
        let longer = (self.0 * 2).min(LONGEST_REST);
        std::mem::replace(&mut self.0, longer)
    }
}

/// Longest sleep, so that nothing that was missed is missed for long.
pub(crate) const IDLE: Duration = Duration::from_secs(1);

/// Longest sleep where nothing can wake it.
const UNPOLLED: Duration = Duration::from_millis(20);

/// Serves this process.
pub(crate) fn run() {
    let Some(agent) = agent::get() else {
        return;
    };
    if let Err(why) = threads::leave_programs_files() {
        return complain(agent, why);
    }
    // A program that has the agent for itself knows what becomes of the regions that it names.
    let mut files = agent.complains.then(Files::default);
    // What can't be told yet is asked again before anything is registered.
    if let Some(Ok(Some(why))) = files.as_mut().map(Files::bypass) {
        be_deaf();
        return complain(agent, why);
    }
    let client = match prepare(agent) {
        Ok(client) => client,
        Err(why) => {
            be_deaf();
            return complain(agent, why);
        }
    };
    if let Some(mut here) = enter() {
        // Should the program have locked all memory a moment ago.
        client.memory.unlock(&here.held);
        here.client = Some(client.clone());
    }
    let mut rest = Rest::new();
    loop {
        let began = Instant::now();
        let ended = attend(agent, &client, files.as_mut());
        be_deaf();
        match ended {
            Ok(End::ForEver(why)) => {
                complain(agent, why);
                loop {
                    std::thread::sleep(IDLE);
                    threads::end_with_program();
                }
            }
            Ok(End::ForNow) if began.elapsed() > LASTING => rest = Rest::new(),
            Ok(End::ForNow) | Err(_) => {}
        }
        let until = Instant::now() + rest.next();
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            // Only the time counts: notes are kept.
            wait(&client, None, left);
            drain(&client);
        }
    }
}

/// There is no engine: nobody is to wait until it is told something.
fn be_deaf() {
    if let Some(mut here) = enter() {
        here.deaf = true;
    }
}

/// Makes what merges; where that takes the loan of a device, as soon as there is an engine.
///
/// # Errors
/// What is missing, for people.
fn prepare(agent: &Agent) -> Result<Arc<Client>, String> {
    let frames = Arc::new(FrameView::default());
    let memory = match ProcessMemory::new(frames.clone()) {
        Err(refused @ Error::NotPermitted { .. }) => {
            let lent = borrow(&agent.config)?.ok_or_else(|| refused.to_string())?;
            ProcessMemory::with_device(frames.clone(), Some(&lent))
        }
        memory => memory,
    };
    Client::start(memory.map_err(|error| error.to_string())?, frames)
}

/// Asks for the device until an engine has answered.
fn borrow(config: &Config) -> Result<Option<UffdDevice>, String> {
    let mut rest = Rest::new();
    loop {
        let answer = Socket::connect(&config.socket).map(|socket| loan::ask(&socket, config));
        match answer {
            Ok(Ok(lent)) => return Ok(lent),
            Ok(Err(End::ForEver(why))) => return Err(why),
            Ok(Err(End::ForNow)) | Err(_) => {}
        }
        let until = Instant::now() + rest.next();
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            std::thread::sleep(left.min(IDLE));
            threads::end_with_program();
        }
    }
}

/// One connection, from its beginning to its end.
fn attend(agent: &Agent, client: &Client, files: Option<&mut Files>) -> Result<End, SocketError> {
    let socket = Socket::connect(&agent.config.socket)?;
    socket.set_nonblocking(true)?;
    let end = Session::new(&socket, client, files).serve(&agent.config);
    if let Some(mut here) = enter() {
        here.set_connected(false);
    }
    Ok(end)
}

/// Waits for the socket, or for work; at most `most`, nor longer than [`IDLE`].
pub(crate) fn wait(client: &Client, socket: Option<(&Socket, PollFlags)>, most: Duration) {
    let mut polled = [
        PollFd::new(&client.wake, PollFlags::IN),
        match socket {
            Some((socket, flags)) => PollFd::new(socket, flags),
            None => PollFd::new(&client.wake, PollFlags::empty()),
        },
    ];
    let time = Timespec::try_from(most.min(IDLE)).ok();
    // Nothing is concluded of what there is to do: who called looks for itself.
    match rustix::event::poll(&mut polled, time.as_ref()) {
        Ok(0) => threads::end_with_program(),
        // The program may have no file any more (RLIMIT_NOFILE), and we must not ask about two.
        Err(Errno::INVAL) => {
            std::thread::sleep(most.min(UNPOLLED));
            threads::end_with_program();
        }
        _ => {}
    }
}

/// Forgets that it was woken.
pub(crate) fn drain(client: &Client) {
    // Nothing to forget: fine too.
    let _ = rustix::io::read(&client.wake, &mut [0; 8]);
}

/// Says why nothing is merged, to who asks, and, unless the program has the agent for itself, to people: a
/// line on standard error.
fn complain(agent: &Agent, why: String) {
    if agent.complains {
        let line =
            format!("numerge: memory of process {} is not merged: {why}\n", std::process::id());
        // There is nobody else to tell.
        let _ = threads::programs_stderr().map(|mut file| file.write_all(line.as_bytes()));
    }
    if let Some(mut here) = enter() {
        here.problem = Some(why);
    }
}
