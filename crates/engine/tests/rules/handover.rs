//! Frames, candidates and segments that pass from one place to another while something else goes on, or
//! fails: nothing is lost on the way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use numerge_engine::in_memory::Machine;
use numerge_engine::machine::{Memory, Vpn};
use numerge_engine::{Engine, EngineOptions, Knob, Kpfn, Nid, RegionHandle};

use crate::bed::{Bed, NIDS, figures, topology};
use crate::script::{Act, After, Before, Call, Scripted, scripted};

struct Stand {
    machine: Arc<Machine>,
    held: Arc<Scripted>,
    engine: Arc<Engine>,
    regions: Vec<RegionHandle>,
}

/// An engine and regions of `pages` pages each; the first page of each is on `nids`.
fn stand(nodes: usize, pages: u64, nids: &[Nid], options: EngineOptions) -> Stand {
    let all = pages * nids.len() as u64;
    let machine = Machine::new(topology(nodes), usize::try_from(all).unwrap());
    let held = scripted(&machine);
    let engine = Engine::new(held.clone(), machine.clone(), options).unwrap();
    engine.set(Knob::PagesToScan, 1_000_000).unwrap();
    let mut regions = Vec::new();
    for (start, nid) in (0..).step_by(usize::try_from(pages).unwrap()).zip(nids) {
        machine.write(Vpn(start), 1_000_000 + start, *nid);
        let memory: Arc<dyn Memory> = held.clone();
        regions.push(engine.register(&memory, Vpn(start)..Vpn(start + pages)).unwrap());
    }
    Stand { machine, held, engine: Arc::new(engine), regions }
}

fn quiet() -> EngineOptions {
    EngineOptions { background: false, ..EngineOptions::default() }
}

