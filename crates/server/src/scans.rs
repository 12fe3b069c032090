//! Full scans, as whoever watches from outside counts them.
//!
//! Users of KSM wait until `full_scans` has risen by two, and then take the other counters for settled.
//! A scan of an engine's would not do for that: what a client has just said may not have reached the
//! engine, a page needs two looks to be merged, and clients take their time to answer. So a full scan is
//! one in which
//! - all that the clients had said at its beginning was carried out first,
//! - each engine went over all its pages twice, from beginning to end, and as often again as there was
//!   something to merge in the last round (what is refused is tried once more, and then not waited for:
//!   what lies in a program's file may never be merged, and be found written to in every round), and so
//!   often that what there were no mappings for was tried again after what gave some back,
//! - the clients answered.
//!
//! Where clients have nothing that can be merged, as memory that may not be accessed, that is over soon, and
//! counts: whoever waits for it with the kernel does not wait for ever.
//!
//! Who sees the count rise by two has seen such a scan begin and end. All waiting has an end: a client
//! that is stopped, or pages that never stop changing, do not keep a scan from being over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use numerge_engine::{Knob, Progress, RETRY_PASSES};

use crate::client::Client;
use crate::domain::Domain;
use crate::heap::Trims;
use crate::host::Host;

/// Between looks at whether there is something to scan: at first, and where there was nothing for long.
const IDLE: Duration = Duration::from_millis(5);
const LONG_IDLE: Duration = Duration::from_millis(100);
/// Between looks at what can't be waited for.
const SOON: Duration = Duration::from_millis(1);
/// How long clients may take until all that they said is carried out.
const HEAR_WAIT: Duration = Duration::from_secs(2);
/// How often an engine goes over its pages again where there is always something to merge.
const ROUNDS: u32 = 8;
/// Rounds in a row in which nothing but what is refused was tried, until there is nothing left to merge.
const VAIN_ROUNDS: u32 = 2;
/// How often it is waited for a try of what there were no mappings for.
const BUDGET_RETRIES: u32 = 3;
/// How long an engine does so where its clients can't keep up with it.
const LONGEST: Duration = Duration::from_secs(60);
/// How long one wait for an engine is, so that the server's end is noticed.
const ENGINE_WAIT: Duration = Duration::from_millis(20);

/// The count.
#[derive(Default)]
pub(crate) struct Scans {
    over: AtomicU64,
    /// Times that it was begun anew.
    epoch: AtomicU64,
}

impl Scans {
    pub(crate) fn over(&self) -> u64 {
        self.over.load(Ordering::SeqCst)
    }

    /// Begins anew, as the kernel does when everything was unmerged.
    pub(crate) fn reset(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.over.store(0, Ordering::SeqCst);
    }

