//! Knobs, set for all domains.
//!
//! Unmerging (`run=2`) takes its time, and others may set `run` meanwhile: what was set last is what counts
//! (S5.2), and unmerging ends there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numerge_engine::machine::MemoryError;
use numerge_engine::{ADVISOR_SCAN_TIME, Knob, KnobError, UnmergeError};

use crate::domain::Domain;
use crate::host::Host;

/// Between two tries to unmerge where there is nobody to wait for.
const PAUSE: Duration = Duration::from_millis(20);

/// A knob that is being set.
#[derive(Clone, Copy)]
struct Turn {
    knob: Knob,
    value: u64,
    /// What it was before.
    before: u64,
    /// Of `run`: how often that had been set.
    run: u64,
}

impl Host {
    /// Sets a knob for all domains: see [`crate::Server::set`]. Where clients do not answer, unmerging a
    /// domain is given up when nothing of it was unmerged for so long.
    pub(crate) fn set(&self, knob: Knob, value: u64, patience: Duration) -> Result<(), KnobError> {
        knob.check(value)?;
        let turn = self.begin(knob, value)?;
        tracing::debug!(%knob, value, "to be set");
        let is_unmerging = (knob, value) == (Knob::Run, 2);
        let before = is_unmerging.then(|| (self.unmerged(), Instant::now()));
        if is_unmerging {
            tracing::info!(pages = self.merged(), "unmerging everything");
        }
        let done = self.set_everywhere(turn, patience);
        if let Some((before, began)) = before {
            let pages = self.unmerged().saturating_sub(before);
            tracing::info!(pages, left = self.merged(), took = ?began.elapsed(), "unmerged");
        }
        match &done {
            Ok(()) => tracing::info!(%knob, value, "set"),
            Err(error) => tracing::warn!(%knob, value, %error, "not set"),
        }
        if done.is_err() {
            self.restore(turn);
        } else if is_unmerging {
            self.scans.reset();
        }
        done
    }

    /// Pages that are merged.
    fn merged(&self) -> u64 {
        self.all_domains().iter().map(|domain| merged_in(domain)).sum()
    }

    /// Pages that were given memory of their own again, in all.
    fn unmerged(&self) -> u64 {
        self.all_domains().iter().map(|domain| domain.engine().work().unmerged).sum()
    }

    fn begin(&self, knob: Knob, value: u64) -> Result<Turn, KnobError> {
        let mut registry = self.domains.lock();
        if knob == Knob::PagesToScan && registry.is_advised() {
            return Err(KnobError::Advised);
        }
        let before = registry.value(knob);
        registry.settings.insert(knob, value);
        if knob == Knob::AdvisorMode && before != value {
            // An advisor begins with its least as it is now, as each domain's does.
            if value == ADVISOR_SCAN_TIME {
                let least = registry.value(Knob::AdvisorMinPagesToScan).min(u32::MAX.into());
                registry.settings.insert(Knob::PagesToScan, least);
            } else {
                registry.settings.remove(&Knob::PagesToScan);
            }
        }
        if knob == Knob::Run {
            registry.runs += 1;
        }
        Ok(Turn { knob, value, before, run: registry.runs })
    }

    /// Whether nobody has set it since.
    fn is_last(&self, turn: Turn) -> bool {
        let registry = self.domains.lock();
        let is_same_run = turn.knob != Knob::Run || registry.runs == turn.run;
        registry.settings.get(&turn.knob) == Some(&turn.value) && is_same_run
    }

    fn set_everywhere(&self, turn: Turn, patience: Duration) -> Result<(), KnobError> {
        let mut failed = Ok(());
        for domain in self.all_domains() {
            if !self.is_last(turn) {
                return Err(KnobError::Unmerge(UnmergeError::Interrupted));
            }
            let done = self.set_in(&domain, turn, patience);
            if turn.knob == Knob::Run {
                self.follow(&domain);
            }
            if done.is_err() && failed.is_ok() {
                failed = done;
                // Each domain is unmerged as far as it goes.
                if !matches!((turn.knob, turn.value), (Knob::Run, 2)) {
                    break;
                }
            }
        }
        failed
    }