fn wait(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// A frame in the tree of the first node, and one in that of the third which was moved to the
/// second; both have sharers.
fn one_moved() -> (Stand, Kpfn, Kpfn) {
    let stand = stand(3, 100, &[NIDS[0], NIDS[1], NIDS[2]], quiet());
    stand.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    (5..10).for_each(|page| stand.machine.write(Vpn(page), 50, NIDS[0]));
    (205..210).for_each(|page| stand.machine.write(Vpn(page), 60, NIDS[2]));
    (0..2).for_each(|_| stand.engine.full_scan());
    let [decoy, moved] = [5, 205].map(|page| stand.machine.frame_of(Vpn(page)).unwrap());
    stand.machine.move_frame(moved, NIDS[1]);
    (stand, decoy, moved)
}

/// A frame that a shard's sweep takes from a tree to the queue, and off it, is for a moment in neither:
/// who empties a node must not miss it.
#[test]
fn s4_5_a_frame_that_is_being_placed_leaves_an_offline_node_too() {
    let (stand, decoy, moved) = one_moved();
    let engine = Arc::clone(&stand.engine);
    // The queue was looked at, now the first tree: the third node's shard begins a pass.
    let scan: Act = Box::new(move || {
        std::thread::spawn(move || engine.scan_node(NIDS[2]));
        wait(100);
    });
    // It has swept, and has the frame off the queue.
    let place: Act = Box::new(|| wait(300));
    stand.held.on_later(Before, Call::NodeOfFrame, decoy.0, 0, scan);
    stand.held.on_later(Before, Call::NodeOfFrame, moved.0, 1, place);
    stand.engine.offline_node(NIDS[1]).unwrap();
    wait(600);
    assert_eq!(stand.held.clear(), 0);
    let there: Vec<_> = stand.machine.frames().into_iter().filter(|f| f.1 == NIDS[1]).collect();
    assert!(there.is_empty(), "in use on a node that is offline: {there:?}");
}

/// The same for a range of frames, where it could not even be placed any more.
#[test]
fn s4_5_a_frame_that_is_being_placed_leaves_an_offline_range_too() {
    let (stand, decoy, moved) = one_moved();
    let scan = || -> Act {
        let engine = Arc::clone(&stand.engine);
        Box::new(move || {
            std::thread::spawn(move || engine.scan_node(NIDS[2]));
            wait(100);
        })
    };
    // While the decoy is unmerged, a sweep queues the other frame, and it can't be placed. In the
    // next round, when it is no news that it moved, it is off the queue for a moment.
    stand.held.on_later(After, Call::Unmerge, 5, 0, scan());
    stand.held.on_later(After, Call::Free, decoy.0, 0, scan());
    stand.held.on_later(Before, Call::NodeOfFrame, moved.0, 2, Box::new(|| wait(400)));
    let range = decoy.min(moved)..decoy.max(moved).plus(1);
    stand.engine.offline_frames(range.clone()).unwrap();
    wait(600);
    (0..4).for_each(|_| stand.engine.full_scan());
    let there: Vec<_> =
        stand.machine.frames().into_iter().filter(|f| range.contains(&f.0)).collect();
    let queued = stand.engine.counters().stable_nodes_queued;
    assert!(there.is_empty(), "in use in a range that is offline: {there:?}, {queued} queued");
}

/// A frame with more sharers than a piece has could get them back as fast as it loses them.
#[test]
fn s4_5_a_node_goes_offline_while_a_frame_of_it_with_many_sharers_is_merged_with() {
    let pages = 30_000;
    let options = EngineOptions { threads_per_node: Some(1), ..EngineOptions::default() };
    let stand = stand(2, pages, &[NIDS[0]], options);
    stand.engine.set(Knob::MaxPageSharing, 1_000_000).unwrap();
    stand.engine.set(Knob::SleepMillisecs, 0).unwrap();
    // The frame comes to be on the second node.
    (1..3).for_each(|page| stand.machine.write(Vpn(page), 50, NIDS[1]));
    (3..pages).for_each(|page| stand.machine.write(Vpn(page), 50, NIDS[0]));
    stand.engine.set(Knob::Run, 1).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while stand.engine.counters().pages_sharing < pages - 2 {
        assert!(Instant::now() < until, "{:?}", stand.engine.counters());
        std::thread::sleep(Duration::from_millis(5));
    }
    let frame = stand.machine.frames()[0];
    let machine = Arc::clone(&stand.machine);
    stand.held.each(Call::Unmerge, move |ranges| {
        let pages = ranges.iter().cloned().flatten();
        let count = pages.map(|page| machine.move_page(Vpn(page), NIDS[0])).count();
        // As on a real machine.
        std::thread::sleep(Duration::from_micros(3 * count as u64));
    });
    assert_eq!(frame.1, NIDS[1]);
    let engine = Arc::clone(&stand.engine);
    let (send, done) = std::sync::mpsc::channel();
    let (scans, began) = (stand.engine.counters().full_scans, Instant::now());
    std::thread::spawn(move || send.send(engine.offline_node(frame.1).map_err(|e| e.to_string())));
    let took = done.recv_timeout(Duration::from_secs(10));
    let (now, c) = (stand.machine.frames(), stand.engine.counters());
    println!("{took:?} {:?} {}", began.elapsed(), c.full_scans - scans);
    stand.engine.set(Knob::Run, 0).unwrap();
    let after = done.recv_timeout(Duration::from_secs(10));
    assert!(took.is_ok(), "not done after 10 s: {frame:?} {now:?} {c:?}, then {after:?}");
}

/// That memory may have moved is not forgotten where nobody could say where it is.
#[test]
fn s4_1_a_candidate_that_moved_is_found_though_the_machine_could_not_be_asked_once() {
    let stand = stand(2, 20, &[NIDS[0], NIDS[1]], quiet());
    stand.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    stand.machine.write(Vpn(5), 5, NIDS[0]);
    stand.machine.write(Vpn(25), 5, NIDS[1]);
    (0..3).for_each(|_| stand.engine.full_scan());
    assert_eq!(figures(&stand.engine.counters()), [0, 0, 4, 0, 0]);
    stand.machine.move_page(Vpn(25), NIDS[0]);
    // Once for the sample, once for the candidates.
    stand.held.fail(Before, Call::NodesOf, 20..40, 2);
    (0..20).for_each(|_| stand.engine.full_scan());
    assert_eq!(stand.held.clear(), 0);
    assert_eq!(figures(&stand.engine.counters()), [1, 1, 2, 0, 0]);
}

/// The same for frames: swapped out at that moment, or the machine could not be asked.
#[test]
fn s4_3_a_moved_frame_is_found_though_the_machine_could_not_be_asked_once() {
    let (stand, _, moved) = one_moved();
    for call in [Call::NodeOfFrame, Call::NodesOfFrames] {
        stand.held.fail(Before, call, 0..u64::MAX, u64::MAX);
    }
    stand.engine.full_scan();
    stand.held.clear();
    (0..20).for_each(|_| stand.engine.full_scan());
    // A page of the third node is merged with a frame on the second, for good.
    stand.machine.write(Vpn(220), 60, NIDS[2]);
    (0..20).for_each(|_| stand.engine.full_scan());
    assert_eq!(stand.engine.counters().stable_nodes_replaced, 1);
    assert_ne!(stand.machine.frame_of(Vpn(220)), Some(moved));
}

/// Frames are not moved back to a node that was taken offline.
#[test]
fn s4_5_nothing_is_moved_back_to_an_offline_node() {
    let options = EngineOptions { move_frames_back: true, ..quiet() };
    let bed = Bed::with(2, 40, options);
    bed.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    bed.write_on(0..20, 5, NIDS[0]);
    bed.write_on(20..40, 6, NIDS[1]);
    bed.scan(2);
    bed.machine.move_frame(bed.frame(20).unwrap(), NIDS[0]);
    bed.engine.offline_node(NIDS[1]).unwrap();
    bed.scan(2);
    assert!(bed.machine.frames().iter().all(|(_, nid, _)| *nid == NIDS[0]));
}

/// While a node's shard is ended and its segments are not yet another's, no pass that ends is the last
/// of a full scan.
#[test]
fn s3_4_a_full_scan_does_not_leave_out_a_node_that_is_just_going() {
    let stand = stand(2, 100, &[NIDS[0], NIDS[1]], quiet());
    let engine = Arc::clone(&stand.engine);
    let (send, done) = std::sync::mpsc::channel();
    stand.held.on(Before, Call::Read, 0, move || {
        std::thread::spawn(move || send.send(engine.offline_node(NIDS[1])));
        wait(200);
    });
    stand.engine.scan_node(NIDS[0]);
    done.recv_timeout(Duration::from_secs(5)).unwrap().unwrap();
    let c = stand.engine.counters();
    assert_eq!((c.full_scans, c.pages_scanned), (0, 1), "page 100 was not visited");
}

/// Looks at a region that is gone, handed to another shard, are no pass of that shard's.
#[test]
fn s3_4_looks_that_are_handed_over_are_no_pass() {
    let options = EngineOptions { threads_per_node: Some(1), ..EngineOptions::default() };
    let mut stand = stand(2, 100, &[NIDS[0], NIDS[1]], options);
    let engine = Arc::clone(&stand.engine);
    let (send, stopped) = std::sync::mpsc::channel();
    // Scanning stops when the second node's shard has found page 100, the first one's is through.
    stand.held.on(After, Call::Written, 100, move || {
        wait(200);
        engine.set(Knob::Run, 0).unwrap();
        wait(100);
        send.send(()).unwrap();
    });
    stand.engine.set(Knob::Run, 1).unwrap();
    stopped.recv().unwrap();
    wait(100);
    drop(stand.regions.pop());
    stand.engine.offline_node(NIDS[1]).unwrap();
    stand.machine.write(Vpn(7), 7, NIDS[0]);
    let before = stand.engine.counters();
    stand.engine.scan_node(NIDS[0]);
    let after = stand.engine.counters();
    assert!(
        (after.full_scans, after.pages_scanned) != (before.full_scans + 1, before.pages_scanned),
        "page 7 was not looked at: {before:?} {after:?}"
    );
}

/// A sample at even distances would find interleaved memory all on one node.
#[test]
fn s4_2_the_home_of_interleaved_memory_is_where_most_of_it_is() {
    let bed = Bed::on(2, 8192);
    for page in 0..8192 {
        bed.write_on([page], page + 1, NIDS[usize::from(page % 4 != 0)]);
    }
    bed.scan(2);
    let homes: Vec<u64> = bed.engine.nodes().iter().map(|node| node.pages_home).collect();
    assert_eq!(homes, [0, 8192], "three quarters are on the second node");
}

/// Nor if the walk on which candidates are asked for their node was cut short.
#[test]
fn s4_1_a_candidate_that_moved_is_found_though_the_machine_failed_to_report_once() {
    let stand = stand(2, 20, &[NIDS[0], NIDS[1]], quiet());
    stand.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    stand.machine.write(Vpn(5), 5, NIDS[0]);
    stand.machine.write(Vpn(25), 5, NIDS[1]);
    (0..3).for_each(|_| stand.engine.full_scan());
    stand.machine.move_page(Vpn(25), NIDS[0]);
    stand.held.fail(Before, Call::Written, 0..40, u64::MAX);
    stand.engine.full_scan();
    stand.held.clear();
    (0..20).for_each(|_| stand.engine.full_scan());
    assert_eq!(figures(&stand.engine.counters()), [1, 1, 2, 0, 0]);
}

/// Memory on a node that came after the engine was built.
#[test]
fn s4_6_memory_on_an_unknown_node_is_merged_where_one_tree_serves_all() {
    let bed = Bed::on(2, 20);
    bed.write_on(0..20, 5, Nid(9));
    assert_eq!(figures(&bed.scan(4)), [1, 19, 0, 0, 0]);
}
