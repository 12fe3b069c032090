//! A program whose memory is merged, and how many mappings that may take.
//!
//! Every run of merged pages that stands alone costs its program up to two mappings, and a program
//! that has used up `vm.max_map_count` fails in ways its authors never saw. So the engine keeps all
//! mappings of a program below a set share of the limit, the program's own included. Counting them
//! is slow where there are many; between counts the worst is assumed of each run.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::machine::{Mappings, Memory, MemoryError};

/// Mappings that a run may add: what it lies in is cut in three.
pub(crate) const MAPPINGS_A_RUN: u64 = 2;

#[derive(Default)]
struct Ledger {
    counted: Option<Mappings>,
    /// What runs may have added since.
    added: u64,
}

/// One program.
pub(crate) struct Program {
    pub(crate) memory: Arc<dyn Memory>,
    share_percent: u64,
    ledger: Mutex<Ledger>,
}

impl Program {
    pub(crate) fn new(memory: Arc<dyn Memory>, share_percent: u64) -> Self {
        Self { memory, share_percent, ledger: Mutex::default() }
    }

    /// Takes leave to merge up to `wanted` runs; gives how many may be. `late` counts those that the
    /// program has leave for and may map at any moment.
    pub(crate) fn take_runs(
        &self,
        wanted: u64,
        late: impl FnOnce() -> u64,
    ) -> Result<u64, MemoryError> {
        let mut ledger = self.ledger.lock();
        if self.room(&ledger) < wanted {
            // Counted first: what is mapped in between counts twice, and never not at all.
            let added = late() * MAPPINGS_A_RUN;
            *ledger = Ledger { counted: Some(self.memory.mappings()?), added };
        }
        let given = wanted.min(self.room(&ledger));
        ledger.added += given * MAPPINGS_A_RUN;
        Ok(given)
    }

    /// Runs that there is room for, by the last count.
    fn room(&self, ledger: &Ledger) -> u64 {
        ledger.counted.map_or(0, |Mappings { used, limit }| {
            let ours = limit / 100 * self.share_percent;
            ours.saturating_sub(used + ledger.added) / MAPPINGS_A_RUN
        })
    }
}
