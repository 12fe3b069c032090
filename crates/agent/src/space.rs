//! What the agent knows of the program's memory, and what the engine is to be told, in order.
//!
//! All of it belongs to who holds [`AddressSpace`]: so what the program does, what is merged and what is
//! told to the engine have one order, and a fork finds it whole.
//!
//! Pages that the program wants merged are *wanted*. What is new or has changed of them is *noted*, and
//! looked at a little later by the service thread, which registers what it can. A page that is gone must
//! not be registered again before the engine has certainly heard of it, for a merge that crosses with
//! `Gone` must not be carried out on what came after: such pages are *gone* until the engine has answered
//! something that was sent later (see [`crate::session`]).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use numerge_engine::machine::Vpn;
use numerge_linux::{AddressSpace, LoosePages, Ranges};
use numerge_protocol::{Answer, Sequence};

use crate::client::Client;
use crate::known::{self, hull};

/// Messages that may wait to be sent. Beyond, the connection is given up: all begins anew then.
const QUEUE: usize = 4096;

/// A message for the engine.
#[derive(Debug)]
pub(crate) enum Out {
    Register { region: u64, pages: Range<Vpn> },
    Gone(Range<Vpn>),
    Unregister { region: u64 },
    Done { sequence: Sequence, answer: Answer<'static> },
}

/// Everything, for one process.
#[derive(Debug, Default)]
pub(crate) struct Space {
    /// What the program wants merged.
    wanted: Ranges<()>,
    /// Of that, what is to be looked at, with the time of noting in notes.
    noted: Ranges<u64>,
    notes: u64,
    /// What the engine has been told of, by region.
    regions: Ranges<u64>,
    /// All of what each of these regions had at first.
    spans: BTreeMap<u64, Range<Vpn>>,
    last_region: u64,
    /// Pages gone, of which the engine may not know yet, with the number of the barrier after which it
    /// does.
    gone: Ranges<u64>,
    /// Number of the next barrier, and the region whose unregistering the engine has yet to answer for
    /// the one before.
    next_barrier: u64,
    barrier: Option<u64>,
    queue: VecDeque<Out>,
    /// What was taken from the queue was not sent yet.
    unsent: bool,
    /// Until then a thread of the program waits for the engine to be told what is noted.
    pub(crate) urgent_until: Option<Instant>,
    /// When so much time has passed that what they waited is but a share of it.
    pub(crate) even: Option<Instant>,
    /// Nobody is to wait for the engine: there was none, or it did not listen.
    pub(crate) deaf: bool,
    /// There is an engine to be told.
    pub(crate) connected: bool,
    /// What the program maps is locked (MCL_FUTURE).
    pub(crate) maps_locked: bool,
    /// Threads that are locking or unlocking all its memory.
    pub(crate) locking: u32,
    /// Too much had to be told: the connection is of no use any more.
    pub(crate) overflown: bool,
    /// What merges, once it has been started.
    pub(crate) client: Option<Arc<Client>>,
    /// The service thread was started, or can't be.
    pub(crate) started: bool,
    /// Why nothing is merged, and never will be.
    pub(crate) problem: Option<String>,
    /// In file mappings since the process was forked.
    pub(crate) loose: LoosePages,
}

impl Space {
    /// What is left to a fork's child of its parent's: where the frames' files are mapped.
    pub(crate) fn into_child(self, held: &AddressSpace) -> Self {
        let mut loose = self.loose;
        if let Some(client) = self.client {
            loose.inherit(held, &client.memory);
            // Its threads are not here, its descriptors are the parent's.
            std::mem::forget(client);
        }
        Self { loose, ..Self::default() }
    }

    /// The program wants these pages merged; those that it made are.
    pub(crate) fn want(&mut self, pages: &Range<Vpn>) {
        let mut at = pages.start;
        while let Some(found) = known::next_own(&(at..pages.end)) {
            at = found.end;
            // What can't be remembered for want of memory is not merged.
            if known::know(&found).is_ok() {
                // Once more: see `known`.
                let mut at = found.start;
                while let Some(own) = known::next_own(&(at..found.end)) {
                    at = own.end;
                    self.wanted.insert(own, ());
                }
            }
        }
        self.note(pages);
    }

