//! Looks that are set aside while their region is being let go of, when that fails.

use std::sync::Arc;
use std::time::Duration;

use numerge_engine::machine::{MemoryError, Vpn};

use crate::bed::NIDS;
use crate::script::{After, Before, Call};
use crate::two::Two;

/// Pages of the first region that are not alike.
const PAGES: std::ops::Range<u64> = 60..100;

/// The first shard has set aside the second look at these pages, for their region could not be let go
/// of when it was about to be carried out.
fn two_with_looks_aside() -> Two {
    let two = Two::new();
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    (0..3).for_each(|_| two.scan(0));
    write_all(&two);
    two.scan(0);
    write_all(&two);
    let (go, gone) = std::sync::mpsc::channel();
    two.memory.on(After, Call::Written, PAGES.start, move || {
        go.send(()).unwrap();
        // Now the region is being let go of, which waits for this walk.
        std::thread::sleep(Duration::from_millis(50));
    });
    // The scan waits meanwhile, and is next.
    two.memory.on(Before, Call::Unmerge, 5, || std::thread::sleep(Duration::from_millis(200)));
    two.memory.fail(After, Call::Unmerge, 5..6, 1);
    let engine = Arc::clone(&two.engine);
    let scan = std::thread::spawn(move || engine.scan_node(NIDS[0]));
    gone.recv().unwrap();
    let done = two.regions[0].unregister();
    assert!(matches!(done, Err(MemoryError::System { .. })), "{done:?}");
    scan.join().unwrap();
    assert_eq!(two.memory.clear(), 0);
    two
}

/// With what they hold already.
fn write_all(two: &Two) {
    PAGES.for_each(|page| two.write(page, page));
}

/// How many of them are merged, which none should be.
fn merged(two: &Two) -> usize {
    PAGES.filter(|page| two.machine.frame_of(Vpn(*page)).is_some()).count()
}

/// What each node's shard scans.
fn homes(two: &Two) -> Vec<u64> {
    two.engine.nodes().iter().map(|node| node.pages_home).collect()
}

/// Judged twice, a page would be merged with itself.
#[test]
fn s3_4_a_look_set_aside_is_not_carried_out_beside_a_new_one_at_the_same_page() {
    let two = two_with_looks_aside();
    write_all(&two);
    (0..4).for_each(|_| two.scan(0));
    assert_eq!(merged(&two), 0);
    two.check();
    two.end();
}

/// Nor do two shards look at a page at a time.
#[test]
fn s4_2_a_segment_with_looks_set_aside_stays_where_they_are_carried_out() {
    let two = two_with_looks_aside();
    write_all(&two);
    (0..100).for_each(|page| two.machine.move_page(Vpn(page), NIDS[1]));
    // By the time that the last of the pages is read the first is a candidate.
    let engine = Arc::clone(&two.engine);
    two.memory.on(Before, Call::Read, PAGES.end - 1, move || engine.scan_node(NIDS[1]));
    two.scan(0);
    assert_eq!(two.memory.clear(), 0);
    assert_eq!(homes(&two), [100, 100]);
    assert_eq!(merged(&two), 0);
    (0..2).for_each(|_| two.scan(0));
    assert_eq!(homes(&two), [0, 200]);
    two.check();
    two.end();
}
