//! Everything at once: several shards' threads, programs that write, discard and pin, an operating
//! system that moves pages and frames and runs out of things, regions that come and go, knobs that
//! change. Content must never change, no frame be over the limit, and at rest the figures be right.
//!
//! Runs for 10 seconds, or as many as NUMERGE_STRESS_SECONDS says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "rules/bed.rs"]
#[expect(dead_code, reason = "only the nodes are needed here")]
mod bed;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use numerge_engine::in_memory::{Content, Machine};
use numerge_engine::machine::{
    Frames, Kind, Mappings, Memory, MemoryError, Outcome, PAGE_SIZE, Run, Target, Vpn, Written,
};
use numerge_engine::{Engine, EngineOptions, Knob, Kpfn, Nid};
use parking_lot::Mutex;

use bed::{NIDS, topology};

const PROGRAMS: u64 = 2;
const REGIONS: u64 = 6;
const REGION_PAGES: u64 = 300;
const PAGES: u64 = REGIONS * REGION_PAGES;
const WRITERS: u64 = 3;

fn seconds() -> u64 {
    std::env::var("NUMERGE_STRESS_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10)
}

/// SplitMix64.
#[derive(Debug)]
struct Random(AtomicU64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    fn below(&self, n: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }

    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// One program of the machine, whose calls take time now and then, and fail if `faults` says so.
struct Program {
    machine: Arc<Machine>,
    random: Random,
    faults: AtomicBool,
}

impl Program {
    fn new(machine: &Arc<Machine>, seed: u64) -> Arc<Self> {
        let faults = AtomicBool::new(false);
        Arc::new(Self { machine: Arc::clone(machine), random: Random::new(seed), faults })
    }

    fn dawdle(&self) {
        if self.random.one_in(4) {
            std::thread::yield_now();
        }
        if self.random.one_in(200) {
            std::thread::sleep(Duration::from_micros(self.random.below(300)));
        }
    }

    fn fails(&self, call: &str) -> bool {
        self.dawdle();
        let only = std::env::var("NUMERGE_STRESS_ONLY");
        let wanted = only.map_or(true, |only| only.split(',').any(|it| it == call));
        self.faults.load(SeqCst) && wanted && self.random.one_in(30)
    }
}

fn broken(call: &'static str) -> MemoryError {
    MemoryError::System { call, source: std::io::ErrorKind::Other.into() }
}

impl Memory for Program {
    fn register(&self, pages: Range<Vpn>) -> Result<(), MemoryError> {
        if self.fails("register") {
            return Err(broken("register"));
        }
        Memory::register(&*self.machine, pages)
    }

    fn unregister(&self, pages: Range<Vpn>) -> Result<(), MemoryError> {
        if self.fails("unregister") {
            return Err(broken("unregister"));
        }
        self.machine.unregister(pages)
    }

    fn written(
        &self,
        pages: Range<Vpn>,
        max_pages: u64,
        out: &mut Vec<Written>,
    ) -> Result<Vpn, MemoryError> {
        if self.fails("written") {
            // Half-way: what was appended counts as reported.
            let half = Vpn(pages.start.0 + (pages.end.0 - pages.start.0) / 2);
            self.machine.written(pages.start..half, max_pages, out)?;
            return Err(broken("written"));
        }
        let reached = self.machine.written(pages, max_pages, out);
        self.dawdle();
        reached
    }

    fn kinds(&self, pages: Range<Vpn>, out: &mut Vec<Option<Kind>>) -> Result<(), MemoryError> {
        if self.fails("kinds") {
            return Err(broken("kinds"));
        }
        let asked = self.machine.kinds(pages, out);
        self.dawdle();
        asked
    }

    fn read(&self, runs: &[Range<Vpn>], each: &mut dyn FnMut(&[u8; PAGE_SIZE])) {
        self.dawdle();
        Memory::read(&*self.machine, runs, each);
        self.dawdle();
    }

    fn merge(&self, runs: &[Run], out: &mut Vec<Outcome>) {
        for run in runs {
            // Page by page, as a real machine is not one step either.
            for place in 0..run.pages.end.0 - run.pages.start.0 {
                if self.fails("merge") {
                    out.push(match self.random.below(3) {
                        0 => Outcome::Pinned,
                        1 => Outcome::Exhausted,
                        _ => Outcome::Refused,
                    });
                    continue;
                }
                let page = run.pages.start.plus(place);
                let target = match run.target {
                    Target::Frames(first) => Target::Frames(first.plus(place)),
                    Target::Zero => Target::Zero,
                };
                self.machine.merge(&[Run { pages: page..page.plus(1), target }], out);
            }
        }
        self.dawdle();
        if self.fails("merge") && out.last().is_some_and(|last| *last != Outcome::Merged) {
            out.pop();
        }
    }

    fn unmerge(&self, ranges: &[Range<Vpn>]) -> Result<(), MemoryError> {
        if self.fails("unmerge") {
            self.machine.unmerge(&ranges[..ranges.len() / 2])?;
            return Err(MemoryError::OutOfMemory);
        }
        let done = self.machine.unmerge(ranges);
        self.dawdle();
        done
    }

    fn nodes_of(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Nid>>) -> Result<(), MemoryError> {
        if self.fails("nodes_of") {
            return Err(broken("nodes_of"));
        }
        Memory::nodes_of(&*self.machine, runs, out)
    }

    fn mappings(&self) -> Result<Mappings, MemoryError> {
        if self.fails("mappings") {
            return Err(broken("mappings"));
        }
        self.machine.mappings()
    }

    fn metadata_bytes(&self) -> u64 {
        0
    }
}

/// What the programs wrote, page by page. A writer holds a page's lock while it writes to it.
struct Contents(Vec<Mutex<Option<Content>>>);

impl Contents {
    fn check(&self, machine: &Machine, page: u64) {
        let content = self.0[usize::try_from(page).unwrap()].lock();
        assert_eq!(machine.read(Vpn(page)), content.unwrap_or(0), "page {page} changed");
    }

    fn write(&self, machine: &Machine, page: u64, content: Content, nid: Nid) {
        let mut known = self.0[usize::try_from(page).unwrap()].lock();
        assert_eq!(machine.read(Vpn(page)), known.unwrap_or(0), "page {page} changed");
        machine.write(Vpn(page), content, nid);
        *known = Some(content);
    }

    fn discard(&self, machine: &Machine, page: u64) {
        let mut known = self.0[usize::try_from(page).unwrap()].lock();
        assert_eq!(machine.read(Vpn(page)), known.unwrap_or(0), "page {page} changed");
        machine.discard(Vpn(page));
        *known = None;
    }
}

/// The programs and the operating system.
fn disturb(machine: &Machine, contents: &Contents, random: &Random, discards: bool) {
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
        _ => contents.check(machine, page),
    }
}

/// Nodes and frames that come and go, by command and because the machine does it. Gives the frames
/// that are offline in the end.
fn plug(
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

struct World {
    machine: Arc<Machine>,
    programs: Vec<Arc<Program>>,
    contents: Contents,
}

fn region_pages(region: u64) -> Range<Vpn> {
    Vpn(region * REGION_PAGES)..Vpn((region + 1) * REGION_PAGES)
}

fn round(seed: u64, until: Instant, faults: bool, across: bool, discards: bool) {
    println!("round {seed}: faults {faults}, across {across}, discards {discards}");
    let random = Random::new(seed << 32);
    let machine = Machine::new(topology(3), usize::try_from(PAGES).unwrap());
    let programs: Vec<_> =
        (0..PROGRAMS).map(|n| Program::new(&machine, seed << 32 | n << 8)).collect();
    let contents = Contents((0..PAGES).map(|_| Mutex::new(None)).collect());
    let world = World { machine, programs, contents };
    let World { machine, programs, contents } = &world;
    let options = EngineOptions { threads_per_node: Some(2), ..EngineOptions::default() };
    let engine = Engine::new(machine.clone(), machine.clone(), options).unwrap();
    engine.set(Knob::MergeAcrossNodes, u64::from(across)).unwrap();
    engine.set(Knob::SleepMillisecs, 0).unwrap();
    engine.set(Knob::StableNodeChainsPruneMillisecs, 5).unwrap();
    engine.set(Knob::MaxPageSharing, 3).unwrap();
    // A region's first page says which shard is to scan it.
    for region in 0..REGIONS {
        let nid = NIDS[usize::try_from(region % 3).unwrap()];
        contents.write(machine, region * REGION_PAGES, 7, nid);
    }
    let register = |region: u64| {
        let program: Arc<dyn Memory> =
            programs[usize::try_from(region % PROGRAMS).unwrap()].clone();
        engine.register(&program, region_pages(region))
    };
    let handles: Vec<_> =
        (0..REGIONS).map(|region| Mutex::new(Some(register(region).unwrap()))).collect();
    engine.set(Knob::Run, 1).unwrap();
    let set_faults = |on| programs.iter().for_each(|program| program.faults.store(on, SeqCst));
    set_faults(faults);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (stop, random) = (&stop, Random::new(seed << 32 | 77 << 16 | writer));
            scope.spawn(move || {
                let _stop = StopOnPanic(stop);
                while !stop.load(SeqCst) {
                    for _ in 0..random.below(60) {
                        disturb(machine, contents, &random, discards);
                    }
                    std::thread::sleep(Duration::from_micros(random.below(400)));
                }
            });
        }
        scope.spawn(|| {
            let _stop = StopOnPanic(&stop);
            let random = Random::new(seed << 32 | 99 << 16);
            while !stop.load(SeqCst) {
                std::thread::sleep(Duration::from_micros(random.below(3000)));
                let mut slot = handles[usize::try_from(random.below(REGIONS)).unwrap()].lock();
                match &*slot {
                    // On failure it is registered still.
                    Some(handle) if handle.unregister().is_ok() => *slot = None,
                    Some(_) => {}
                    None => {
                        drop(slot);
                        let region = random.below(REGIONS);
                        let mut slot = handles[usize::try_from(region).unwrap()].lock();
                        if slot.is_none() {
                            *slot = register(region).ok();
                        }
                    }
                }
            }
        });
        let plugger = scope.spawn(|| {
            let _stop = StopOnPanic(&stop);
            plug(&engine, machine, &Random::new(seed << 32 | 111 << 16), &stop)
        });
        let _stop = StopOnPanic(&stop);
        let mut limit = 3;
        while Instant::now() < until && !stop.load(SeqCst) {
            std::thread::sleep(Duration::from_micros(random.below(2000)));
            for (kpfn, _, maps) in machine.frames() {
                assert!(maps <= limit, "{kpfn:?} has {maps} sharers of {limit}");
            }
            match random.below(40) {
                0 => {
                    let _ = engine.set(Knob::Run, 2);
                    let wanted = 2 + random.below(6);
                    if engine.set(Knob::MaxPageSharing, wanted).is_ok() {
                        limit = wanted;
                    }
                    engine.set(Knob::Run, 1).unwrap();
                }
                1 => {
                    engine.set(Knob::Run, 0).unwrap();
                    std::thread::sleep(Duration::from_micros(random.below(2000)));
                    engine.set(Knob::Run, 1).unwrap();
                }
                2 => engine.set(Knob::UseZeroPages, random.below(2)).unwrap(),
                3 => engine.set(Knob::PagesToScan, 1 + random.below(2000)).unwrap(),
                4 => engine.full_scan(),
                5 => {
                    let used = random.below(30_000);
                    machine.set_mappings(Mappings { used, limit: 60_000 });
                }
                6 => drop(engine.take_errors()),
                _ => {
                    let _ = engine.counters();
                }
            }
        }
        stop.store(true, SeqCst);
        for frames in plugger.join().unwrap() {
            engine.online_frames(frames).unwrap();
        }
    });
    // At rest.
    for nid in NIDS {
        machine.give_node(nid);
        engine.online_node(nid).unwrap();
    }
    set_faults(false);
    machine.limit(u64::MAX, u64::MAX);
    machine.set_mappings(Mappings { used: 0, limit: u64::MAX });
    engine.set(Knob::Run, 0).unwrap();
    engine.set(Knob::StableNodeChainsPruneMillisecs, 0).unwrap();
    engine.set(Knob::PagesToScan, 100_000).unwrap();
    for page in 0..PAGES {
        machine.pin(Vpn(page), false);
        let discarded = contents.0[usize::try_from(page).unwrap()].lock().is_none();
        if discards && discarded {
            contents.write(machine, page, 1 + page % 5, NIDS[0]);
        }
    }
    for region in 0..REGIONS {
        let mut slot = handles[usize::try_from(region).unwrap()].lock();
        if slot.is_none() {
            *slot = Some(register(region).unwrap());
        }
    }
    (0..40).for_each(|_| engine.full_scan());
    (0..PAGES).for_each(|page| contents.check(machine, page));
    check_at_rest(&engine, machine, across);
    if seed.is_multiple_of(2) {
        drop(handles);
        assert_eq!(engine.counters().pages_registered, 0);
        engine.shut_down().unwrap();
    } else {
        engine.shut_down().unwrap();
        drop(handles);
    }
    (0..PAGES).for_each(|page| contents.check(machine, page));
    assert!((0..PAGES).all(|page| machine.frame_of(Vpn(page)).is_none()));
    assert!(machine.frames().is_empty(), "frames are left: {:?}", machine.frames());
}

