//! Programs that take their time, fail, and answer late; and what they wrote.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use numerge_engine::Nid;
use numerge_engine::in_memory::{Content, Machine};
use numerge_engine::machine::{MemoryError, Outcome, Vpn};
use parking_lot::{Mutex, MutexGuard};

use crate::hooked::{Call, Hooked, Hooks, broken};

/// SplitMix64.
#[derive(Debug)]
pub(crate) struct Random(AtomicU64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    pub(crate) fn below(&self, n: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }

    pub(crate) fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What one program does beside what it is asked: its calls take time now and then, and fail if
/// `faults` says so.
pub(crate) struct Chance {
    random: Random,
    pub(crate) faults: AtomicBool,
    /// Some merges are carried out and answered later.
    pub(crate) late: AtomicBool,
    /// For a while nothing is carried out.
    pub(crate) stopped: AtomicBool,
}

pub(crate) type Program = Hooked<Chance>;

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        let [faults, late, stopped] = [false; 3].map(AtomicBool::new);
        Self { random: Random::new(seed), faults, late, stopped }
    }

    fn dawdle(&self) {
        if self.random.one_in(4) {
            std::thread::yield_now();
        }
        if self.random.one_in(200) {
            std::thread::sleep(Duration::from_micros(self.random.below(300)));
        }
    }

    fn fails(&self, call: Call) -> bool {
        let only = std::env::var("NUMERGE_STRESS_ONLY");
        let wanted = only.map_or(true, |only| only.split(',').any(|it| it == format!("{call:?}")));
        self.faults.load(SeqCst) && wanted && self.random.one_in(30)
    }
}

impl Hooks for Chance {
    fn before(&self, call: Call, _: &[Range<u64>]) -> Result<(), MemoryError> {
        self.dawdle();
        match call {
            Call::Unmerge if self.stopped.load(SeqCst) => Err(MemoryError::NoAnswer),
            // Half of what is asked is done, and what is left may be later.
            Call::Unmerge if self.fails(call) => Err(match self.random.below(2) {
                0 => MemoryError::OutOfMemory,
                _ => MemoryError::NoAnswer,
            }),
            // A page merged late is never left alone, and what the pools do does not fail.
            Call::Merge | Call::NodeOfFrame | Call::NodesOfFrames => Ok(()),
            _ if self.fails(call) => Err(broken()),
            _ => Ok(()),
        }
    }

    fn after(&self, call: Call, _: &[Range<u64>]) -> Result<(), MemoryError> {
        self.dawdle();
        // Of the last page nothing is said, or of the second half.
        if matches!(call, Call::Read | Call::Merge) && self.fails(call) {
            Err(broken())
        } else {
            Ok(())
        }
    }

    fn outcome(&self, _: Vpn) -> Option<Outcome> {
        self.dawdle();
        if self.fails(Call::Merge) {
            let outcomes = [Outcome::Pinned, Outcome::Exhausted, Outcome::Refused];
            return Some(outcomes[usize::try_from(self.random.below(3)).unwrap()]);
        }
        let late = self.late.load(SeqCst);
        (late && (self.stopped.load(SeqCst) || self.random.one_in(4))).then_some(Outcome::Late)
    }
}

/// What the programs wrote, page by page. A writer holds a page's lock while it writes to it.
pub(crate) struct Contents(pub(crate) Vec<Mutex<Option<Content>>>);

impl Contents {
    pub(crate) fn check(&self, machine: &Machine, page: u64) {
        let content = self.0[usize::try_from(page).unwrap()].lock();
        assert_eq!(machine.read(Vpn(page)), content.unwrap_or(0), "page {page} changed");
    }

    pub(crate) fn write(&self, machine: &Machine, page: u64, content: Content, nid: Nid) {
        let mut known = self.0[usize::try_from(page).unwrap()].lock();
        assert_eq!(machine.read(Vpn(page)), known.unwrap_or(0), "page {page} changed");
        machine.write(Vpn(page), content, nid);
        *known = Some(content);
    }

    pub(crate) fn discard(&self, machine: &Machine, page: u64) {
        let mut known = self.0[usize::try_from(page).unwrap()].lock();
        assert_eq!(machine.read(Vpn(page)), known.unwrap_or(0), "page {page} changed");
        machine.discard(Vpn(page));
        *known = None;
    }

    /// Nobody writes to any of the pages before the engine knows that they are others.
    pub(crate) fn vanish(&self, program: &Program, pages: &Range<Vpn>, tell: impl FnOnce()) {
        let all = pages.start.0..pages.end.0;
        let mut known: Vec<MutexGuard<'_, Option<Content>>> =
            all.map(|page| self.0[usize::try_from(page).unwrap()].lock()).collect();
        program.vanish(pages, tell);
        known.iter_mut().for_each(|known| **known = None);
    }
}
