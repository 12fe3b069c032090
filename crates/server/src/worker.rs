//! Tells the engine what a client has, in the order in which the client said it.
//!
//! The client's regions and the engine's are not the same. The engine knows of regions that it can
//! only take or leave as a whole, and the client may unmap any part of its own: an engine's region can
//! have holes, in which the client may register something new. It is gone when it is nothing but hole.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use numerge_engine::machine::{Memory, MemoryError, Vpn};
use numerge_engine::{RegionHandle, RegisterError};
use numerge_linux::Ranges;
use numerge_protocol::{Errno, Reason, RegionError, RegionId, ToClient};

use crate::allotments::Allotment;
use crate::book::Book;
use crate::client::Client;
use crate::host::Host;
use crate::inbox::Order;
use crate::known::Known;
use crate::pages::{count, gaps_in, parts_in};
use crate::rejection::Rejection;

/// Where the engine's regions are cut, in pages: what a client unmaps costs nothing any more when
/// nothing else is left in a piece of so many.
const PIECE_PAGES: u64 = 1 << 18;
/// Most pieces that a client's regions may fall into.
const PIECES: usize = 1 << 17;

/// How long the client may take to read before it gets another message.
const SEND_WAIT: Duration = Duration::from_secs(5);

/// Times that a client is asked anew to unmerge a region.
const UNREGISTER_TRIES: usize = 1 << 16;

/// Time between two looks whether a client that hung up is gone: the first ones, and the others.
const SOON: Duration = Duration::from_millis(5);
const LATER: Duration = Duration::from_millis(500);
/// How often it is looked soon.
const SOON_LOOKS: u32 = 40;

/// What a client calls a region.
struct Region {
    /// Pages that are there still.
    pages: u64,
    /// From the first to the last as registered.
    hull: Range<Vpn>,
}

