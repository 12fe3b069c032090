//! Random histories on the in-memory machine, driven through engine and reference model alike.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::reference::{Knobs, Model, Numbers};
use crate::sums::nodes_add_up;
use numerge_engine::in_memory::{Machine, expand};
use numerge_engine::machine::{Memory, Vpn};
use numerge_engine::{Clock, Counters, Engine, EngineOptions, Knob, Nid, RegionHandle, Topology};
use numerge_topology::Node;
use proptest::prelude::*;

const PAGES_A_NODE: usize = 24;

/// Nodes whose numbers have gaps (S4.6).
fn topology(nodes: u32) -> Topology {
    let nid = |node: u32| Nid(node * 3);
    let all = (0..nodes)
        .map(|node| Node {
            nid: nid(node),
            cpus: vec![node],
            memory_bytes: 1 << 30,
            distances: (0..nodes).map(|other| if other == node { 10 } else { 20 }).collect(),
        })
        .collect();
    Topology::new(all).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Write { page: usize, content: u64, node: usize },
    Fill { from: usize, count: usize, content: u64 },
    Vanish { from: usize, count: usize },
    Scan,
    Unmerge,
    Limit(u64),
    Across(bool),
    ZeroPages(bool),
    Prune(u32),
    Advance(u32),
    MovePage { page: usize, node: usize },
    MoveFrame { frame: usize, node: usize },
    MoveRegion { region: usize, node: usize },
    Offline(usize),
    Online(usize),
}

fn step(nodes: usize) -> impl Strategy<Value = Step> {
    let pages = nodes * PAGES_A_NODE;
    prop_oneof![
        8 => (0..pages, 0..5_u64, 0..nodes)
            .prop_map(|(page, content, node)| Step::Write { page, content, node }),
        3 => (0..pages, 1..30_usize, 0..5_u64)
            .prop_map(|(from, count, content)| Step::Fill { from, count, content }),
        1 => (0..pages, 1..30_usize).prop_map(|(from, count)| Step::Vanish { from, count }),
        8 => Just(Step::Scan),
        1 => Just(Step::Unmerge),
        1 => (2..8_u64).prop_map(Step::Limit),
        1 => any::<bool>().prop_map(Step::Across),
        1 => any::<bool>().prop_map(Step::ZeroPages),
        1 => (0..100_u32).prop_map(Step::Prune),
        2 => (0..100_u32).prop_map(Step::Advance),
        2 => (0..pages, 0..nodes).prop_map(|(page, node)| Step::MovePage { page, node }),
        3 => (0..64_usize, 0..nodes).prop_map(|(frame, node)| Step::MoveFrame { frame, node }),
        1 => (0..nodes, 0..nodes).prop_map(|(region, node)| Step::MoveRegion { region, node }),
        1 => (0..nodes).prop_map(Step::Offline),
        2 => (0..nodes).prop_map(Step::Online),
    ]
}

struct Pair {
    machine: Arc<Machine>,
    engine: Engine,
    regions: Vec<RegionHandle>,
    clock: Arc<AtomicU32>,
    model: Model,
}

impl Pair {
    fn new(nodes: usize, pages_to_scan: u64, fingerprint_bits: u32) -> Self {
        let machine = Machine::new(topology(u32::try_from(nodes).unwrap()), nodes * PAGES_A_NODE);
        let clock = Arc::new(AtomicU32::new(0));
        let options = EngineOptions {
            threads_per_node: Some(1),
            clock: Clock::Manual(Arc::clone(&clock)),
            fingerprint_bits,
            background: false,
            ..EngineOptions::default()
        };
        let engine = Engine::new(machine.clone(), machine.clone(), options).unwrap();
        engine.set(Knob::PagesToScan, pages_to_scan).unwrap();
        // The model takes every look.
        engine.set(Knob::SmartScan, 0).unwrap();
        let limit = 3;
        engine.set(Knob::MaxPageSharing, limit).unwrap();
        let knobs = Knobs {
            max_page_sharing: usize::try_from(limit).unwrap(),
            merge_across_nodes: true,
            use_zero_pages: false,
            prune_ms: 2000,
        };
        let shards: Vec<Vec<usize>> = (0..nodes)
            .map(|node| (node * PAGES_A_NODE..(node + 1) * PAGES_A_NODE).collect())
            .collect();
        let mut model = Model::new(knobs, nodes * PAGES_A_NODE, shards.clone());
        let memory: Arc<dyn Memory> = machine.clone();
        let regions = shards
            .iter()
            .enumerate()
            .map(|(node, pages)| {
                // The first page says which node's shard the region is for.
                machine.write(vpn(pages[0]), 99, machine_nid(node));
                model.write(pages[0], 99, node);
                engine.register(&memory, vpn(pages[0])..vpn(pages[0] + pages.len())).unwrap()
            })
            .collect();
        Self { machine, engine, regions, clock, model }
    }

