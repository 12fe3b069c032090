//! A program whose memory is merged, and how many mappings that may take.
//!
//! Every run of merged pages that stands alone costs its program up to two mappings, and a program
//! that has used up `vm.max_map_count` fails in ways its authors never saw. So the engine keeps all
//! mappings of a program below a set share of the limit, the program's own included. Counting them
//! is slow where there are many; between counts the worst is assumed of each run.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::counters::Counter;
use crate::machine::{Mappings, Memory, MemoryError};

/// Mappings that a run may add: what it lies in is cut in three.
pub(crate) const MAPPINGS_A_RUN: u64 = 2;

/// How often in a row, and for how long, a program's mappings may get no answer before it counts as one that has too
/// many: it may be for ever, and what is only deferred is tried in each pass and waited for. Milliseconds.
const DEFERRALS: u32 = 3;
const UNCOUNTED_MS: u32 = 4000;

#[derive(Default)]
struct Ledger {
    counted: Option<Mappings>,
    /// What runs may have added since.
    added: u64,
    /// How many counts in a row got no answer, and when, by the engine's clock, the first did.
    unanswered: u32,
    uncounted_ms: u32,
}

/// How many of the runs that it wants a program may have.
pub(crate) enum Leave {
    Runs(u64),
    /// Nobody can tell at the moment.
    Later,
}

/// One program.
pub(crate) struct Program {
    pub(crate) memory: Arc<dyn Memory>,
    share_percent: u64,
    ledger: Mutex<Ledger>,
    /// Its pages mapped to frames, and those to the page of zeros.
    pub(crate) merged: Counter,
    pub(crate) zero: Counter,
    /// Its merged pages found written to since, in all.
    pub(crate) broken: Counter,
    /// Its pages that a scan has found memory at.
    pub(crate) touched: Counter,
}

/// What merging did to one program.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ProgramCounters {
    /// Its pages that are mapped to frames.
    pub pages_merged: u64,
    /// Its pages merged with the machine's page of zeros.
    pub ksm_zero_pages: u64,
    /// Its part of the pages saved, an estimate: of [`crate::Counters::pages_sharing`] as much as it has
    /// of all merged pages, as though each frame had as many sharers, and its pages of zeros. Those of
    /// all programs add up to what the engine saves, but for what is lost by rounding down.
    pub pages_saved: u64,
    /// Its merged pages found written to since, in all.
    pub pages_broken: u64,
    /// Its pages that a scan has found memory at, and that are looked after: merged, or perhaps to be.
    pub pages_touched: u64,
}

impl Program {
    pub(crate) fn new(memory: Arc<dyn Memory>, share_percent: u64) -> Self {
        Self {
            memory,
            share_percent,
            ledger: Mutex::default(),
            merged: Counter::default(),
            zero: Counter::default(),
            broken: Counter::default(),
            touched: Counter::default(),
        }
    }

    /// `shared` and `sharing` are those of all programs together.
    pub(crate) fn counters(&self, shared: u64, sharing: u64) -> ProgramCounters {
        let (pages_merged, ksm_zero_pages) = (self.merged.get(), self.zero.get());
        // The three may be of slightly different moments: no more than all of its pages is saved.
        let all = u128::from(shared + sharing).max(pages_merged.into()).max(1);
        let part = u128::from(pages_merged) * u128::from(sharing) / all;
        let part = u64::try_from(part).unwrap_or(pages_merged);
        ProgramCounters {
            pages_merged,
            ksm_zero_pages,
            pages_saved: part + ksm_zero_pages,
            pages_broken: self.broken.get(),
            pages_touched: self.touched.get(),
        }
    }

    /// Mappings that it may have, its own included, before merging adds no more.
    pub(crate) const fn budget(&self, limit: u64) -> u64 {
        limit / 100 * self.share_percent
    }

    /// Takes leave to merge up to `wanted` runs. `late` counts those that the program has leave for and may map
    /// at any moment. Where its mappings can't be counted, and that is not to change soon, the room left by the last
    /// count is all there is.
    pub(crate) fn take_runs(
        &self,
        wanted: u64,
        now_ms: u32,
        late: impl FnOnce() -> u64,
        errors: &mut Vec<MemoryError>,
    ) -> Leave {
        let mut ledger = self.ledger.lock();
        if self.room(&ledger) < wanted {
            // Counted first: what is mapped in between counts twice, and never not at all.
            let added = late() * MAPPINGS_A_RUN;
            match self.memory.mappings() {
                Ok(counted) => {
                    *ledger = Ledger { counted: Some(counted), added, ..Ledger::default() };
                }
                Err(error) => {
                    let is_passing = matches!(error, MemoryError::NoAnswer);
                    errors.push(error);
                    if ledger.unanswered == 0 {
                        ledger.uncounted_ms = now_ms;
                    }
                    ledger.unanswered = ledger.unanswered.saturating_add(u32::from(is_passing));
                    let waited = now_ms.wrapping_sub(ledger.uncounted_ms);
                    if is_passing && (ledger.unanswered <= DEFERRALS || waited < UNCOUNTED_MS) {
                        return Leave::Later;
                    }
                }
            }
        }
        let given = wanted.min(self.room(&ledger));
        ledger.added += given * MAPPINGS_A_RUN;
        Leave::Runs(given)
    }

    /// Runs that there is room for, by the last count.
    fn room(&self, ledger: &Ledger) -> u64 {
        ledger.counted.map_or(0, |Mappings { used, limit }| {
            self.budget(limit).saturating_sub(used + ledger.added) / MAPPINGS_A_RUN
        })
    }
}