    /// The program does not want them merged.
    pub(crate) fn unwant(&mut self, pages: &Range<Vpn>) {
        self.wanted.remove(pages);
        self.noted.remove(pages);
    }

    /// Whether the program wants any of these pages merged.
    pub(crate) fn wants_any(&self, pages: &Range<Vpn>) -> bool {
        self.wanted.next_in(pages).is_some()
    }

    /// What is wanted of these pages has to be looked at (again).
    pub(crate) fn note(&mut self, pages: &Range<Vpn>) {
        self.notes += 1;
        let mut at = pages.start;
        while let Some((found, ())) = self.wanted.next_in(&(at..pages.end)) {
            at = found.end;
            self.noted.insert(found, self.notes);
        }
    }

    /// All that is wanted has to be looked at again.
    pub(crate) fn note_all(&mut self) {
        self.note(&hull());
    }

    /// What was noted before is not to be looked at now.
    pub(crate) fn unnote(&mut self, pages: &Range<Vpn>) {
        self.noted.remove(pages);
    }

    /// What was noted and may be registered now, at most `most` ranges, and the time of the last note.
    /// What was gone before has to wait until the engine has heard of that.
    pub(crate) fn noted(&self, most: usize) -> (Vec<Range<Vpn>>, u64) {
        let mut ready = Vec::new();
        for (pages, _) in self.noted.iter().filter(|_| !self.is_locked()) {
            ready.extend(self.but_gone(&pages).take(most - ready.len()));
        }
        (ready, self.notes)
    }

    /// These pages without those that are gone.
    fn but_gone(&self, pages: &Range<Vpn>) -> impl Iterator<Item = Range<Vpn>> {
        let (mut at, end) = (pages.start, pages.end);
        std::iter::from_fn(move || {
            while at < end {
                let gone = self.gone.next_in(&(at..end)).map_or(end..end, |(gone, _)| gone);
                let before = at..gone.start;
                at = gone.end;
                if !before.is_empty() {
                    return Some(before);
                }
            }
            None
        })
    }

    /// What of `pages` was noted not later than `time`, and not since, and may be registered: see [`Self::noted`].
    pub(crate) fn still_noted(&self, pages: &Range<Vpn>, time: u64) -> Vec<Range<Vpn>> {
        let mut still = Vec::new();
        let mut at = pages.start;
        while let Some((found, noted)) = self.noted.next_in(&(at..pages.end)) {
            at = found.end;
            if noted <= time {
                still.extend(self.but_gone(&found));
            }
        }
        still
    }

    /// Pages that are tracked from now on: the engine is told.
    pub(crate) fn add_region(&mut self, pages: Range<Vpn>) {
        let region = self.new_region();
        self.regions.insert(pages.clone(), region);
        self.spans.insert(region, pages.clone());
        self.push(Out::Register { region, pages });
    }

    /// A number no region has.
    pub(crate) fn new_region(&mut self) -> u64 {
        self.last_region += 1;
        self.last_region
    }

    /// Pages that the program wants merged.
    pub(crate) fn pages_wanted(&self) -> u64 {
        self.wanted.pages()
    }

    /// What the engine has been told of.
    pub(crate) fn registered_ranges(&self) -> Vec<Range<Vpn>> {
        self.regions.iter().map(|(pages, _)| pages).collect()
    }

    /// How many regions the engine knows, and how many pages they have.
    pub(crate) fn registered(&self) -> (u64, u64) {
        (self.spans.len() as u64, self.regions.pages())
    }

    /// The engine does not take a region after all: what is left of it.
    pub(crate) fn drop_region(&mut self, region: u64) -> Vec<Range<Vpn>> {
        let mut dropped = Vec::new();
        if let Some(span) = self.spans.remove(&region) {
            let mut at = span.start;
            while let Some((found, of)) = self.regions.next_in(&(at..span.end)) {
                at = found.end;
                if of == region {
                    dropped.push(found);
                }
            }
        }
        for pages in &dropped {
            self.regions.remove(pages);
        }
        dropped
    }

