//! A machine, an engine and a region to test on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use numerge_engine::in_memory::{Content, Machine};
use numerge_engine::machine::{Memory, Vpn};
use numerge_engine::{
    Clock, Counters, Engine, EngineOptions, Knob, Kpfn, Nid, RegionHandle, Topology,
};
use numerge_topology::Node;

/// One program of `pages` pages, on nodes 0, 2, 5 or as many of them as asked for.
pub(crate) struct Bed {
    pub(crate) machine: Arc<Machine>,
    pub(crate) engine: Engine,
    pub(crate) region: Option<RegionHandle>,
    clock: Arc<AtomicU32>,
}

pub(crate) const NIDS: [Nid; 3] = [Nid(0), Nid(2), Nid(5)];

pub(crate) fn topology(nodes: usize) -> Topology {
    let all = NIDS[..nodes]
        .iter()
        .map(|&nid| Node {
            nid,
            cpus: vec![nid.0],
            memory_bytes: 1 << 30,
            distances: NIDS[..nodes].iter().map(|at| if *at == nid { 10 } else { 20 }).collect(),
        })
        .collect();
    Topology::new(all).unwrap()
}

impl Bed {
    pub(crate) fn new(pages: u64) -> Self {
        Self::on(1, pages)
    }

    pub(crate) fn on(nodes: usize, pages: u64) -> Self {
        Self::with(nodes, pages, EngineOptions { background: false, ..EngineOptions::default() })
    }

    pub(crate) fn with(nodes: usize, pages: u64, options: EngineOptions) -> Self {
        Self::of(topology(nodes), pages, options)
    }

    pub(crate) fn of(topology: Topology, pages: u64, options: EngineOptions) -> Self {
        let machine = Machine::new(topology, usize::try_from(pages).unwrap());
        let clock = Arc::new(AtomicU32::new(0));
        let options = EngineOptions { clock: Clock::Manual(Arc::clone(&clock)), ..options };
        let engine = Engine::new(machine.clone(), machine.clone(), options).unwrap();
        engine.set(Knob::PagesToScan, 1_000_000).unwrap();
        let memory: Arc<dyn Memory> = machine.clone();
        let region = engine.register(&memory, Vpn(0)..Vpn(pages)).unwrap();
        Self { machine, engine, region: Some(region), clock }
    }

    pub(crate) fn write(&self, pages: impl IntoIterator<Item = u64>, content: Content) {
        self.write_on(pages, content, Nid(0));
    }

    pub(crate) fn write_on(
        &self,
        pages: impl IntoIterator<Item = u64>,
        content: Content,
        nid: Nid,
    ) {
        pages.into_iter().for_each(|page| self.machine.write(Vpn(page), content, nid));
    }

    pub(crate) fn scan(&self, times: usize) -> Counters {
        (0..times).for_each(|_| self.engine.full_scan());
        self.counters()
    }

    pub(crate) fn counters(&self) -> Counters {
        self.engine.counters()
    }

    pub(crate) fn advance(&self, ms: u32) {
        self.clock.fetch_add(ms, Ordering::SeqCst);
    }

    pub(crate) fn frame(&self, page: u64) -> Option<Kpfn> {
        self.machine.frame_of(Vpn(page))
    }

    pub(crate) fn frames(&self, pages: impl IntoIterator<Item = u64>) -> Vec<Kpfn> {
        let mut frames: Vec<Kpfn> = pages.into_iter().filter_map(|page| self.frame(page)).collect();
        frames.sort_unstable();
        frames.dedup();
        frames
    }

    pub(crate) fn read(&self, page: u64) -> Content {
        self.machine.read(Vpn(page))
    }
}

/// shared, sharing, unshared, chains, dups.
pub(crate) fn figures(c: &Counters) -> [u64; 5] {
    [c.pages_shared, c.pages_sharing, c.pages_unshared, c.stable_node_chains, c.stable_node_dups]
}
