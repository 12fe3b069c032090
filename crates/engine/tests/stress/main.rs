//! Everything at once: several shards' threads, programs that write, discard and pin, an operating
//! system that moves pages and frames and runs out of things, regions that come and go, knobs that
//! change, programs that are stopped and answer late, and that unmap what is registered. Content must
//! never change, no frame be over the limit, and at rest the figures be right.
//!
//! Runs for 10 seconds, or as many as NUMERGE_STRESS_SECONDS says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../rules/bed.rs"]
#[expect(dead_code, reason = "only the nodes are needed here")]
mod bed;
#[path = "../common/bounds.rs"]
mod bounds;
#[path = "../common/hooked.rs"]
mod hooked;
mod programs;
#[path = "../common/sums.rs"]
mod sums;
mod world;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use numerge_engine::in_memory::{Content, Machine};
use numerge_engine::machine::{Mappings, Memory, Vpn};
use numerge_engine::{Engine, EngineOptions, Knob, Nid, ProgramCounters, ProgramHandle};
use parking_lot::Mutex;

use bed::{NIDS, topology};
use bounds::Bounds;
use programs::{Chance, Contents, Program, Random};
use world::{PAGES, PROGRAMS, REGION_PAGES, REGIONS, World, disturb, plug, region_pages};

/// Threads that write.
const WRITERS: u64 = 3;

fn seconds() -> u64 {
    std::env::var("NUMERGE_STRESS_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(10)
}

/// What may happen in a round.
#[derive(Clone, Copy, Debug)]
struct Rules {
    faults: bool,
    across: bool,
    discards: bool,
    late: bool,
}

fn round(seed: u64, until: Instant, rules: Rules) {
    println!("round {seed}: {rules:?}");
    let Rules { faults, across, discards, late } = rules;
    let random = Random::new(seed << 32);
    let machine = Machine::new(topology(3), usize::try_from(PAGES).unwrap());
    let programs: Vec<_> =
        (0..PROGRAMS).map(|n| Program::new(&machine, Chance::new(seed << 32 | n << 8))).collect();
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
        let program: Arc<dyn Memory> = world.program(region).clone();
        engine.register(&program, region_pages(region))
    };
    let told = |program: &Arc<Program>| engine.program(&(Arc::clone(program) as Arc<dyn Memory>));
    let told: Vec<ProgramHandle> = programs.iter().map(told).collect();
    let handles: Vec<_> =
        (0..REGIONS).map(|region| Mutex::new(Some(register(region).unwrap()))).collect();
    engine.set(Knob::Run, 1).unwrap();
    for Chance { faults: fail, late: delay, .. } in programs.iter().map(|program| &program.hooks) {
        fail.store(faults, SeqCst);
        delay.store(late, SeqCst);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (world, stop) = (&world, &stop);
            let random = Random::new(seed << 32 | 77 << 16 | writer);
            scope.spawn(move || {
                let _stop = StopOnPanic(stop);
                while !stop.load(SeqCst) {
                    for _ in 0..random.below(60) {
                        disturb(world, &random, discards);
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
                let region = random.below(REGIONS);
                let mut slot = handles[usize::try_from(region).unwrap()].lock();
                world.come_and_go(&random, region, &mut slot, |region| register(region).ok());
            }
        });
        let watcher = scope.spawn(|| {
            let _stop = StopOnPanic(&stop);
            let (mut bounds, mut looks) = (Bounds::default(), 0_u64);
            while !stop.load(SeqCst) {
                // Many in a row, and none while the others have the CPU.
                (0..1000).for_each(|_| bounds.check(engine.counters()));
                looks += 1000;
                std::thread::sleep(Duration::from_micros(100));
            }
            looks
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
                _ => {}
            }
        }
        stop.store(true, SeqCst);
        println!("counters looked at {} times", watcher.join().unwrap());
        for frames in plugger.join().unwrap() {
            engine.online_frames(frames).unwrap();
        }
    });
    // At rest.
    for nid in NIDS {
        machine.give_node(nid);
        engine.online_node(nid).unwrap();
    }
    for program in programs {
        let Chance { faults, late, stopped, .. } = &program.hooks;
        [faults, late, stopped].into_iter().for_each(|flag| flag.store(false, SeqCst));
    }
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
    for _ in 0..40 {
        programs.iter().for_each(|program| program.answer(|_| true));
        engine.full_scan();
    }
    (0..PAGES).for_each(|page| contents.check(machine, page));
    check_at_rest(&engine, machine, across);
    check_programs(&engine, &told);
    if seed.is_multiple_of(2) {
        drop(handles);
        assert_eq!(engine.counters().pages_registered, 0);
        check_programs(&engine, &told);
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
    sums::nodes_add_up(&c, &engine.nodes());
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

/// What is counted of each program adds up to what is counted of all.
fn check_programs(engine: &Engine, told: &[ProgramHandle]) {
    let all = engine.counters();
    let told: Vec<_> = told.iter().map(ProgramHandle::counters).collect();
    let sum = |of: fn(&ProgramCounters) -> u64| told.iter().map(of).sum::<u64>();
    assert_eq!(sum(|c| c.pages_merged), all.pages_shared + all.pages_sharing, "{told:?} {all:?}");
    assert_eq!(sum(|c| c.ksm_zero_pages), all.ksm_zero_pages, "{told:?} {all:?}");
    assert_eq!(sum(|c| c.pages_broken), all.pages_broken, "{told:?} {all:?}");
    // Each may be rounded down.
    let lost = (all.pages_sharing + all.ksm_zero_pages).checked_sub(sum(|c| c.pages_saved));
    assert!(lost.is_some_and(|lost| lost < PROGRAMS), "{told:?} {all:?}");
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
    std::panic::set_hook(Box::new(|info| {
        // Not by a macro, whose output is kept until the test ends.
        let trace = std::backtrace::Backtrace::capture();
        let _ = writeln!(std::io::stderr(), "{info}\n{trace}");
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
        let rules = Rules {
            faults: flag("NUMERGE_STRESS_FAULTS").unwrap_or(seed % 4 >= 2),
            across: flag("NUMERGE_STRESS_ACROSS").unwrap_or(seed % 2 == 1),
            discards: flag("NUMERGE_STRESS_DISCARDS").unwrap_or(true),
            late: flag("NUMERGE_STRESS_LATE").unwrap_or(true),
        };
        round(seed, until, rules);
    });
}
