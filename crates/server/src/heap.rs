//! When memory that merges took for a moment goes back to the machine.

use std::time::{Duration, Instant};

/// Pages that must have been tried to merge since the last time.
const PAGES: u64 = 1 << 14;
/// The least time since.
const REST: Duration = Duration::from_secs(10);

/// The last time.
#[derive(Default)]
pub(crate) struct Trims {
    attempted: u64,
    at: Option<Instant>,
}

impl Trims {
    /// Gives it back, if there may be much and it is not too soon. To be called when all is merged, with how
    /// many pages were tried to merge in all.
    pub(crate) fn trim_if_due(&mut self, attempted: u64) {
        if self.is_due(attempted, Instant::now()) {
            numerge_linux::trim_heap();
        }
    }

    fn is_due(&mut self, attempted: u64, now: Instant) -> bool {
        let rested = self.at.is_none_or(|at| now.duration_since(at) >= REST);
        // Less, where a domain has ended.
        let is_due = rested && attempted.abs_diff(self.attempted) >= PAGES;
        if is_due {
            *self = Self { attempted, at: Some(now) };
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_due_after_many_merges_and_a_rest() {
        let (mut trims, began) = (Trims::default(), Instant::now());
        assert!(!trims.is_due(PAGES - 1, began), "few");
        assert!(trims.is_due(PAGES, began));
        assert!(!trims.is_due(PAGES, began + REST), "none since");
        assert!(!trims.is_due(2 * PAGES, began + REST / 2), "too soon");
        assert!(trims.is_due(2 * PAGES, began + REST));
        assert!(trims.is_due(0, began + REST * 2), "a domain has ended");
    }
}
