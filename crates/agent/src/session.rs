//! One conversation with an engine: see the specification in `numerge_protocol`.
//!
//! A `Done` is put in the queue under the lock under which the program's calls are made, and says of
//! pages that are neither registered nor in a file mapping by then that they are gone. So after a `Gone`
//! nothing is said to be merged that is not.
//!
//! A `Merge` that crosses with `Gone` must not be carried out on what the program mapped there since.
//! That is not registered before the engine has certainly read the `Gone`: after such messages it is
//! asked for a region that it can't have, and what was gone is left alone until it has answered.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use numerge_engine::Kpfn;
use numerge_engine::machine::{self, Memory, MemoryError, Vpn};
use numerge_linux::{FrameSource, Part};
use numerge_protocol::limits::{ADDRESS_PAGES, FILE_PAGES, MAPPINGS, REGION_MESSAGES};
use numerge_protocol::{
    self as protocol, Answer, Buffer, Errno, Limits, Outcome, OutcomeRun, ReceiveError,
    RegionError, RegionId, Run, SendError, Sequence, Socket, Span, Target, ToClient, ToEngine,
    Unmerged,
};
use rustix::event::PollFlags;

use crate::agent::enter_to_serve as enter;
use crate::bypass::Files;
use crate::client::Client;
use crate::config::Config;
use crate::greeting::{End, greet, rejected};
use crate::known;
use crate::service::{IDLE, drain, wait};
use crate::space::Out;

/// Time from a note to the look: much of what is mapped is unmapped again soon, and one look does for
/// all notes.
const LOOK_DELAY: Duration = Duration::from_millis(20);
/// How often to look, at one time, whether a call of the program's is over.
const PASSING_TRIES: u32 = 100;
/// A look reads of all mappings; at most this part of the time is spent with it.
const LOOK_SHARE: u32 = 10;
/// Most ranges of one look.
const LOOK_RANGES: usize = 4096;
/// Most regions that are told of before the engine is listened to again: it may wait for an answer before it takes
/// any more of them.
const REGISTERED_AT_ONCE: u64 = REGION_MESSAGES as u64 / 4;

