//! The worked figures of SEMANTICS S5 on real memory.

use numerge::Knob;

use crate::bed::{check_sums, holds, merger, settle, write};
use crate::reference::{Knobs, Model, Numbers};

/// Equal pages and limits; the worked figures of S5 first.
const CASES: [(usize, usize); 16] = [
    (255, 256),
    (256, 256),
    (257, 256),
    (258, 256),
    (512, 256),
    (1000, 256),
    (300, 1024),
    (999, 2),
    (777, 3),
    (1, 2),
    (2, 2),
    (3, 2),
    (1025, 1024),
    (1026, 1024),
    (2048, 1024),
    (3001, 3),
];

/// What the reference model makes of them.
fn model(pages: usize, limit: usize) -> Numbers {
    let mut model = Model::new(
        Knobs {
            max_page_sharing: limit,
            merge_across_nodes: true,
            use_zero_pages: false,
            prune_ms: 2000,
        },
        pages,
        vec![(0..pages).collect()],
    );
    (0..pages).for_each(|page| model.write(page, 7, 0));
    (0..3).for_each(|_| model.full_scan());
    model.numbers()
}

#[test]
fn s5_6_worked_figures_on_real_memory_are_those_of_the_reference_model() {
    let Some(merger) = merger() else { return };
    for (pages, limit) in CASES {
        merger.set(Knob::Run, 2).unwrap();
        merger.set(Knob::MaxPageSharing, limit as u64).unwrap();
        let region = merger.allocate(pages * 4096).unwrap();
        (0..pages).for_each(|page| write(&region, page, 7));
        merger.set(Knob::Run, 1).unwrap();
        let c = settle(&merger);
        let found = Numbers {
            shared: c.pages_shared,
            sharing: c.pages_sharing,
            unshared: c.pages_unshared,
            volatile: c.pages_volatile,
            zero: c.ksm_zero_pages,
            untouched: c.pages_untouched,
            chains: c.stable_node_chains,
            dups: c.stable_node_dups,
            full_scans: 3,
        };
        assert_eq!(found, model(pages, limit), "{pages} pages, limit {limit}");
        check_sums(&c);
        assert!((0..pages).all(|page| holds(&region, page, 7)));
    }
    merger.shut_down().unwrap();
}

#[test]
fn s3_6_written_pages_leave_and_come_back_on_real_memory() {
    let Some(merger) = merger() else { return };
    let region = merger.allocate(1000 * 4096).unwrap();
    (0..1000).for_each(|page| write(&region, page, 7));
    merger.set(Knob::Run, 1).unwrap();
    assert_eq!(settle(&merger).pages_sharing, 996);
    (0..1000).step_by(10).for_each(|page| write(&region, page, 8));
    let c = settle(&merger);
    assert_eq!(c.pages_broken, 100);
    // Whether they can be merged again is for the machine to say; what it refuses is counted.
    assert_eq!(c.pages_shared + c.pages_sharing + c.pages_held, 1000);
    check_sums(&c);
    assert!((0..1000).all(|page| holds(&region, page, if page % 10 == 0 { 8 } else { 7 })));
}

#[test]
fn s3_2_zero_pages_on_real_memory() {
    let Some(merger) = merger() else { return };
    merger.set(Knob::UseZeroPages, 1).unwrap();
    let region = merger.allocate(500 * 4096).unwrap();
    (0..400).for_each(|page| write(&region, page, 0));
    merger.set(Knob::Run, 1).unwrap();
    let c = settle(&merger);
    assert_eq!((c.ksm_zero_pages, c.pages_shared, c.pages_untouched), (400, 0, 100));
    (0..50).for_each(|page| write(&region, page, 9));
    let c = settle(&merger);
    assert_eq!((c.ksm_zero_pages, c.pages_shared, c.pages_sharing), (350, 1, 49));
    merger.set(Knob::Run, 2).unwrap();
    let c = merger.counters();
    assert_eq!((c.ksm_zero_pages, c.pages_shared), (0, 0));
    assert!((0..500).all(|page| holds(&region, page, if page < 50 { 9 } else { 0 })));
}
