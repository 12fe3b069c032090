//! Interleavings that once went wrong, each made to happen: a call of the machine's is held up while
//! another shard, or another thread, gets its turn.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use numerge_engine::in_memory::Machine;
use numerge_engine::machine::{
    Kind, Mappings, Memory, MemoryError, Outcome, PAGE_SIZE, Run, Vpn, Written,
};
use numerge_engine::{Engine, EngineOptions, Knob, Nid, RegionHandle};
use parking_lot::Mutex;

use crate::bed::{NIDS, topology};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    Written,
    Read,
    AfterMerge,
    AfterUnmerge,
}

type Hook = Box<dyn FnOnce() -> Result<(), MemoryError> + Send>;

/// The machine's memory; one call of a kind can be given something to do first.
struct Hooked {
    machine: Arc<Machine>,
    hook: Mutex<Option<(Call, Vpn, Hook)>>,
}

impl Hooked {
    fn on(&self, call: Call, page: u64, hook: impl FnOnce() + Send + 'static) {
        let hook: Hook = Box::new(|| {
            hook();
            Ok(())
        });
        *self.hook.lock() = Some((call, Vpn(page), hook));
    }

    fn fail(&self, call: Call, page: u64) {
        let hook: Hook = Box::new(|| {
            Err(MemoryError::System { call: "test", source: std::io::ErrorKind::Other.into() })
        });
        *self.hook.lock() = Some((call, Vpn(page), hook));
    }

    fn run(&self, call: Call, pages: &Range<Vpn>) -> Result<(), MemoryError> {
        let due = self.hook.lock().take_if(|(on, page, _)| *on == call && pages.contains(page));
        due.map_or(Ok(()), |(_, _, hook)| hook())
    }
}

impl Memory for Hooked {
    fn register(&self, pages: Range<Vpn>) -> Result<(), MemoryError> {
        Memory::register(&*self.machine, pages)
    }

    fn unregister(&self, pages: Range<Vpn>) -> Result<(), MemoryError> {
        self.machine.unregister(pages)
    }

    fn written(
        &self,
        pages: Range<Vpn>,
        max_pages: u64,
        out: &mut Vec<Written>,
    ) -> Result<Vpn, MemoryError> {
        let reached = self.machine.written(pages.clone(), max_pages, out)?;
        self.run(Call::Written, &pages)?;
        Ok(reached)
    }

    fn kinds(&self, pages: Range<Vpn>, out: &mut Vec<Option<Kind>>) -> Result<(), MemoryError> {
        self.machine.kinds(pages, out)
    }

    fn read(&self, runs: &[Range<Vpn>], each: &mut dyn FnMut(&[u8; PAGE_SIZE])) {
        let mut copies = Vec::new();
        Memory::read(&*self.machine, runs, &mut |content| copies.push(*content));
        runs.iter().for_each(|pages| self.run(Call::Read, pages).unwrap());
        copies.iter().for_each(each);
    }

    fn merge(&self, runs: &[Run], out: &mut Vec<Outcome>) {
        self.machine.merge(runs, out);
        runs.iter().for_each(|run| self.run(Call::AfterMerge, &run.pages).unwrap());
    }

    fn unmerge(&self, ranges: &[Range<Vpn>]) -> Result<(), MemoryError> {
        self.machine.unmerge(ranges)?;
        ranges.iter().try_for_each(|pages| self.run(Call::AfterUnmerge, pages))
    }

    fn nodes_of(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Nid>>) -> Result<(), MemoryError> {
        Memory::nodes_of(&*self.machine, runs, out)
    }

    fn mappings(&self) -> Result<Mappings, MemoryError> {
        self.machine.mappings()
    }

    fn metadata_bytes(&self) -> u64 {
        0
    }
}

/// Two nodes, and a region of 100 pages on each, scanned by its own shard.
struct Two {
    machine: Arc<Machine>,
    memory: Arc<Hooked>,
    engine: Arc<Engine>,
    regions: [RegionHandle; 2],
}