fn check_at_rest(engine: &Engine, machine: &Machine, across: bool) {
    let c = engine.counters();
    assert_eq!(
        c.pages_registered,
        c.pages_shared
            + c.pages_sharing
            + c.pages_unshared
            + c.pages_volatile
            + c.ksm_zero_pages
            + c.pages_untouched,
        "{c:?}"
    );
    let frames = machine.frames();
    let maps: u64 = frames.iter().map(|frame| frame.2).sum();
    assert_eq!(maps, c.pages_shared + c.pages_sharing, "rmap items {c:?}");
    assert_eq!(frames.len() as u64, c.pages_shared, "frames without sharers are left: {c:?}");
    assert!(frames.iter().all(|frame| frame.2 <= engine.knob(Knob::MaxPageSharing)));
    assert_eq!((c.pages_volatile, c.pages_held, c.pages_over_budget), (0, 0, 0), "{c:?}");
    assert_eq!(c.stable_nodes_queued, 0, "{c:?}");
    // What is equal, and on one node if each has its own tree, is merged: no page was forgotten.
    let mut nids = Vec::new();
    Memory::nodes_of(machine, &[Vpn(0)..Vpn(PAGES)], &mut nids).unwrap();
    let mut alone = std::collections::BTreeMap::<(Option<Nid>, Content), u64>::new();
    for (page, nid) in (0..PAGES).map(Vpn).zip(nids) {
        // Content 0: never touched, or the machine's page of zeros.
        let content = machine.read(page);
        if machine.frame_of(page).is_none() && content != 0 {
            *alone.entry((nid.filter(|_| !across), content)).or_default() += 1;
        }
    }
    assert!(alone.values().all(|pages| *pages == 1), "not merged: {alone:?} {c:?}");
}

/// Has the other threads end when this one fails, so that the failure is seen.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, SeqCst);
        }
    }
}

fn rounds(each: fn(u64, Instant)) {
    // A scanner's panic must end the test, not only its thread.
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
    let rounds = 4;
    let length = Duration::from_millis(seconds() * 1000 / rounds);
    let seed = std::env::var("NUMERGE_STRESS_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for seed in seed..seed + rounds {
        each(seed, Instant::now() + length);
    }
    let _ = std::panic::take_hook();
}

#[test]
fn s1_1_everything_at_once() {
    rounds(|seed, until| {
        let flag = |name| std::env::var(name).ok().map(|v| v == "1");
        let faults = flag("NUMERGE_STRESS_FAULTS").unwrap_or(seed % 4 >= 2);
        let across = flag("NUMERGE_STRESS_ACROSS").unwrap_or(seed % 2 == 1);
        let discards = flag("NUMERGE_STRESS_DISCARDS").unwrap_or(true);
        round(seed, until, faults, across, discards);
    });
}