    /// Counts one that began in an epoch, if that is not over.
    fn count(&self, epoch: u64) {
        if self.epoch.load(Ordering::SeqCst) == epoch {
            self.over.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Host {
    /// Counts full scans until the server stops.
    pub(crate) fn count_scans(&self) {
        let (mut idle, mut trims) = (IDLE, Trims::default());
        while !self.waits_to_stop(Duration::ZERO) {
            let epoch = self.scans.epoch.load(Ordering::SeqCst);
            if self.is_scanning() && self.full_scan() {
                self.scans.count(epoch);
                trims.trim_if_due(self.attempted());
                idle = IDLE;
            } else if self.waits_to_stop(idle) {
                return;
            } else {
                idle = LONG_IDLE.min(idle * 2);
            }
        }
    }

    /// Pages that were tried to merge, in all.
    fn attempted(&self) -> u64 {
        self.all_domains().iter().map(|domain| domain.engine().progress().attempted).sum()
    }

    fn is_scanning(&self) -> bool {
        self.is_set(Knob::Run, 1) && !self.waits_to_stop(Duration::ZERO)
    }

    /// False if it was not one: there was nobody to scan for, or it was stopped.
    fn full_scan(&self) -> bool {
        self.hear_all();
        let domains = self.all_domains();
        let scanned: Vec<_> = domains.iter().filter(|domain| self.scan(domain)).collect();
        scanned.iter().for_each(|domain| domain.engine().full_scan_is_over());
        if scanned.is_empty() && (self.all_clients().is_empty() || self.waits_to_stop(IDLE)) {
            return false;
        }
        self.is_scanning()
    }

    /// Waits until all that the clients have said by now is carried out.
    fn hear_all(&self) {
        let until = Instant::now() + HEAR_WAIT;
        for client in self.all_clients() {
            while !client.is_heard() && self.is_listed(&client) {
                let now = Instant::now();
                let (is_over, is_silent) = {
                    let book = client.memory.book();
                    (book.is_over(), book.is_silent(now))
                };
                // What a silent client has said may have to wait for what it does not say.
                if now >= until || is_over || is_silent {
                    break;
                }
                if self.waits_to_stop(SOON) {
                    return;
                }
            }
        }
    }

    /// A domain's part of a full scan. False if it has nothing to scan, or any more.
    fn scan(&self, domain: &Arc<Domain>) -> bool {
        let began = Instant::now();
        let mut unasked = self.unasked(domain);
        let merged_before = may_merge(&domain.engine().progress());
        // One is under way, then comes a whole one.
        let Some(mut before) = self.passes(domain, 2) else { return false };
        let (mut rounds, mut vain, mut all_answer) = (0, 0, true);
        let mut may_be_room = may_merge(&before) != merged_before;
        let (mut unheard, mut unmapped, mut retries) = (0, 0_u64, 0);
        loop {
            let Some(after) = self.passes(domain, 1) else { return false };
            let was_silent = std::mem::replace(&mut unasked, self.unasked(domain)) != unasked;
            if (after.late > 0 || was_silent) && all_answer {
                let clients = self.clients_of(domain);
                all_answer = self.wait_for_answers(&clients, || true).is_empty();
            }
            let tried = after.attempted - before.attempted;
            // What was tried just now need not be answered yet.
            let is_late = after.late > tried && all_answer;
            let merged = may_merge(&after) != may_merge(&before);
            vain = if merged { 0 } else { vain + 1 };
            // Both are tried again when all that could not be merged is: pages of who was silent for a moment,
            // and those there were no mappings for, if some may have come free since. None of these at one
            // moment may only be that they are being tried.
            unheard =
                if was_silent && all_answer { RETRY_PASSES } else { unheard.saturating_sub(1) };
            (unmapped, may_be_room) = (unmapped.saturating_sub(1), may_be_room || merged);
            if (before.over_budget, after.over_budget) == (0, 0) {
                unmapped = 0;
            } else if unmapped == 0 && may_be_room && retries < BUDGET_RETRIES {
                (unmapped, may_be_room, retries) = (RETRY_PASSES, false, retries + 1);
            }
            let owed = unheard.max(unmapped);
            let is_done = (tried == 0 || vain >= VAIN_ROUNDS) && !is_late && owed == 0;
            let are_behind = after.deferred > before.deferred || is_late || owed > 0;
            if is_done || (rounds >= ROUNDS && !are_behind) || began.elapsed() > LONGEST {
                return true;
            }
            rounds += 1;
            before = after;
        }
    }

    /// Waits for so many full scans of a domain's engine. None if there is nothing to scan.
    fn passes(&self, domain: &Domain, count: u64) -> Option<Progress> {
        let engine = domain.engine();
        let until = engine.progress().full_scans + count;
        loop {
            let progress = engine.progress();
            if progress.pages_registered == 0 || !self.is_scanning() {
                return None;
            }
            if progress.full_scans >= until {
                return Some(progress);
            }
            engine.wait_for_full_scan(until - 1, ENGINE_WAIT);
        }
    }

    /// Pages of a domain that were not asked for, in all.
    fn unasked(&self, domain: &Arc<Domain>) -> u64 {
        self.clients_of(domain).iter().map(|client| client.memory.unasked()).sum()
    }
}

/// Merges that came about, or may yet.
const fn may_merge(progress: &Progress) -> u64 {
    progress.attempted.saturating_sub(progress.refused)
}

impl Client {
    /// Whether all that it has said was read and carried out. In this order: what is not in the socket
    /// any more is being taken in, or is in the inbox, or done.
    fn is_heard(&self) -> bool {
        !self.memory.link().has_input() && !self.is_taking_in() && self.inbox.is_idle()
    }
}