impl Two {
    fn new() -> Self {
        let machine = Machine::new(topology(2), 300);
        let memory = Arc::new(Hooked { machine: machine.clone(), hook: Mutex::new(None) });
        let options = EngineOptions { background: false, ..EngineOptions::default() };
        let engine = Arc::new(Engine::new(machine.clone(), machine.clone(), options).unwrap());
        engine.set(Knob::PagesToScan, 1_000_000).unwrap();
        let regions = [0, 1].map(|node| {
            let start = 100 * node as u64;
            machine.write(Vpn(start), 1000 + start, NIDS[node]);
            let memory: Arc<dyn Memory> = memory.clone();
            engine.register(&memory, Vpn(start)..Vpn(start + 100)).unwrap()
        });
        Self { machine, memory, engine, regions }
    }

    fn write(&self, page: u64, content: u64) {
        self.machine.write(Vpn(page), content, NIDS[usize::from(page >= 100)]);
    }

    fn scan(&self, node: usize) {
        self.engine.scan_node(NIDS[node]);
    }

    /// That what is recorded is what is.
    fn check(&self) {
        let c = self.engine.counters();
        let maps: u64 = self.machine.frames().iter().map(|frame| frame.2).sum();
        assert_eq!(c.pages_shared + c.pages_sharing, maps, "{c:?}");
    }

    fn end(self) {
        drop(self.regions);
        (0..4).for_each(|_| self.engine.full_scan());
        drop(self.engine);
        assert!(self.machine.frames().is_empty(), "{:?}", self.machine.frames());
    }
}

#[test]
fn s1_1_a_page_merged_by_another_shard_while_it_is_looked_at_stays_merged() {
    let two = Two::new();
    // In the piece looked at there is a page that was merged and written to, beside a candidate.
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    two.write(7, 70);
    (0..3).for_each(|_| two.scan(0));
    assert_eq!(two.machine.frame_of(Vpn(5)), two.machine.frame_of(Vpn(6)));
    two.write(107, 70);
    two.scan(1);
    two.write(6, 60);
    two.write(7, 70);
    let engine = Arc::clone(&two.engine);
    two.memory.on(Call::Read, 7, move || engine.scan_node(NIDS[1]));
    two.scan(0);
    assert!(two.machine.frame_of(Vpn(7)).is_some());
    two.check();
    // The other one goes: the frame must stay as long as page 7 is mapped to it.
    two.write(107, 71);
    (0..4).for_each(|_| two.engine.full_scan());
    assert_eq!(two.machine.read(Vpn(7)), 70);
    two.check();
    two.end();
}

#[test]
fn s5_3_a_region_that_is_let_go_of_lends_no_partners() {
    let two = Two::new();
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    two.write(7, 70);
    (0..3).for_each(|_| two.scan(0));
    two.write(107, 70);
    two.scan(1);
    // A batch that waits for the lock has its turn between unmerging and unregistering.
    let (go, gone) = std::sync::mpsc::channel();
    let memory = Arc::clone(&two.memory);
    two.memory.on(Call::Written, 107, move || {
        memory.on(Call::AfterUnmerge, 5, || std::thread::sleep(Duration::from_millis(200)));
        go.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    });
    let engine = Arc::clone(&two.engine);
    let scan = std::thread::spawn(move || engine.scan_node(NIDS[1]));
    gone.recv().unwrap();
    two.regions[0].unregister().unwrap();
    scan.join().unwrap();
    assert!((0..300).all(|page| two.machine.frame_of(Vpn(page)).is_none()));
    two.check();
    two.end();
}

#[test]
fn s4_4_a_lone_sharer_is_moved_by_the_shard_that_scans_it() {
    let two = Two::new();
    two.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    [5, 6, 105, 106].iter().for_each(|page| two.write(*page, 50));
    (0..3).for_each(|_| two.engine.full_scan());
    two.write(6, 60);
    two.scan(0);
    // The frame of page 5, its only sharer, moves to the other node, and page 5 is written to.
    let frame = two.machine.frame_of(Vpn(5)).unwrap();
    two.write(5, 51);
    // Enough that page 40 is read when page 5 was judged.
    (20..41).for_each(|page| two.write(page, page));
    let (engine, machine) = (Arc::clone(&two.engine), Arc::clone(&two.machine));
    // Shard 0 has found that page 5 left its frame; before it is recorded, shard 1 begins a pass.
    two.memory.on(Call::Read, 40, move || {
        std::thread::sleep(Duration::from_millis(50));
        machine.move_frame(frame, NIDS[1]);
        engine.scan_node(NIDS[1]);
    });
    two.scan(0);
    two.check();
    (0..4).for_each(|_| two.engine.full_scan());
    assert_eq!(two.machine.read(Vpn(5)), 51);
    two.check();
    two.end();
}

