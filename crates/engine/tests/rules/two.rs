//! A machine and an engine for what happens between two shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use numerge_engine::in_memory::Machine;
use numerge_engine::machine::{Memory, Vpn};
use numerge_engine::{Clock, Engine, EngineOptions, Knob, RegionHandle};

use crate::bed::{NIDS, topology};
use crate::script::{Scripted, scripted};

/// Two nodes, and a region of 100 pages on each, scanned by its own shard.
pub(crate) struct Two {
    pub(crate) machine: Arc<Machine>,
    pub(crate) memory: Arc<Scripted>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) regions: [RegionHandle; 2],
    clock: Arc<AtomicU32>,
}

impl Two {
    pub(crate) fn new() -> Self {
        let machine = Machine::new(topology(2), 300);
        let memory = scripted(&machine);
        let clock = Arc::new(AtomicU32::new(0));
        let time = Clock::Manual(Arc::clone(&clock));
        let options = EngineOptions { background: false, clock: time, ..EngineOptions::default() };
        let engine = Arc::new(Engine::new(memory.clone(), machine.clone(), options).unwrap());
        engine.set(Knob::PagesToScan, 1_000_000).unwrap();
        let regions = [0, 1].map(|node| {
            let start = 100 * node as u64;
            machine.write(Vpn(start), 1000 + start, NIDS[node]);
            let memory: Arc<dyn Memory> = memory.clone();
            engine.register(&memory, Vpn(start)..Vpn(start + 100)).unwrap()
        });
        Self { machine, memory, engine, regions, clock }
    }

    pub(crate) fn write(&self, page: u64, content: u64) {
        self.machine.write(Vpn(page), content, NIDS[usize::from(page >= 100)]);
    }

    pub(crate) fn scan(&self, node: usize) {
        self.engine.scan_node(NIDS[node]);
    }

    pub(crate) fn wait(&self, milliseconds: u32) {
        self.clock.fetch_add(milliseconds, Ordering::SeqCst);
    }

    /// That what is recorded is what is.
    pub(crate) fn check(&self) {
        let c = self.engine.counters();
        let maps: u64 = self.machine.frames().iter().map(|frame| frame.2).sum();
        assert_eq!(c.pages_shared + c.pages_sharing, maps, "{c:?}");
        let candidates = c.pages_unshared + c.pages_volatile;
        let all = maps + candidates + c.ksm_zero_pages + c.pages_untouched;
        assert_eq!(c.pages_registered, all, "{c:?}");
    }

    pub(crate) fn end(self) {
        drop(self.regions);
        (0..4).for_each(|_| self.engine.full_scan());
        drop(self.engine);
        assert!(self.machine.frames().is_empty(), "{:?}", self.machine.frames());
    }
}
