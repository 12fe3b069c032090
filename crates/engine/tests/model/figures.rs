//! The worked figures of SEMANTICS S5, on the in-memory machine.

use std::sync::Arc;

use crate::reference::{Knobs, Model, Numbers};
use numerge_engine::in_memory::Machine;
use numerge_engine::machine::{Memory, Vpn};
use numerge_engine::{Engine, EngineOptions, Knob, Nid, Topology};
use numerge_topology::Node;

/// Equal pages, limit -> shared, sharing, unshared, chains, dups; as the kernel's ksmd gives them.
const FIGURES: [(usize, usize, [u64; 5]); 9] = [
    (255, 256, [1, 254, 0, 0, 0]),
    (256, 256, [1, 255, 0, 0, 0]),
    (257, 256, [1, 255, 1, 0, 0]),
    (258, 256, [2, 256, 0, 1, 2]),
    (512, 256, [2, 510, 0, 1, 2]),
    (1000, 256, [4, 996, 0, 1, 4]),
    (300, 1024, [1, 299, 0, 0, 0]),
    (999, 2, [499, 499, 1, 1, 499]),
    (777, 3, [259, 518, 0, 1, 259]),
];

fn numbers([shared, sharing, unshared, chains, dups]: [u64; 5]) -> Numbers {
    Numbers { shared, sharing, unshared, chains, dups, full_scans: 3, ..Numbers::default() }
}

#[test]
fn s5_6_worked_figures_of_the_model() {
    for (pages, limit, figures) in FIGURES {
        let knobs = Knobs {
            max_page_sharing: limit,
            merge_across_nodes: true,
            use_zero_pages: false,
            prune_ms: 2000,
        };
        let mut model = Model::new(knobs, pages, vec![(0..pages).collect()]);
        (0..pages).for_each(|page| model.write(page, 7, 0));
        (0..3).for_each(|_| model.full_scan());
        assert_eq!(model.numbers(), numbers(figures), "{pages} pages, limit {limit}");
    }
}

#[test]
fn s5_6_worked_figures_of_the_engine_in_batches_of_any_size() {
    for (pages, limit, figures) in FIGURES {
        for batch in [1, 7, 100, 100_000] {
            let node =
                Node { nid: Nid(0), cpus: vec![0], memory_bytes: 1 << 30, distances: vec![10] };
            let machine = Machine::new(Topology::new(vec![node]).unwrap(), pages);
            let options = EngineOptions { background: false, ..EngineOptions::default() };
            let engine = Engine::new(machine.clone(), machine.clone(), options).unwrap();
            engine.set(Knob::MaxPageSharing, limit as u64).unwrap();
            engine.set(Knob::PagesToScan, batch).unwrap();
            (0..pages as u64).for_each(|page| machine.write(Vpn(page), 7, Nid(0)));
            let memory: Arc<dyn Memory> = machine.clone();
            let _region = engine.register(&memory, Vpn(0)..Vpn(pages as u64)).unwrap();
            (0..3).for_each(|_| engine.full_scan());
            let c = engine.counters();
            let found = [
                c.pages_shared,
                c.pages_sharing,
                c.pages_unshared,
                c.stable_node_chains,
                c.stable_node_dups,
            ];
            assert_eq!(found, figures, "{pages} pages, limit {limit}, batch {batch}");
        }
    }
}