/// A client's worker.
pub(crate) struct Worker<'a> {
    host: &'a Host,
    client: &'a Client,
    memory: Arc<dyn Memory>,
    /// Registered pages, by the client's region.
    held: Ranges<RegionId>,
    regions: BTreeMap<RegionId, Region>,
    /// The engine's regions.
    known: Known,
    /// The pages of those; no fewer while one of them may be registered anew.
    allotment: Allotment<'a>,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(host: &'a Host, client: &'a Client) -> Self {
        let (held, regions, known) = (Ranges::new(), BTreeMap::new(), Known::default());
        let allotment = host.allotments.empty(client.user);
        Self { host, client, memory: client.memory.clone(), held, regions, known, allotment }
    }

    /// Works until the connection ends, and then takes everything of the client's out of the engine.
    pub(crate) fn run(mut self) {
        while let Some(order) = self.client.inbox.next() {
            let done = match order {
                Order::Register(id, pages) => self.register(id, &pages),
                Order::Gone(pages) => self.gone(&pages),
                Order::Unregister(id) => self.unregister(id),
            };
            if let Err(rejection) = done {
                self.client.reject(self.host, &rejection);
                break;
            }
            self.allotment.shrink_to(self.known.pages());
            // Relaxed: a counter, nothing is ordered by it.
            self.client.registered.store(self.held.pages(), Ordering::Relaxed);
        }
        self.end();
    }

    fn answer(&self, region: RegionId, error: Option<RegionError>) -> Result<(), Rejection> {
        let message = ToClient::Unregistered { region, error };
        if self.client.memory.link().send_patiently(&message, SEND_WAIT) {
            Ok(())
        } else {
            Err(Rejection::protocol("the client does not read"))
        }
    }

    fn register(&mut self, id: RegionId, pages: &Range<Vpn>) -> Result<(), Rejection> {
        let error = if self.regions.contains_key(&id) || self.held.next_in(pages).is_some() {
            Some(RegionError::InUse)
        } else if let Err(why) = self.allot(pages) {
            self.host.on_behalf_of(self.client.user, |unsaid| {
                let (pid, uid) = (self.client.pid, self.client.user);
                let pages = count(pages);
                tracing::warn!(%pid, uid, unsaid, pages, "over its quota: not registered: {why}");
            });
            Some(RegionError::OverLimit)
        } else {
            self.tell_engine(pages).err().map(region_error)
        };
        if error.is_some() {
            self.forget_empty(pages);
            return self.answer(id, error);
        }
        self.held.insert(pages.clone(), id);
        self.regions.insert(id, Region { pages: count(pages), hull: pages.clone() });
        // Last: what is there is merged.
        let alive = self.client.memory.book().enliven(pages);
        alive.map_err(|lie| Rejection::protocol(lie.to_string()))
    }

    /// Takes what a region may cost, or says why it may not be.
    fn allot(&mut self, pages: &Range<Vpn>) -> Result<(), String> {
        let limits = self.host.options.quotas.limits();
        let known = self.known.pages();
        if self.regions.len() as u64 >= limits.regions.into() {
            return Err(format!("it has {} regions, of {}", self.regions.len(), limits.regions));
        }
        if known + count(pages) > limits.pages {
            return Err(format!("it has {known} pages, of {}", limits.pages));
        }
        if self.held.len() >= PIECES {
            return Err(format!("it has regions in {PIECES} pieces, which is as many as allowed"));
        }
        let new: u64 = gaps_in(&self.known.ranges(pages), pages).iter().map(count).sum();
        self.allotment.grow(new).map_err(|why| why.to_string())
    }

    /// Sees to it that the engine has a region for each of these pages.
    fn tell_engine(&mut self, pages: &Range<Vpn>) -> Result<(), RegisterError> {
        for gap in gaps_in(&self.known.ranges(pages), pages) {
            let mut at = gap.start;
            while at < gap.end {
                let end = Vpn((at.0 / PIECE_PAGES + 1) * PIECE_PAGES).min(gap.end);
                let handle = self.client.domain.engine().register(&self.memory, at..end)?;
                self.known.insert(handle);
                at = end;
            }
        }
        Ok(())
    }

    /// Takes the engine's regions with any of these pages out of it, if nothing is left of them.
    fn forget_empty(&mut self, pages: &Range<Vpn>) {
        for known in self.known.with_any(pages) {
            if self.held.next_in(&known).is_some() {
                continue;
            }
            if let Some(handle) = self.known.remove(known.start)
                && handle.unregister().is_err()
            {
                // Nothing there is merged, but some answer is outstanding.
                self.known.insert(handle);
            }
        }
    }

    fn gone(&mut self, pages: &Range<Vpn>) -> Result<(), Rejection> {
        let memory = &self.client.memory;
        // Until it has answered what it was asked before, it may merge what lies there now.
        if !memory.wait_until(|book| !book.is_asked_about(pages)) {
            return Ok(());
        }
        let strays = memory.book().strays_in(pages);
        if !strays.is_empty() && !memory.unmerge_strays(&strays) {
            return Err(Rejection::new(Reason::Other, "pages gone were merged, and not unmerged"));
        }
        self.forget_held(pages);
        memory.book().forget_buried();
        self.forget_empty(pages);
        if self.held.len() > PIECES {
            return Err(Rejection::protocol("regions in too many pieces"));
        }
        Ok(())
    }

    /// The client has these pages no more, and the engine is told.
    fn forget_held(&mut self, pages: &Range<Vpn>) {
        let parts: Vec<(Range<Vpn>, RegionId)> = parts_in(&self.held, pages).collect();
        for (part, id) in parts {
            for known in self.known.with_any(&part) {
                if let Some(handle) = self.known.get(known.start) {
                    handle.vanished(part.start.max(known.start)..part.end.min(known.end));
                }
            }
            self.let_go(&part, id);
        }
    }

    /// Takes pages out of the client's region.
    fn let_go(&mut self, part: &Range<Vpn>, id: RegionId) {
        self.held.remove(part);
        if let Some(region) = self.regions.get_mut(&id) {
            region.pages -= count(part);
            if region.pages == 0 {
                self.regions.remove(&id);
            }
        }
    }

    fn unregister(&mut self, id: RegionId) -> Result<(), Rejection> {
        let Some(hull) = self.regions.get(&id).map(|region| region.hull.clone()) else {
            return self.answer(id, Some(RegionError::Unknown));
        };
        let parts: Vec<Range<Vpn>> =
            parts_in(&self.held, &hull).filter(|(_, of)| *of == id).map(|(part, _)| part).collect();
        let starts: BTreeSet<Vpn> = parts
            .iter()
            .flat_map(|part| self.known.with_any(part))
            .map(|known| known.start)
            .collect();
        let mut taken = Vec::new();
        let mut error = None;
        for start in starts {
            let Some(handle) = self.known.remove(start) else { continue };
            match self.unregister_known(&handle) {
                Ok(()) => taken.push(handle.pages()),
                Err(failed) => {
                    self.known.insert(handle);
                    error = Some(failed);
                    break;
                }
            }
        }
        if error.is_none() {
            for part in &parts {
                self.let_go(part, id);
                self.client.memory.book().forget(part);
            }
        }
        // What else was in those regions, all of it if that failed, is to be merged still.
        for pages in taken {
            let rest: Vec<Range<Vpn>> =
                parts_in(&self.held, &pages).map(|(part, _)| part).collect();
            for part in rest {
                if let Err(failed) = self.tell_engine(&part) {
                    return Err(Rejection::new(Reason::Other, failed.to_string()));
                }
                self.client.memory.book().look_anew(&[part]);
            }
        }
        if self.client.memory.book().is_over() {
            return Ok(());
        }
        self.answer(id, error.map(memory_error))
    }

    /// Has the engine unmerge and forget a region of its own. A client that does not answer in time is
    /// asked anew when it has answered.
    fn unregister_known(&self, handle: &RegionHandle) -> Result<(), MemoryError> {
        for _ in 0..UNREGISTER_TRIES {
            match handle.unregister() {
                Err(MemoryError::NoAnswer) => {}
                done => return done,
            }
            let pages = handle.pages();
            let is_ready =
                |book: &Book| !book.is_asked_about(&pages) && !book.is_silent(Instant::now());
            if !self.client.memory.wait_until(is_ready) {
                break;
            }
        }
        Err(MemoryError::NoAnswer)
    }

    /// The connection has ended: nothing of the client is in the engine afterwards.
    fn end(&mut self) {
        // If it is rejected, the reader notices.
        self.client.memory.wait_until(|_| false);
        self.wait_for_the_last_merge();
        for handle in self.known.all() {
            handle.vanished(handle.pages());
        }
        // Nothing is merged, so this can't fail; if it did, the engine would keep it.
        self.known = Known::default();
    }

    /// A client that hung up with questions unanswered may carry them out yet, for as long as it lives or until
    /// it greets again: what they name must stay.
    fn wait_for_the_last_merge(&self) {
        let memory = &self.client.memory;
        let mut looks = 0;
        while memory.book().is_asked_to_merge()
            && !self.client.is_superseded()
            && !memory.process().is_gone()
        {
            let wait = if looks < SOON_LOOKS { SOON } else { LATER };
            looks += 1;
            if self.host.waits_to_stop(wait) {
                return;
            }
        }
    }
}

fn region_error(error: RegisterError) -> RegionError {
    match error {
        RegisterError::TooMany { .. } => RegionError::OverLimit,
        RegisterError::Empty | RegisterError::Overlaps(_) => RegionError::InUse,
        RegisterError::Memory(error) => memory_error(error),
    }
}

fn memory_error(error: MemoryError) -> RegionError {
    let errno = match error {
        MemoryError::OutOfMemory => return RegionError::OutOfMemory,
        MemoryError::NotMergeable(_) => libc::EINVAL,
        MemoryError::NoAnswer => libc::ETIMEDOUT,
        MemoryError::System { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
    };
    RegionError::Failed(Errno(u16::try_from(errno).unwrap_or(1)))
}