    /// Tells the engine that it has nothing to do with these pages any more: none is mapped to a frame
    /// now, or can be.
    pub(crate) fn leave_engine(&mut self, pages: &Range<Vpn>) {
        let mut empty = Vec::new();
        let mut at = pages.start;
        while let Some((found, region)) = self.regions.next_in(&(at..pages.end)) {
            at = found.end;
            self.regions.remove(&found);
            self.gone.insert(found.clone(), self.next_barrier);
            self.push_gone(found);
            if let Some(span) = self.spans.get(&region).cloned() {
                let mut rest = span.start;
                let mut any = false;
                while let Some((other, of)) = self.regions.next_in(&(rest..span.end)) {
                    rest = other.end;
                    any |= of == region;
                }
                if !any {
                    self.spans.remove(&region);
                    empty.push(region);
                }
            }
        }
        // Afterwards: what is gone of regions side by side is one message.
        for region in empty {
            self.push(Out::Unregister { region });
        }
    }

    /// The engine has answered that there is no such region. If that was a barrier, it knows by now
    /// what was gone before.
    pub(crate) fn pass_barrier(&mut self, region: u64) {
        if self.barrier == Some(region) {
            self.barrier = None;
            let known = self.gone.iter().filter(|(_, barrier)| *barrier < self.next_barrier);
            for (pages, _) in known.collect::<Vec<_>>() {
                self.gone.remove(&pages);
            }
        }
    }

    fn push_gone(&mut self, pages: Range<Vpn>) {
        if let Some(Out::Gone(last)) = self.queue.back_mut() {
            if last.end == pages.start {
                last.end = pages.end;
                return;
            }
            if last.start == pages.end {
                last.start = pages.start;
                return;
            }
        }
        self.push(Out::Gone(pages));
    }

    /// Whether nothing may be registered, for mappings that are made for it would be locked.
    pub(crate) fn is_locked(&self) -> bool {
        self.maps_locked || self.locking > 0
    }

    /// Ends the connection, and begins anew.
    pub(crate) fn reconnect(&mut self) {
        self.overflown = self.connected;
    }

    /// Whether there is room to tell of a region more: half of the queue is for what the program does.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() < QUEUE / 2
    }

    /// Queues a message, if there is anybody to tell.
    pub(crate) fn push(&mut self, message: Out) {
        if !self.connected {
            return;
        }
        if self.queue.len() >= QUEUE {
            self.overflown = true;
            return;
        }
        self.queue.push_back(message);
    }

    /// Takes what is queued. After pages that are gone comes a barrier: the engine is asked for a region
    /// that it can't have, and its answer tells that it has read what was sent before.
    pub(crate) fn take_queue(&mut self) -> VecDeque<Out> {
        let is_new = |(_, barrier): (Range<Vpn>, u64)| barrier == self.next_barrier;
        if self.barrier.is_none() && self.gone.iter().any(is_new) {
            let region = self.new_region();
            self.push(Out::Unregister { region });
            self.barrier = Some(region);
            self.next_barrier += 1;
        }
        self.unsent = !self.queue.is_empty();
        std::mem::take(&mut self.queue)
    }

    /// Whether nothing of `pages` is to be looked at, and all that there was to tell is sent.
    pub(crate) fn is_told(&self, pages: &Range<Vpn>) -> bool {
        self.noted.next_in(pages).is_none() && !self.has_queued() && !self.unsent
    }

    /// Whether something is to be sent.
    pub(crate) fn has_queued(&self) -> bool {
        !self.queue.is_empty() || self.overflown
    }

    /// Whether something is to be sent or looked at.
    pub(crate) fn has_work(&self) -> bool {
        self.has_queued() || !self.noted.is_empty()
    }

    /// There is no engine, or a new one that knows nothing.
    pub(crate) fn set_connected(&mut self, connected: bool) {
        self.connected = connected;
        self.overflown = false;
        self.unsent = false;
        self.deaf = !connected;
        self.queue.clear();
        self.regions = Ranges::new();
        self.spans.clear();
        self.gone = Ranges::new();
        self.barrier = None;
    }
}