    fn write(&mut self, page: usize, content: u64, node: usize) {
        self.machine.write(vpn(page), content, machine_nid(node));
        self.model.write(page, content, node);
    }

    fn vanish(&mut self, pages: Range<usize>) {
        for page in pages.clone() {
            self.machine.discard(vpn(page));
            self.model.vanish(page);
        }
        for region in &self.regions {
            let all = region.pages();
            let (start, end) = (vpn(pages.start).max(all.start), vpn(pages.end).min(all.end));
            if start < end {
                region.vanished(start..end);
            }
        }
    }

    fn take(&mut self, step: &Step) {
        let Self { machine, engine, model, clock, .. } = self;
        match *step {
            Step::Write { page, content, node } => self.write(page, content, node),
            Step::Fill { from, count, content } => {
                let pages = self.page_count();
                for page in from..(from + count).min(pages) {
                    self.write(page, content, page / PAGES_A_NODE);
                }
            }
            Step::Vanish { from, count } => {
                let pages = self.page_count();
                self.vanish(from..(from + count).min(pages));
            }
            Step::Scan => (0..engine_nodes(machine).len()).for_each(|node| self.scan(node)),
            Step::Unmerge => {
                engine.set(Knob::Run, 2).unwrap();
                model.unmerge();
            }
            Step::Limit(limit) => {
                let across = model.knobs.merge_across_nodes;
                let done = engine.set(Knob::MaxPageSharing, limit).is_ok();
                assert_eq!(done, model.set(usize::try_from(limit).unwrap(), across), "EBUSY");
            }
            Step::Across(across) => {
                let limit = model.knobs.max_page_sharing;
                let done = engine.set(Knob::MergeAcrossNodes, u64::from(across)).is_ok();
                assert_eq!(done, model.set(limit, across), "EBUSY");
            }
            Step::ZeroPages(on) => {
                engine.set(Knob::UseZeroPages, u64::from(on)).unwrap();
                model.knobs.use_zero_pages = on;
            }
            Step::Prune(ms) => {
                engine.set(Knob::StableNodeChainsPruneMillisecs, u64::from(ms)).unwrap();
                model.knobs.prune_ms = ms;
            }
            Step::Advance(ms) => {
                model.now_ms += ms;
                clock.store(model.now_ms, Ordering::SeqCst);
            }
            Step::MovePage { page, node } => {
                machine.move_page(vpn(page), machine_nid(node));
                model.move_page(page, node);
            }
            Step::MoveRegion { region, node } => {
                for page in region * PAGES_A_NODE..(region + 1) * PAGES_A_NODE {
                    machine.move_page(vpn(page), machine_nid(node));
                    model.move_page(page, node);
                }
            }
            Step::Offline(node) => {
                let done = engine.offline_node(machine_nid(node)).is_ok();
                assert_eq!(done, model.offline(node), "the last node");
            }
            Step::Online(node) => {
                engine.online_node(machine_nid(node)).unwrap();
                model.online(node);
            }
            Step::MoveFrame { frame, node } => {
                let frames = model.frames();
                if !frames.is_empty() {
                    let kpfn = frames[frame % frames.len()];
                    machine.move_frame(numerge_engine::Kpfn(kpfn), machine_nid(node));
                    model.move_frame(kpfn, node);
                }
            }
        }
    }

    fn scan(&mut self, node: usize) {
        self.engine.scan_node(machine_nid(node));
        if !self.model.scan(node) {
            return;
        }
        let frames = self.machine.frames();
        let nodes = engine_nodes(&self.machine);
        let frame_of: Vec<Option<(u64, usize)>> = (0..self.page_count())
            .map(|page| {
                let kpfn = self.machine.frame_of(vpn(page))?;
                let (_, nid, _) = frames.iter().find(|(known, ..)| *known == kpfn)?;
                Some((kpfn.0, nodes.iter().position(|node| node == nid)?))
            })
            .collect();
        self.model.adopt(&frame_of);
    }

    fn page_count(&self) -> usize {
        engine_nodes(&self.machine).len() * PAGES_A_NODE
    }

    fn check_content(&self) {
        for page in 0..self.page_count() {
            assert_eq!(self.machine.read(vpn(page)), self.model.content(page), "page {page}");
        }
    }

