//! The advisor: sets `pages_to_scan` so that a full scan takes the time wanted, within a limit on what
//! scanning takes of the CPUs.
//!
//! Nearly all of a scan is the rests between its batches. So one that took twice the time wanted takes
//! about the time wanted with batches twice as large. What it needs of a CPU grows with the batches, too:
//! where that would be more than is allowed, scans take longer than wanted. As scans look at what
//! changed, which varies, the batches' size follows by steps of half the way.
//!
//! What scanning takes of the CPUs is the CPU time of the shards' scanners and of their pools' threads, all
//! added; 100 % are one CPU. What programs do when they are asked to merge pages is theirs.

use std::time::{Duration, Instant};

use crate::core::Core;
use crate::knobs::{ADVISOR_SCAN_TIME, Knob};

/// Where the scan that is under way began.
#[derive(Debug)]
pub(crate) struct Began {
    at: Instant,
    /// CPU time that scanning had taken.
    cpu: Duration,
}

impl Default for Began {
    fn default() -> Self {
        Self { at: Instant::now(), cpu: Duration::ZERO }
    }
}

/// What a full scan took.
#[derive(Clone, Copy, Debug)]
struct Scan {
    pages_to_scan: u64,
    took: Duration,
    cpu: Duration,
}

/// What the advisor is to keep to.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    target: Duration,
    max_cpu_percent: u64,
    min_pages: u64,
    max_pages: u64,
}

/// The `pages_to_scan` for the next scan.
fn advise(scan: Scan, wanted: Wanted) -> u64 {
    let Scan { pages_to_scan, took, cpu } = scan;
    let now = u128::from(pages_to_scan.max(1));
    let for_target = now * took.as_micros() / wanted.target.as_micros().max(1);
    let halfway = (now + for_target).div_ceil(2);
    // With batches larger by a factor, scanning takes a larger share of the CPUs by it.
    let allowed = took.as_micros() * u128::from(wanted.max_cpu_percent) / 100;
    let affordable = now * allowed / cpu.as_micros().max(1);
    let pages = u64::try_from(halfway.min(affordable)).unwrap_or(u64::MAX);
    pages.min(wanted.max_pages).max(wanted.min_pages.min(wanted.max_pages)).min(u32::MAX.into())
}

impl Core {
    /// Whether `pages_to_scan` is the advisor's to set.
    pub(crate) fn is_advised(&self) -> bool {
        self.knobs.get(Knob::AdvisorMode) == ADVISOR_SCAN_TIME
    }

    /// Who comes begins anew: the advisor with its least, whoever sets it by hand with the default.
    pub(crate) fn set_advisor_mode(&self, mode: u64) {
        // Held, so that no scan that ends now sets what is set here.
        let mut began = self.scan_began();
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
        *began = self.scan_begins();
    }

    /// A scan begins now, whatever was before: scanning had been stopped.
    pub(crate) fn begin_to_advise(&self) {
        *self.scan_began() = self.scan_begins();
    }

    fn scan_begins(&self) -> Began {
        Began { at: Instant::now(), cpu: self.shards.iter().map(|shard| shard.cpu.total()).sum() }
    }

    /// A full scan is over.
    pub(crate) fn advise(&self) {
        let mut began = self.scan_began();
        // Who switches it on begins anew.
        if !self.is_advised() {
            return;
        }
        let now = self.scan_begins();
        let last = std::mem::replace(&mut *began, now);
        let scan = Scan {
            pages_to_scan: self.knobs.get(Knob::PagesToScan),
            took: began.at.duration_since(last.at),
            cpu: began.cpu.saturating_sub(last.cpu),
        };
        let wanted = Wanted {
            target: Duration::from_secs(self.knobs.get(Knob::AdvisorTargetScanTime)),
            max_cpu_percent: self.knobs.get(Knob::AdvisorMaxCpu),
            min_pages: self.knobs.get(Knob::AdvisorMinPagesToScan),
            max_pages: self.knobs.get(Knob::AdvisorMaxPagesToScan),
        };
        self.knobs.set(Knob::PagesToScan, advise(scan, wanted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Wanted = Wanted {
        target: Duration::from_secs(200),
        max_cpu_percent: 70,
        min_pages: 500,
        max_pages: 30_000,
    };

    /// A scan of so many pages, with 20 ms of rest after each batch.
    fn scan(pages: u64, page: Duration, pages_to_scan: u64) -> Scan {
        let batches = u32::try_from(pages.div_ceil(pages_to_scan)).unwrap();
        let cpu = page * u32::try_from(pages).unwrap();
        Scan { pages_to_scan, took: cpu + Duration::from_millis(20) * batches, cpu }
    }

    fn settle(pages: u64, page: Duration, wanted: Wanted) -> Scan {
        let first = scan(pages, page, wanted.min_pages);
        (0..50).fold(first, |last, _| scan(pages, page, advise(last, wanted)))
    }

    #[test]
    fn s5_4_full_scans_come_to_take_the_time_wanted() {
        for (pages, page_nanos) in [(20_000_000, 800), (60_000_000, 600), (10_000_000, 2000)] {
            let settled = settle(pages, Duration::from_nanos(page_nanos), DEFAULTS);
            let seconds = settled.took.as_secs_f64();
            assert!((190.0..=210.0).contains(&seconds), "{pages} pages: {settled:?}");
        }
    }

    #[test]
    fn s5_4_scanning_takes_no_more_of_a_cpu_than_allowed() {
        // All of it in the time wanted would take a whole CPU.
        let wanted = Wanted { max_cpu_percent: 25, ..DEFAULTS };
        let settled = settle(20_000_000, Duration::from_micros(10), wanted);
        let share = settled.cpu.as_secs_f64() / settled.took.as_secs_f64();
        assert!((0.15..=0.26).contains(&share), "{share}: {settled:?}");
    }

    #[test]
    fn s5_4_pages_to_scan_stays_within_what_the_advisor_may_set() {
        let nothing = Duration::from_nanos(1);
        assert_eq!(settle(1000, nothing, DEFAULTS).pages_to_scan, 500);
        assert_eq!(settle(4_000_000_000, nothing, DEFAULTS).pages_to_scan, 30_000);
        let odd = Wanted { min_pages: 900, max_pages: 100, max_cpu_percent: 0, ..DEFAULTS };
        assert_eq!(settle(4_000_000_000, nothing, odd).pages_to_scan, 100);
        let none = Wanted { min_pages: 0, max_pages: 0, ..DEFAULTS };
        assert_eq!(advise(scan(1000, nothing, 500), none), 0);
        let most = Wanted { min_pages: u64::MAX, max_pages: u64::MAX, ..DEFAULTS };
        assert_eq!(advise(scan(1000, nothing, 500), most), u64::from(u32::MAX));
    }
}