#[test]
fn s3_6_a_page_written_between_its_merge_and_the_record_of_it_is_noticed() {
    let two = Two::new();
    two.write(7, 70);
    (0..3).for_each(|_| two.scan(0));
    two.write(107, 70);
    two.scan(1);
    let (engine, machine) = (Arc::clone(&two.engine), Arc::clone(&two.machine));
    two.memory.on(Call::AfterMerge, 7, move || {
        machine.write(Vpn(7), 71, NIDS[0]);
        engine.scan_node(NIDS[0]);
    });
    two.scan(1);
    assert_eq!(two.machine.frame_of(Vpn(7)), None);
    (0..4).for_each(|_| two.engine.full_scan());
    two.check();
    two.end();
}

#[test]
fn s3_4_what_was_reported_before_an_error_is_looked_at() {
    let two = Two::new();
    [5, 6].iter().for_each(|page| two.write(*page, 50));
    (0..3).for_each(|_| two.engine.full_scan());
    two.write(5, 51);
    two.memory.fail(Call::Written, 5);
    (0..4).for_each(|_| two.engine.full_scan());
    assert_eq!(two.engine.take_errors().len(), 1);
    two.check();
    two.end();
}

#[test]
fn s1_1_a_page_that_seemed_to_collide_belongs_to_one_shard() {
    let two = Two::new();
    two.write(7, 70);
    (0..3).for_each(|_| two.scan(0));
    // Another program on the second node, whose pages are merged after those of the first.
    let other = Arc::new(Hooked { machine: two.machine.clone(), hook: Mutex::new(None) });
    [205, 206].iter().for_each(|page| two.write(*page, 80));
    two.machine.write(Vpn(200), 200, NIDS[1]);
    let memory: Arc<dyn Memory> = other.clone();
    let region = two.engine.register(&memory, Vpn(200)..Vpn(300)).unwrap();
    two.write(107, 70);
    two.scan(1);
    // Page 7 is taken for a partner, differs when it is merged, and is as before when that is
    // looked into; then, before it is dealt with, its own shard scans.
    let (machine, memory) = (Arc::clone(&two.machine), Arc::clone(&two.memory));
    two.memory.on(Call::Read, 7, move || {
        let again = Arc::clone(&memory);
        memory.on(Call::Read, 7, move || {
            machine.write(Vpn(7), 71, NIDS[0]);
            again.on(Call::AfterMerge, 7, move || machine.write(Vpn(7), 70, NIDS[0]));
        });
    });
    let engine = Arc::clone(&two.engine);
    other.on(Call::AfterMerge, 205, move || (0..2).for_each(|_| engine.scan_node(NIDS[0])));
    two.scan(1);
    assert_eq!(two.machine.frame_of(Vpn(205)), two.machine.frame_of(Vpn(206)));
    (0..6).for_each(|_| two.engine.full_scan());
    assert_eq!((two.machine.read(Vpn(7)), two.machine.read(Vpn(107))), (70, 70));
    two.check();
    drop(region);
    two.end();
}

#[test]
fn s4_3_a_queued_frame_is_given_back_though_the_trees_became_one() {
    let two = Two::new();
    two.engine.set(Knob::MergeAcrossNodes, 0).unwrap();
    [5, 6, 105, 106].iter().for_each(|page| two.write(*page, 50));
    (0..3).for_each(|_| two.engine.full_scan());
    two.write(6, 60);
    two.scan(0);
    two.machine.move_frame(two.machine.frame_of(Vpn(5)).unwrap(), NIDS[1]);
    // Queued, and left there: page 5 is not this shard's.
    two.scan(1);
    assert_eq!(two.engine.counters().stable_nodes_queued, 1);
    two.engine.set(Knob::Run, 2).unwrap();
    two.engine.set(Knob::MergeAcrossNodes, 1).unwrap();
    (0..4).for_each(|_| two.engine.full_scan());
    assert_eq!(two.engine.counters().stable_nodes_queued, 0);
    two.end();
}