    fn check(&self) {
        self.check_content();
        let counters = self.engine.counters();
        assert_eq!(numbers(&counters), self.model.numbers());
        check_sums(&counters, &self.machine);
        // There is one program, so the engine's are its.
        let memory: Arc<dyn Memory> = self.machine.clone();
        let program = self.engine.program(&memory).counters();
        assert_eq!(program.pages_merged, counters.pages_shared + counters.pages_sharing);
        assert_eq!(program.ksm_zero_pages, counters.ksm_zero_pages);
        assert_eq!(program.pages_touched, counters.pages_registered - counters.pages_untouched);
        nodes_add_up(&counters, &self.engine.nodes());
    }
}

/// S5.6, and that no frame is left that nobody shares.
fn check_sums(counters: &Counters, machine: &Machine) {
    let c = counters;
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
    assert!(c.pages_shared >= machine.frames().iter().filter(|frame| frame.2 > 0).count() as u64);
}

fn numbers(counters: &Counters) -> Numbers {
    Numbers {
        shared: counters.pages_shared,
        sharing: counters.pages_sharing,
        unshared: counters.pages_unshared,
        volatile: counters.pages_volatile,
        zero: counters.ksm_zero_pages,
        untouched: counters.pages_untouched,
        chains: counters.stable_node_chains,
        dups: counters.stable_node_dups,
        full_scans: counters.full_scans,
    }
}

fn vpn(page: usize) -> Vpn {
    Vpn(page as u64)
}

fn machine_nid(node: usize) -> Nid {
    Nid(u32::try_from(node).unwrap() * 3)
}

fn engine_nodes(machine: &Machine) -> Vec<Nid> {
    let topology = numerge_engine::machine::Nodes::topology(machine);
    topology.nodes().iter().map(|node| node.nid).collect()
}

/// Whether engine and model know the same after a step. Of what a program writes neither does.
fn is_checked(step: &Step) -> bool {
    matches!(
        step,
        Step::Scan | Step::Unmerge | Step::Limit(_) | Step::Offline(_) | Step::Vanish { .. }
    )
}

fn history() -> impl Strategy<Value = (usize, Vec<Step>)> {
    prop_oneof![3 => Just(1_usize), 3 => Just(2), 2 => Just(4), 1 => Just(8)]
        .prop_flat_map(|nodes| (Just(nodes), prop::collection::vec(step(nodes), 1..60)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn s5_6_engine_and_model_agree_after_every_step((nodes, steps) in history()) {
        let mut pair = Pair::new(nodes, u64::from(u32::MAX), 120);
        for step in &steps {
            pair.take(step);
            if is_checked(step) {
                pair.check();
            }
        }
        let Pair { engine, machine, regions: _regions, model, .. } = pair;
        engine.shut_down().unwrap();
        prop_assert!(machine.frames().is_empty(), "frames are left");
        for page in 0..nodes * PAGES_A_NODE {
            prop_assert_eq!(machine.read(vpn(page)), model.content(page));
            prop_assert_eq!(machine.frame_of(vpn(page)), None);
        }
    }

    #[test]
    fn s1_1_content_stays_in_batches_of_any_size_and_with_colliding_fingerprints(
        (nodes, steps) in history(), batch in 1_u64..70, bits in prop_oneof![Just(0), Just(1), Just(2), Just(120)],
    ) {
        let mut pair = Pair::new(nodes, batch, bits);
        for step in &steps {
            match step {
                Step::Scan => pair.engine.full_scan(),
                Step::MoveFrame { frame, node } => {
                    let frames = pair.machine.frames();
                    if !frames.is_empty() {
                        let (kpfn, ..) = frames[frame % frames.len()];
                        pair.machine.move_frame(kpfn, machine_nid(*node));
                    }
                }
                // What is allowed depends on what is merged, and that on the batches.
                Step::Limit(_) | Step::Across(_) => continue,
                step => pair.take(step),
            }
            pair.check_content();
            let limit = pair.engine.knob(Knob::MaxPageSharing);
            prop_assert!(pair.machine.frames().iter().all(|frame| frame.2 <= limit));
            check_sums(&pair.engine.counters(), &pair.machine);
        }
        prop_assert!(pair.engine.take_errors().is_empty());
    }
}

#[test]
fn contents_differ_in_every_part_of_a_page() {
    let (one, two) = (expand(1), expand(2));
    assert!(one.chunks_exact(8).zip(two.chunks_exact(8)).all(|(a, b)| a != b));
    assert_eq!(expand(0), [0; 4096]);
}
