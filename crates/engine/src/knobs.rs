//! The knobs of SEMANTICS S5 that steer merging, under the kernel's names, with its defaults,
//! ranges and error codes.
//!
//! Only values live here. What a change needs of the engine (that nothing is shared, that scanning
//! stops) is the engine's business, in `control`.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

/// A setting of the engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(usize)]
pub enum Knob {
    /// 0 stops, 1 scans, 2 stops and unmerges everything. Default 0.
    Run,
    /// Pages looked at in a batch; 0: none are. Default 100. While the advisor is at work it is the
    /// advisor's to set.
    PagesToScan,
    /// Rest after a batch in milliseconds; 0: none. Default 20.
    SleepMillisecs,
    /// The most pages one frame is mapped to, at least 2. Default 256. Changes only while nothing
    /// is shared.
    MaxPageSharing,
    /// The least time between two prunes of one chain, in milliseconds. Default 2000.
    StableNodeChainsPruneMillisecs,
    /// 1: pages of all nodes are merged with each other. 0: only within their node. Default 1.
    /// Changes only while nothing is shared.
    MergeAcrossNodes,
    /// 1: pages of zeros are mapped to the machine's own page of zeros. Default 0.
    UseZeroPages,
    /// 1: pages that were not merged in several looks are looked at more rarely. Default 1.
    SmartScan,
    /// Who sets `pages_to_scan`: [`ADVISOR_NONE`], or [`ADVISOR_SCAN_TIME`] for the advisor. Default:
    /// nobody.
    AdvisorMode,
    /// The most of a CPU that the advisor lets scanning take, in percent. Default 70.
    AdvisorMaxCpu,
    /// The `pages_to_scan` that the advisor begins with. Default 500.
    AdvisorMinPagesToScan,
    /// The most that the advisor sets `pages_to_scan` to. Default 30 000.
    AdvisorMaxPagesToScan,
    /// How long a full scan is to take by the advisor, in seconds, at least 1. Default 200.
    AdvisorTargetScanTime,
}

/// [`Knob::AdvisorMode`]: `pages_to_scan` is as it was set.
pub const ADVISOR_NONE: u64 = 0;
/// [`Knob::AdvisorMode`]: `pages_to_scan` is such that a full scan takes the time wanted.
pub const ADVISOR_SCAN_TIME: u64 = 1;

struct Limits {
    name: &'static str,
    default: u64,
    least: u64,
    most: u64,
}

const U32: u64 = u32::MAX as u64;

impl Knob {
    /// Every knob.
    pub const ALL: [Self; 13] = [
        Self::Run,
        Self::PagesToScan,
        Self::SleepMillisecs,
        Self::MaxPageSharing,
        Self::StableNodeChainsPruneMillisecs,
        Self::MergeAcrossNodes,
        Self::UseZeroPages,
        Self::SmartScan,
        Self::AdvisorMode,
        Self::AdvisorMaxCpu,
        Self::AdvisorMinPagesToScan,
        Self::AdvisorMaxPagesToScan,
        Self::AdvisorTargetScanTime,
    ];

    const fn limits(self) -> Limits {
        let (name, default, least, most) = match self {
            Self::Run => ("run", 0, 0, 2),
            Self::PagesToScan => ("pages_to_scan", 100, 0, U32),
            Self::SleepMillisecs => ("sleep_millisecs", 20, 0, U32),
            Self::MaxPageSharing => ("max_page_sharing", 256, 2, i32::MAX as u64),
            Self::StableNodeChainsPruneMillisecs => {
                ("stable_node_chains_prune_millisecs", 2000, 0, U32)
            }
            Self::MergeAcrossNodes => ("merge_across_nodes", 1, 0, 1),
            Self::UseZeroPages => ("use_zero_pages", 0, 0, 1),
            Self::SmartScan => ("smart_scan", 1, 0, 1),
            Self::AdvisorMode => ("advisor_mode", ADVISOR_NONE, ADVISOR_NONE, ADVISOR_SCAN_TIME),
            Self::AdvisorMaxCpu => ("advisor_max_cpu", 70, 0, U32),
            Self::AdvisorMinPagesToScan => ("advisor_min_pages_to_scan", 500, 0, u64::MAX),
            Self::AdvisorMaxPagesToScan => ("advisor_max_pages_to_scan", 30_000, 0, u64::MAX),
            Self::AdvisorTargetScanTime => ("advisor_target_scan_time", 200, 1, u64::MAX),
        };
        Limits { name, default, least, most }
    }