pub(crate) struct Session<'a> {
    socket: &'a Socket,
    client: &'a Client,
    /// Looked at before anything is registered.
    files: Option<&'a mut Files>,
    buffer: Buffer,
    /// Taken from the queue, not sent yet.
    outgoing: VecDeque<Out>,
    /// When the next look is allowed, and since when something waits for it.
    next_look: Instant,
    noted_since: Option<Instant>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        socket: &'a Socket,
        client: &'a Client,
        files: Option<&'a mut Files>,
    ) -> Self {
        Self {
            socket,
            client,
            files,
            buffer: Buffer::new(),
            outgoing: VecDeque::new(),
            next_look: Instant::now(),
            noted_since: None,
        }
    }

    /// Greets, and serves until the connection ends.
    pub(crate) fn serve(mut self, config: &Config) -> End {
        let limits = match self.greet(config) {
            Ok(limits) => limits,
            Err(end) => return end,
        };
        // What another engine did is undone before this one hears of anything.
        if self.begin_anew().is_err() {
            return self.say_goodbye();
        }
        loop {
            if let Err(end) = self.send_queued() {
                return end;
            }
            let more = self.receive();
            match more {
                Ok(Some((message, fds))) => {
                    if let Err(end) = self.hear(message, fds) {
                        return end;
                    }
                    continue;
                }
                Ok(None) => return End::ForNow,
                Err(ReceiveError::WouldBlock) => {}
                Err(_) => return self.say_goodbye(),
            }
            let timeout = match self.look_if_due(&limits) {
                Ok(timeout) => timeout,
                Err(end) => return end,
            };
            if self.has_queued() {
                continue;
            }
            self.client.memory.mend_if_due();
            let flags = if self.outgoing.is_empty() {
                PollFlags::IN
            } else {
                PollFlags::IN | PollFlags::OUT
            };
            wait(self.client, Some((self.socket, flags)), timeout);
            drain(self.client);
        }
    }

    fn greet(&mut self, config: &Config) -> Result<Limits, End> {
        greet(self.socket, config, &mut self.buffer, |most| {
            wait(self.client, Some((self.socket, PollFlags::IN)), most);
            drain(self.client);
        })
    }

    fn receive(&mut self) -> Result<Option<(ToClient<'static>, Vec<OwnedFd>)>, ReceiveError> {
        self.socket.receive(&mut self.buffer)
    }

    /// Nothing is merged or tracked any more; what is wanted is to be looked at.
    fn begin_anew(&self) -> Result<(), MemoryError> {
        let all = Vpn(0)..Vpn(ADDRESS_PAGES);
        let memory = &self.client.memory;
        memory.give_back(&all)?;
        if let Some(mut here) = enter() {
            memory.let_go_end(&here.held, &all, true);
            self.client.frames.clear();
            here.set_connected(true);
            here.note_all();
        }
        Ok(())
    }

    fn has_queued(&self) -> bool {
        self.outgoing.is_empty() && enter().is_some_and(|here| here.has_queued())
    }

    /// Sends what is queued, as far as the engine takes it.
    fn send_queued(&mut self) -> Result<(), End> {
        if enter().is_some_and(|here| here.overflown) {
            // Also where an engine that does not listen is why.
            return Err(self.say_goodbye());
        }
        loop {
            if self.outgoing.is_empty() {
                let Some(mut here) = enter() else {
                    return Err(End::ForNow);
                };
                self.outgoing = here.take_queue();
            }
            let Some(next) = self.outgoing.front() else {
                return Ok(());
            };
            match self.socket.send_with(&message(next), &[], &mut self.buffer) {
                Ok(()) => drop(self.outgoing.pop_front()),
                Err(SendError::WouldBlock) => return Ok(()),
                Err(_) => return Err(End::ForNow),
            }
        }
    }

    fn hear(&mut self, message: ToClient<'static>, fds: Vec<OwnedFd>) -> Result<(), End> {
        match message {
            ToClient::Merge { sequence, runs } => self.merge(sequence, &runs),
            ToClient::Unmerge { sequence, ranges } => {
                let ranges: Vec<_> = ranges.iter().map(|span| pages_of(*span)).collect();
                let result = match self.client.memory.unmerge(&ranges) {
                    Ok(()) => Unmerged::Done,
                    Err(MemoryError::System { source, .. }) => Unmerged::Failed(errno(&source)),
                    Err(_) => Unmerged::OutOfMemory,
                };
                answer(sequence, Answer::Unmerged(result));
            }
            ToClient::Mappings { sequence } => {
                let told = match self.client.memory.mappings() {
                    Ok(found) => Answer::Mappings {
                        used: found.used.min(MAPPINGS),
                        limit: found.limit.clamp(1, MAPPINGS),
                    },
                    Err(_) => Answer::Refused(Errno(errno_of(libc::EIO))),
                };
                answer(sequence, told);
            }
            ToClient::Frames { file, pages } => {
                // What can't be taken in can't be merged with: see `merge`.
                if let Some(here) = enter().filter(|here| !here.is_locked()) {
                    for fd in fds.into_iter().filter(|_| pages == FILE_PAGES) {
                        let _ = self.client.frames.add(file.into(), fd);
                    }
                    drop(here);
                }
            }
            ToClient::Unregistered { region, error } => self.unregistered(region.0, error),
            ToClient::Leave { keep } => {
                if !keep {
                    // What there is no memory for stays merged: the frames' files are ours too.
                    let _ = self.begin_anew();
                }
                return Err(self.say_goodbye());
            }
            ToClient::Rejected { reason, text } => return Err(rejected(reason, &text)),
            // Not needed, and closed: what merges is there.
            ToClient::Userfaultfd => {}
            ToClient::Welcome { .. } => return Err(self.say_goodbye()),
        }
        Ok(())
    }

    fn merge(&self, sequence: Sequence, asked: &[Run]) {
        let runs: Vec<_> = asked.iter().map(to_machine).collect();
        let is_known = |run: &machine::Run| match run.target {
            machine::Target::Frames(first) => self.client.frames.locate(first, 1).is_some(),
            machine::Target::Zero => true,
        };
        if !runs.iter().all(is_known) {
            return answer(sequence, Answer::Refused(Errno(errno_of(libc::EBADF))));
        }
        let mut outcomes = Vec::new();
        for run in &runs {
            if self.client.is_short() {
                let pages = run.pages.start.0..run.pages.end.0;
                outcomes.extend(pages.map(|_| machine::Outcome::Exhausted));
            } else {
                self.client.memory.merge(std::slice::from_ref(run), &mut outcomes);
            }
        }
        let Some(mut here) = enter() else {
            return;
        };
        let mut told = Vec::new();
        let mut outcomes = outcomes.into_iter();
        for run in &runs {
            let memory = &self.client.memory;
            let is_whole = memory.registered_in(&here.held, &run.pages) == Some(run.pages.clone());
            for (page, outcome) in (run.pages.start.0..run.pages.end.0).zip(&mut outcomes) {
                let page = Vpn(page)..Vpn(page + 1);
                let is_here = is_whole
                    || memory.registered_in(&here.held, &page).is_some()
                    || memory.in_file_in(&here.held, &page).is_some();
                OutcomeRun::push(
                    &mut told,
                    if is_here { to_protocol(outcome) } else { Outcome::Gone },
                );
            }
        }
        here.push(Out::Done { sequence, answer: Answer::Merged(told.into()) });
    }

    fn unregistered(&self, region: u64, error: Option<RegionError>) {
        let Some(mut here) = enter() else {
            return;
        };
        here.pass_barrier(region);
        if error.is_some() {
            // Not taken, so nothing of it was merged.
            for pages in here.drop_region(region) {
                self.client.memory.let_go_end(&here.held, &pages, true);
            }
        }
    }

    /// Looks at what was noted, if it is time. Gives how long to sleep.
    fn look_if_due(&mut self, limits: &Limits) -> Result<Duration, End> {
        let here = enter().ok_or(End::ForNow)?;
        if !here.has_room() {
            return Ok(IDLE); // until something is sent
        }
        let ((ready, time), urgent_until) = (here.noted(LOOK_RANGES), here.urgent_until);
        drop(here);
        if ready.is_empty() {
            self.noted_since = None;
            return Ok(IDLE);
        }
        let now = Instant::now();
        let due = (*self.noted_since.get_or_insert(now) + LOOK_DELAY).max(self.next_look);
        let is_urgent = urgent_until.is_some_and(|until| now < until);
        let left = due.checked_duration_since(now).filter(|left| !left.is_zero() && !is_urgent);
        if let Some(left) = left {
            return Ok(left.min(IDLE));
        }
        // They were made known before they were noted.
        if !known::all_have_passed(PASSING_TRIES) {
            self.next_look = now + LOOK_DELAY;
            return Ok(LOOK_DELAY);
        }
        // Both without the lock, for they can take long. What changes meanwhile is noted anew.
        match self.files.as_mut().map_or(Ok(None), |files| files.bypass()) {
            Ok(None) => {}
            Ok(Some(why)) if self.begin_anew().is_ok() => {
                self.say_goodbye();
                return Err(End::ForEver(why));
            }
            // There is no memory to give what is merged back, or nobody can tell: later.
            _ => {
                self.next_look = now + IDLE;
                return Ok(IDLE);
            }
        }
        let Ok(parts) = Part::find(&ready) else {
            self.next_look = now + IDLE;
            return Ok(IDLE);
        };
        self.noted_since = None;
        self.next_look = Instant::now() + now.elapsed() * LOOK_SHARE;
        self.register(&ready, &parts, time, limits)?;
        Ok(Duration::ZERO)
    }

    fn register(
        &mut self,
        looked_at: &[Range<Vpn>],
        parts: &[Part],
        time: u64,
        limits: &Limits,
    ) -> Result<(), End> {
        // No more come in between, for that happens here only.
        let (mut regions, mut registered) = enter().ok_or(End::ForNow)?.registered();
        // Up to where it was done.
        let mut done = Vpn(ADDRESS_PAGES);
        let most = regions + REGISTERED_AT_ONCE;
        'parts: for part in parts {
            // One by one: the program's threads wait meanwhile.
            let mut here = enter().ok_or(End::ForNow)?;
            if !here.has_room() {
                drop(here);
                self.send_queued()?;
                here = enter().ok_or(End::ForNow)?;
            }
            if here.is_locked() {
                return Ok(()); // looked at again afterwards
            }
            for pages in here.still_noted(&part.pages, time) {
                let mut at = pages.start;
                while at < pages.end {
                    if !here.has_room() || regions >= most {
                        done = at; // the rest is looked at again
                        break 'parts;
                    }
                    let end = at.plus((pages.end.0 - at.0).min(limits.region_pages));
                    if regions >= limits.regions.into()
                        || registered + (end.0 - at.0) > limits.pages
                    {
                        break; // not merged, then
                    }
                    let piece = part.within(&(at..end));
                    if self.client.memory.register_part(&here.held, &piece).is_ok() {
                        here.add_region(at..end);
                        (regions, registered) = (regions + 1, registered + (end.0 - at.0));
                    }
                    at = end;
                }
            }
        }
        let mut here = enter().ok_or(End::ForNow)?;
        for pages in looked_at {
            for pages in here.still_noted(pages, time) {
                here.unnote(&(pages.start..pages.end.min(done).max(pages.start)));
            }
        }
        Ok(())
    }

    /// Ends the conversation from this side.
    fn say_goodbye(&mut self) -> End {
        // If it is not sent, the engine sees the end of the connection.
        let _ = self.socket.send_with(&ToEngine::Bye, &[], &mut self.buffer);
        End::ForNow
    }
}

