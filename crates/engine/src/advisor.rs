//! The advisor: sets `pages_to_scan` so that a full scan takes the time wanted.

use crate::core::Core;
use crate::knobs::{ADVISOR_SCAN_TIME, Knob};

impl Core {
    /// Whether `pages_to_scan` is the advisor's to set.
    pub(crate) fn is_advised(&self) -> bool {
        self.knobs.get(Knob::AdvisorMode) == ADVISOR_SCAN_TIME
    }

    /// Who comes begins anew: the advisor with its least, whoever sets it by hand with the default.
    pub(crate) fn set_advisor_mode(&self, mode: u64) {
        if self.knobs.get(Knob::AdvisorMode) == mode {
            return;
        }
        self.knobs.set(Knob::AdvisorMode, mode);
        let pages = if mode == ADVISOR_SCAN_TIME {
            self.knobs.get(Knob::AdvisorMinPagesToScan).min(u32::MAX.into())
        } else {
            Knob::PagesToScan.default_value()
        };
        self.knobs.set(Knob::PagesToScan, pages);
    }
}
