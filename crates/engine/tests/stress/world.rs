//! What happens beside the engine: what the programs do, and the operating system.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use numerge_engine::in_memory::Machine;
use numerge_engine::machine::{Frames, Vpn};
use numerge_engine::{Engine, Kpfn, RegionHandle};

use crate::bed::NIDS;
use crate::programs::{Contents, Program, Random};

pub(crate) const PROGRAMS: u64 = 2;
pub(crate) const REGIONS: u64 = 6;
pub(crate) const REGION_PAGES: u64 = 300;
pub(crate) const PAGES: u64 = REGIONS * REGION_PAGES;

pub(crate) struct World {
    pub(crate) machine: Arc<Machine>,
    pub(crate) programs: Vec<Arc<Program>>,
    pub(crate) contents: Contents,
}

impl World {
    pub(crate) fn program(&self, region: u64) -> &Arc<Program> {
        &self.programs[usize::try_from(region % PROGRAMS).unwrap()]
    }

    /// Unregisters or registers a region, or unmaps some of its pages.
    pub(crate) fn come_and_go(
        &self,
        random: &Random,
        region: u64,
        slot: &mut Option<RegionHandle>,
        register: impl Fn(u64) -> Option<RegionHandle>,
    ) {
        match slot {
            None => *slot = register(region),
            Some(handle) if random.one_in(2) => {
                let Range { start, end } = handle.pages();
                let first = start.plus(random.below(REGION_PAGES));
                let pages = first..end.min(first.plus(1 + random.below(60)));
                let tell = || handle.vanished(pages.clone());
                self.contents.vanish(self.program(region), &pages, tell);
            }
            // On failure it is registered still.
            Some(handle) => {
                if handle.unregister().is_ok() {
                    *slot = None;
                }
            }
        }
    }
}

pub(crate) fn region_pages(region: u64) -> Range<Vpn> {
    Vpn(region * REGION_PAGES)..Vpn((region + 1) * REGION_PAGES)
}

/// The programs and the operating system.
pub(crate) fn disturb(world: &World, random: &Random, discards: bool) {
    let World { machine, programs, contents, .. } = world;
    let page = random.below(PAGES);
    let nid = NIDS[usize::try_from(random.below(3)).unwrap()];
    match random.below(100) {
        0..35 => contents.write(machine, page, random.below(12), nid),
        // Equal runs.
        35..45 => {
            let count = random.below(20);
            let first = random.below(4) * 10;
            for at in 0..count.min(PAGES - page) {
                contents.write(machine, page + at, 100 + first + at, nid);
            }
        }
        // The same again.
        45..60 => {
            let mut known = contents.0[usize::try_from(page).unwrap()].lock();
            if let Some(content) = *known {
                machine.write(Vpn(page), content, nid);
                *known = Some(content);
            }
        }
        60..63 if discards => contents.discard(machine, page),
        63..68 => machine.pin(Vpn(page), random.one_in(2)),
        68..76 => machine.move_page(Vpn(page), nid),
        76..84 => {
            let frames = machine.frames();
            if let Some((kpfn, ..)) =
                frames.get(usize::try_from(page).unwrap() % frames.len().max(1))
            {
                machine.try_move_frame(*kpfn, nid);
            }
        }
        84 => machine.limit(random.below(20), u64::MAX),
        85 => machine.limit(u64::MAX, u64::MAX),
        86..92 => {
            let program = &programs[usize::try_from(page % PROGRAMS).unwrap()];
            if program.hooks.stopped.load(SeqCst) {
                let goes_on = random.one_in(8);
                program.hooks.stopped.store(!goes_on, SeqCst);
            } else {
                program.answer(|_| random.one_in(2));
                let stops = program.hooks.late.load(SeqCst) && random.one_in(8);
                program.hooks.stopped.store(stops, SeqCst);
            }
        }
        _ => contents.check(machine, page),
    }
}

/// Nodes and frames that come and go, by command and because the machine does it. Gives the frames
/// that are offline in the end.
pub(crate) fn plug(
    engine: &Engine,
    machine: &Machine,
    random: &Random,
    stop: &AtomicBool,
) -> Vec<Range<Kpfn>> {
    let mut closed: Vec<Range<Kpfn>> = Vec::new();
    while !stop.load(SeqCst) {
        std::thread::sleep(Duration::from_micros(random.below(4000)));
        let nid = NIDS[usize::try_from(random.below(3)).unwrap()];
        match random.below(12) {
            // It may be the last, or there may be no memory for the pages that are to be unmerged.
            0 => drop(engine.offline_node(nid)),
            1..4 => engine.online_node(nid).unwrap(),
            // One stays, as the machine would have it.
            4 if nid != NIDS[0] => machine.take_node(nid, NIDS[0]),
            5..8 => machine.give_node(nid),
            8 => {
                let pool = Frames::pool(machine, nid)[0].start.0;
                let first = pool + random.below(200);
                let frames = Kpfn(first)..Kpfn(first + 1 + random.below(100));
                if engine.offline_frames(frames.clone()).is_ok() {
                    closed.push(frames);
                }
            }
            9 | 10 => {
                if let Some(frames) = closed.pop() {
                    engine.online_frames(frames).unwrap();
                }
            }
            _ => {
                let shared: u64 = engine.nodes().iter().map(|node| node.pages_shared).sum();
                assert!(shared < PAGES);
            }
        }
    }
    closed
}