fn answer(sequence: Sequence, answer: Answer<'static>) {
    if let Some(mut here) = enter() {
        here.push(Out::Done { sequence, answer });
    }
}

fn message(out: &Out) -> ToEngine<'_> {
    match out {
        Out::Register { region, pages } => {
            ToEngine::Register { region: RegionId(*region), span: span_of(pages) }
        }
        Out::Gone(pages) => ToEngine::Gone { span: span_of(pages) },
        Out::Unregister { region } => ToEngine::Unregister { region: RegionId(*region) },
        Out::Done { sequence, answer } => {
            ToEngine::Done { sequence: *sequence, answer: lent(answer) }
        }
    }
}

/// The same answer, without a copy of its list.
fn lent<'a>(answer: &'a Answer<'static>) -> Answer<'a> {
    match answer {
        Answer::Merged(runs) => Answer::Merged(runs.as_ref().into()),
        other => other.clone(),
    }
}

fn span_of(pages: &Range<Vpn>) -> Span {
    Span { start: protocol::Vpn(pages.start.0), pages: pages.end.0 - pages.start.0 }
}

const fn pages_of(span: Span) -> Range<Vpn> {
    Vpn(span.start.0)..Vpn(span.start.0 + span.pages)
}

const fn to_machine(run: &Run) -> machine::Run {
    let target = match run.target {
        Target::Frames(first) => machine::Target::Frames(Kpfn(first.0)),
        Target::Zero => machine::Target::Zero,
    };
    machine::Run { pages: pages_of(run.span), target }
}

const fn to_protocol(outcome: machine::Outcome) -> Outcome {
    match outcome {
        machine::Outcome::Merged => Outcome::Merged,
        machine::Outcome::Differs => Outcome::Differs,
        // This memory answers at once.
        machine::Outcome::Pinned | machine::Outcome::Late | machine::Outcome::Deferred => {
            Outcome::Pinned
        }
        machine::Outcome::Refused => Outcome::Refused,
        machine::Outcome::Gone => Outcome::Gone,
        machine::Outcome::Exhausted => Outcome::Exhausted,
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno(errno_of(error.raw_os_error().unwrap_or(libc::EIO)))
}

fn errno_of(number: i32) -> u16 {
    u16::try_from(number).ok().filter(|number| *number > 0).unwrap_or(1)
}
