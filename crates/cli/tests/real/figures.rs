//! The worked figures of SEMANTICS S5 on real memory.

use numerge::Knob;

use crate::bed::{check_sums, holds, merger, settle, write};

/// Equal pages, limit -> shared, sharing, unshared, chains, dups.
const FIGURES: [(usize, u64, [u64; 5]); 11] = [
    (255, 256, [1, 254, 0, 0, 0]),
    (256, 256, [1, 255, 0, 0, 0]),
    (257, 256, [1, 255, 1, 0, 0]),
    (258, 256, [2, 256, 0, 1, 2]),
    (512, 256, [2, 510, 0, 1, 2]),
    (1000, 256, [4, 996, 0, 1, 4]),
    (300, 1024, [1, 299, 0, 0, 0]),
    (1025, 1024, [1, 1023, 1, 0, 0]),
    (999, 2, [499, 499, 1, 1, 499]),
    (777, 3, [259, 518, 0, 1, 259]),
    (1, 2, [0, 0, 1, 0, 0]),
];

#[test]
fn s5_6_worked_figures_on_real_memory() {
    let Some(merger) = merger() else { return };
    for (pages, limit, figures) in FIGURES {
        merger.set(Knob::Run, 2).unwrap();
        merger.set(Knob::MaxPageSharing, limit).unwrap();
        let region = merger.allocate(pages * 4096).unwrap();
        (0..pages).for_each(|page| write(&region, page, 7));
        merger.set(Knob::Run, 1).unwrap();
        let c = settle(&merger);
        let found = [
            c.pages_shared,
            c.pages_sharing,
            c.pages_unshared,
            c.stable_node_chains,
            c.stable_node_dups,
        ];
        assert_eq!(found, figures, "{pages} pages, limit {limit}");
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
