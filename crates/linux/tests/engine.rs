//! The engine on this process's real memory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Random, World, assert_contents, page_of};
use numerge_engine::machine::{Frames, Memory, PAGE_SIZE};
use numerge_engine::{Engine, EngineOptions, Knob};
use numerge_linux::{AnonymousRegion, Machine};
use numerge_topology::Topology;

fn engine(world: &World, background: bool) -> Engine {
    let frames: Arc<dyn Frames> = world.pools.clone();
    let nodes = Arc::new(Machine::new(Arc::new(Topology::discover().unwrap())));
    let options = EngineOptions { background, ..EngineOptions::default() };
    let engine = Engine::new(frames, nodes, options).unwrap();
    for (knob, value) in [(Knob::UseZeroPages, 1), (Knob::SleepMillisecs, 0)] {
        engine.set(knob, value).unwrap();
    }
    engine.set(Knob::PagesToScan, 4096).unwrap();
    engine
}

fn filled(pages: usize, content: impl Fn(usize) -> u64) -> AnonymousRegion {
    let region = AnonymousRegion::new(pages * PAGE_SIZE).unwrap();
    for page in 0..pages {
        region.write(page * PAGE_SIZE, &page_of(content(page))).unwrap();
    }
    region
}

#[test]
fn s5_5_the_worked_figures_on_real_memory() {
    let Some(world) = World::new() else { return };
    for (pages, limit, shared, sharing) in
        [(256, 256, 1, 255), (258, 256, 2, 256), (1000, 256, 4, 996), (777, 3, 259, 518)]
    {
        let engine = engine(&world, false);
        engine.set(Knob::MaxPageSharing, limit).unwrap();
        let region = filled(pages, |_| 7);
        let memory: Arc<dyn Memory> =
            Arc::new(numerge_linux::ProcessMemory::new(world.pools.clone()).unwrap());
        let handle = engine.register(&memory, region.pages()).unwrap();
        for _ in 0..4 {
            engine.full_scan();
        }
        let counters = engine.counters();
        assert_eq!((counters.pages_shared, counters.pages_sharing), (shared, sharing));
        assert!(engine.take_errors().is_empty());
        assert_contents(&region, |_| 7);
        handle.unregister().unwrap();
        assert_contents(&region, |_| 7);
        engine.shut_down().unwrap();
    }
}

#[test]
fn s1_1_a_running_engine_under_a_writing_program() {
    const PAGES: usize = 2048;
    let Some(world) = World::new() else { return };
    let engine = engine(&world, true);
    let region = filled(PAGES, |page| page as u64 % 4);
    let memory: Arc<dyn Memory> =
        Arc::new(numerge_linux::ProcessMemory::new(world.pools.clone()).unwrap());
    let handle = engine.register(&memory, region.pages()).unwrap();
    let stop = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        for writer in 0..2 {
            let (region, stop) = (&region, &stop);
            scope.spawn(move || {
                let mut random = Random(writer as u64);
                let mut mine: Vec<u64> = (0..PAGES).map(|page| page as u64 % 4).collect();
                let mut found = [0; PAGE_SIZE];
                while !stop.load(Ordering::Relaxed) {
                    let page = random.below(PAGES / 2) * 2 + writer;
                    region.read(page * PAGE_SIZE, &mut found).unwrap();
                    assert!(found == page_of(mine[page]), "page {page}");
                    if random.below(100) == 0 {
                        mine[page] = random.below(4) as u64;
                        region.write(page * PAGE_SIZE, &page_of(mine[page])).unwrap();
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
                for page in (writer..PAGES).step_by(2) {
                    region.read(page * PAGE_SIZE, &mut found).unwrap();
                    assert!(found == page_of(mine[page]), "page {page} at the end");
                }
            });
        }
        let began = Instant::now();
        let mut most = 0;
        while began.elapsed() < Duration::from_secs(4) {
            engine.set(Knob::Run, 1).unwrap();
            std::thread::sleep(Duration::from_millis(700));
            most = most.max(engine.counters().pages_sharing);
            engine.set(Knob::Run, 2).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        most
    });
    println!("at most {most} pages saved; errors: {:?}", engine.take_errors());
    assert!(most > 100);
    handle.unregister().unwrap();
    engine.shut_down().unwrap();
    assert!(common::mappings_of(&region) < 16, "{}", common::mappings_of(&region));
}