    /// Sets a knob of one domain. The engine waits for no client that does not answer at once, so that it
    /// can't unmerge those that are busy; they are waited for here, where nobody else waits, and asked
    /// again for as long as some of it gets done: on a busy machine each time some answers are late.
    fn set_in(
        &self,
        domain: &Arc<Domain>,
        turn: Turn,
        patience: Duration,
    ) -> Result<(), KnobError> {
        let mut silent = BTreeSet::new();
        let (mut least, mut since) = (u64::MAX, Instant::now());
        loop {
            match domain.engine().set(turn.knob, turn.value) {
                Err(error) if is_silence(&error) => {}
                done => return done,
            }
            let left = merged_in(domain);
            tracing::debug!(domain = %domain.id(), pages = left, "unmerging: waits for answers");
            if left < least {
                (least, since) = (left, Instant::now());
            }
            let mut clients = self.clients_of(domain);
            // Once is enough for all of this.
            clients.retain(|client| !silent.contains(&client.pid));
            for client in self.wait_for_answers(&clients, || self.is_last(turn)) {
                tracing::warn!(pid = client.pid, uid = client.user, "does not answer");
                silent.insert(client.pid);
            }
            if !self.is_last(turn) || self.waits_to_stop(PAUSE) {
                return Err(KnobError::Unmerge(UnmergeError::Interrupted));
            }
            if since.elapsed() >= patience {
                return Err(KnobError::Unmerge(UnmergeError::Memory(MemoryError::NoAnswer)));
            }
        }
    }

    /// Has a domain's `run` be what was set last, where several set it at once. Who sets 2 does so itself.
    fn follow(&self, domain: &Domain) {
        loop {
            let (value, runs) = {
                let registry = self.domains.lock();
                (registry.value(Knob::Run), registry.runs)
            };
            if value == 2 || domain.engine().knob(Knob::Run) == value {
                return;
            }
            // 0 and 1 are values that it takes.
            let _ = domain.engine().set(Knob::Run, value);
            if self.domains.lock().runs == runs {
                return;
            }
        }
    }

    /// Sets a knob that could not be set everywhere back to what it was, if nobody has set it since; `run`
    /// to 0.
    fn restore(&self, turn: Turn) {
        let restored = if turn.knob == Knob::Run { 0 } else { turn.before };
        if self.replace(turn, restored) {
            for domain in self.all_domains() {
                // What has the value already is no failure, and what has not did not change.
                let _ = domain.engine().set(turn.knob, restored);
                if turn.knob == Knob::Run {
                    self.follow(&domain);
                }
            }
        }
    }

    /// False if somebody has set it since.
    fn replace(&self, turn: Turn, value: u64) -> bool {
        let mut registry = self.domains.lock();
        if registry.settings.get(&turn.knob) != Some(&turn.value)
            || (turn.knob == Knob::Run && registry.runs != turn.run)
        {
            return false;
        }
        registry.settings.insert(turn.knob, value);
        if turn.knob == Knob::Run {
            registry.runs += 1;
        }
        true
    }

    /// Has unmerging that is under way end: see [`crate::Server::interrupt_unmerging`].
    pub(crate) fn interrupt_unmerging(&self) {
        {
            let mut registry = self.domains.lock();
            if registry.value(Knob::Run) != 2 {
                return;
            }
            registry.settings.insert(Knob::Run, 0);
            registry.runs += 1;
        }
        self.all_domains().iter().for_each(|domain| self.follow(domain));
    }
}

/// Pages of a domain that are merged.
fn merged_in(domain: &Domain) -> u64 {
    let counters = domain.engine().counters();
    counters.pages_shared + counters.pages_sharing + counters.ksm_zero_pages
}

fn is_silence(error: &KnobError) -> bool {
    matches!(error, KnobError::Unmerge(UnmergeError::Memory(MemoryError::NoAnswer)))
}