    /// The kernel's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.limits().name
    }

    /// The knob of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|knob| knob.name() == name)
    }

    /// Whether it changes only while nothing is shared.
    pub(crate) const fn needs_nothing_shared(self) -> bool {
        matches!(self, Self::MaxPageSharing | Self::MergeAcrossNodes)
    }

    /// The value that it has before it is set.
    #[must_use]
    pub const fn default_value(self) -> u64 {
        self.limits().default
    }

    /// The values that it takes.
    #[must_use]
    pub const fn range(self) -> RangeInclusive<u64> {
        let Limits { least, most, .. } = self.limits();
        least..=most
    }

    /// Whether a value is in its range.
    ///
    /// # Errors
    /// [`KnobError::Invalid`].
    pub fn check(self, value: u64) -> Result<(), KnobError> {
        let Limits { least, most, .. } = self.limits();
        if (least..=most).contains(&value) {
            Ok(())
        } else {
            Err(KnobError::Invalid { knob: self, value, least, most })
        }
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a knob kept its value.
#[derive(Debug, thiserror::Error)]
pub enum KnobError {
    /// The value is out of range (the kernel's EINVAL).
    #[error("{knob} can't be {value}: allowed is {least} to {most}")]
    Invalid {
        /// The knob.
        knob: Knob,
        /// What it was to be.
        value: u64,
        /// The least value it takes.
        least: u64,
        /// The largest value it takes.
        most: u64,
    },
    /// The knob changes only while nothing is shared (the kernel's EBUSY).
    #[error("{knob} can't change while {shared} frames are shared: set run to 2 first")]
    Busy {
        /// The knob.
        knob: Knob,
        /// Frames in use.
        shared: u64,
    },
    /// `pages_to_scan` is the advisor's to set (the kernel's EINVAL).
    #[error("pages_to_scan can't change while advisor_mode is scan-time: set that to none first")]
    Advised,
    /// Unmerging for run=2 did not finish.
    #[error("run=2: {0}")]
    Unmerge(#[from] crate::UnmergeError),
}

/// The values of all knobs.
#[derive(Debug)]
pub(crate) struct Knobs([AtomicU64; Knob::ALL.len()]);

impl Default for Knobs {
    fn default() -> Self {
        Self(Knob::ALL.map(|knob| AtomicU64::new(knob.default_value())))
    }
}

impl Knobs {
    pub(crate) fn get(&self, knob: Knob) -> u64 {
        self.0[knob as usize].load(Ordering::SeqCst)
    }

    /// The value of a knob whose range fits 32 bits.
    pub(crate) fn get_u32(&self, knob: Knob) -> u32 {
        u32::try_from(self.get(knob)).unwrap_or(u32::MAX)
    }

    pub(crate) fn is_on(&self, knob: Knob) -> bool {
        self.get(knob) == 1
    }

    pub(crate) fn set(&self, knob: Knob, value: u64) {
        self.0[knob as usize].store(value, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s5_4_knobs_have_the_kernels_names_and_defaults() {
        let knobs = Knobs::default();
        let defaults = Knob::ALL.map(|knob| (knob.name(), knobs.get(knob)));
        assert_eq!(
            defaults,
            [
                ("run", 0),
                ("pages_to_scan", 100),
                ("sleep_millisecs", 20),
                ("max_page_sharing", 256),
                ("stable_node_chains_prune_millisecs", 2000),
                ("merge_across_nodes", 1),
                ("use_zero_pages", 0),
                ("smart_scan", 1),
                ("advisor_mode", ADVISOR_NONE),
                ("advisor_max_cpu", 70),
                ("advisor_min_pages_to_scan", 500),
                ("advisor_max_pages_to_scan", 30_000),
                ("advisor_target_scan_time", 200),
            ]
        );
        for knob in Knob::ALL {
            assert_eq!(Knob::from_name(knob.name()), Some(knob));
        }
        assert_eq!(Knob::from_name("Run"), None);
    }

    #[test]
    fn s5_4_values_out_of_range_are_named_with_what_is_allowed() {
        let refused = |knob: Knob, value| knob.check(value).unwrap_err().to_string();
        assert_eq!(refused(Knob::Run, 3), "run can't be 3: allowed is 0 to 2");
        assert_eq!(
            refused(Knob::MaxPageSharing, 1),
            "max_page_sharing can't be 1: allowed is 2 to 2147483647"
        );
        assert_eq!(
            refused(Knob::StableNodeChainsPruneMillisecs, 1 << 32),
            "stable_node_chains_prune_millisecs can't be 4294967296: allowed is 0 to 4294967295"
        );
        assert!(Knob::StableNodeChainsPruneMillisecs.check(U32).is_ok());
        assert!(Knob::AdvisorTargetScanTime.check(0).is_err());
    }
}
