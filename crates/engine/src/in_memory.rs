//! A machine that exists only in memory: any nodes, pages whose content is a number, frames, and an
//! operating system that moves them about. The engine's test bed.
//!
//! It is as strict as a real machine is forgiving: whatever would be a use of a frame that is not
//! the engine's to make (freeing one that a page is mapped to, writing to one that is shared)
//! panics at once.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use numerge_stable_tree::Kpfn;
use numerge_topology::{Nid, Topology};
use parking_lot::{Mutex, MutexGuard};

use crate::machine::{
    CpuClock, FrameError, Frames, Kind, Mappings, Memory, MemoryError, Nodes, Outcome, PAGE_SIZE,
    Run, Target, Vpn, Written,
};

/// What a page holds: the whole page follows from this number. 0 is a page of zeros.
pub type Content = u64;

/// The 4096 bytes of a content.
#[must_use]
pub fn expand(content: Content) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    if content != 0 {
        for (word, place) in page.chunks_exact_mut(8).zip(0_u64..) {
            word.copy_from_slice(
                &(content ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes(),
            );
        }
    }
    page
}

/// The content whose first bytes these are.
fn shrink(page: &[u8; PAGE_SIZE]) -> Content {
    let mut word = [0; 8];
    word.copy_from_slice(&page[..8]);
    Content::from_le_bytes(word)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mapped {
    Nothing,
    Own(Content),
    Frame(Kpfn),
    Zero,
}

impl Mapped {
    fn kind(self) -> Option<Kind> {
        match self {
            Self::Nothing => None,
            Self::Own(_) => Some(Kind::Private),
            Self::Frame(_) => Some(Kind::Frame),
            Self::Zero => Some(Kind::Zero),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Page {
    mapped: Mapped,
    nid: Nid,
    written: bool,
    pinned: bool,
}

#[derive(Debug)]
struct Frame {
    content: Content,
    nid: Nid,
    maps: u64,
}

#[derive(Debug)]
struct State {
    pages: Vec<Page>,
    frames: BTreeMap<Kpfn, Frame>,
    /// Of each node's pool: the first number never used, and those used and freed.
    pools: Vec<(u64, Vec<Kpfn>)>,
    /// Frames that can still be allocated, and private copies that can still be made.
    frames_left: u64,
    copies_left: u64,
    mappings: Mappings,
    /// Moves by the operating system, in all.
    migrations: u64,
    offline: Vec<Nid>,
    withheld: Vec<Range<Kpfn>>,
}

/// The machine: memory, frames and nodes at once.
#[derive(Debug)]
pub struct Machine {
    topology: Topology,
    state: Mutex<State>,
    read_cost_nanos: AtomicU64,
    /// CPU time that threads have used, in nanoseconds.
    used: Mutex<HashMap<ThreadId, Arc<AtomicU64>>>,
}

impl Machine {
    /// A machine with these nodes and one program of `pages` untouched pages, numbered from 0.
    #[must_use]
    pub fn new(topology: Topology, pages: usize) -> Arc<Self> {
        let nid = topology.nodes()[0].nid;
        let untouched = Page { mapped: Mapped::Nothing, nid, written: false, pinned: false };
        let state = State {
            pages: vec![untouched; pages],
            frames: BTreeMap::new(),
            pools: (0..topology.nodes().len())
                .map(|node| (pool(node).start.0, Vec::new()))
                .collect(),
            frames_left: u64::MAX,
            copies_left: u64::MAX,
            mappings: Mappings { used: 0, limit: u64::MAX },
            migrations: 0,
            offline: Vec::new(),
            withheld: Vec::new(),
        };
        Arc::new(Self {
            topology,
            state: Mutex::new(state),
            read_cost_nanos: AtomicU64::new(0),
            used: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// From now on, reading a page of the program takes so much CPU time, and all else none. It takes no time.
    pub fn set_read_cost(&self, cost: Duration) {
        let nanos = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX);
        // Relaxed: a setting, nothing is ordered by it.
        self.read_cost_nanos.store(nanos, Ordering::Relaxed);
    }

    /// What the calling thread has used.
    fn used(&self) -> Arc<AtomicU64> {
        Arc::clone(self.used.lock().entry(std::thread::current().id()).or_default())
    }

    /// The program writes to a page, whose memory is then on `nid` if it is new.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn write(&self, vpn: Vpn, content: Content, nid: Nid) {
        let mut state = self.state();
        let page = state.pages[index(vpn)];
        let nid = if matches!(page.mapped, Mapped::Own(_)) { page.nid } else { nid };
        state.unmap(page.mapped);
        let page = &mut state.pages[index(vpn)];
        *page = Page { mapped: Mapped::Own(content), nid, written: true, ..*page };
    }

    /// Reports pages as written once more, as a machine does that could not read them.
    pub fn report_again(&self, runs: &[Range<Vpn>]) {
        let mut state = self.state();
        for vpn in runs.iter().flat_map(|run| run.start.0..run.end.0).map(Vpn) {
            if let Some(page) = state.pages.get_mut(index(vpn)) {
                page.written = page.mapped != Mapped::Nothing;
            }
        }
    }

    /// What the program reads.
    ///
    /// # Panics
    /// If there is no such page.
    #[must_use]
    pub fn read(&self, vpn: Vpn) -> Content {
        let state = self.state();
        state.content(state.pages[index(vpn)].mapped)
    }

    /// The program gives a page back: it is untouched again.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn discard(&self, vpn: Vpn) {
        let mut state = self.state();
        let page = state.pages[index(vpn)];
        state.unmap(page.mapped);
        state.pages[index(vpn)] = Page { mapped: Mapped::Nothing, written: false, ..page };
    }

    /// The frame a page is mapped to.
    ///
    /// # Panics
    /// If there is no such page.
    #[must_use]
    pub fn frame_of(&self, vpn: Vpn) -> Option<Kpfn> {
        match self.state().pages[index(vpn)].mapped {
            Mapped::Frame(kpfn) => Some(kpfn),
            _ => None,
        }
    }

    /// The operating system moves a page's own memory.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn move_page(&self, vpn: Vpn, nid: Nid) {
        let mut state = self.state();
        state.pages[index(vpn)].nid = nid;
        state.migrations += 1;
    }

    /// The operating system moves a frame.
    ///
    /// # Panics
    /// If there is no such frame.
    pub fn move_frame(&self, kpfn: Kpfn, nid: Nid) {
        let mut state = self.state();
        state.frames.get_mut(&kpfn).expect("a frame in use").nid = nid;
        state.migrations += 1;
    }

    /// The operating system moves a frame, if it is in use still.
    pub fn try_move_frame(&self, kpfn: Kpfn, nid: Nid) {
        let mut state = self.state();
        if let Some(frame) = state.frames.get_mut(&kpfn) {
            frame.nid = nid;
            state.migrations += 1;
        }
    }

    /// The operating system takes a node away, once it has moved all that is on it to `to`.
    pub fn take_node(&self, nid: Nid, to: Nid) {
        let mut state = self.state();
        let frames = state.frames.values_mut().map(|frame| &mut frame.nid);
        frames.filter(|at| **at == nid).for_each(|at| *at = to);
        let pages = state.pages.iter_mut().map(|page| &mut page.nid);
        pages.filter(|at| **at == nid).for_each(|at| *at = to);
        state.migrations += 1;
        state.offline.push(nid);
    }

    /// A node is back.
    pub fn give_node(&self, nid: Nid) {
        self.state().offline.retain(|offline| *offline != nid);
    }

    /// Pins a page for DMA, or lets go of it.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn pin(&self, vpn: Vpn, pinned: bool) {
        self.state().pages[index(vpn)].pinned = pinned;
    }

    /// Frames in use, with the node each is on and how many pages are mapped to it.
    #[must_use]
    pub fn frames(&self) -> Vec<(Kpfn, Nid, u64)> {
        self.state().frames.iter().map(|(kpfn, frame)| (*kpfn, frame.nid, frame.maps)).collect()
    }

    /// Lets only so many more frames be allocated, and private copies be made in unmerging.
    pub fn limit(&self, frames: u64, copies: u64) {
        let mut state = self.state();
        state.frames_left = frames;
        state.copies_left = copies;
    }

    /// Says how many mappings the program has and may have.
    pub fn set_mappings(&self, mappings: Mappings) {
        self.state().mappings = mappings;
    }
}

/// Frame numbers of a pool, in bits.
const POOL_SHIFT: u32 = 20;

/// The frame numbers of a node's pool.
fn pool(node: usize) -> Range<Kpfn> {
    let first = (node as u64) << POOL_SHIFT;
    Kpfn(first)..Kpfn(first + (1 << POOL_SHIFT))
}

fn index(vpn: Vpn) -> usize {
    usize::try_from(vpn.0).expect("a page of the machine")
}

impl State {
    fn content(&self, mapped: Mapped) -> Content {
        match mapped {
            Mapped::Own(content) => content,
            Mapped::Frame(kpfn) => self.frames[&kpfn].content,
            Mapped::Nothing | Mapped::Zero => 0,
        }
    }

    fn unmap(&mut self, mapped: Mapped) {
        if let Mapped::Frame(kpfn) = mapped {
            self.frames.get_mut(&kpfn).expect("a mapped frame is in use").maps -= 1;
        }
    }

    fn merge(&mut self, vpn: Vpn, target: Option<Kpfn>) -> Outcome {
        let page = self.pages[index(vpn)];
        let content = target.map_or(0, |kpfn| self.frames[&kpfn].content);
        if page.mapped == Mapped::Nothing {
            return Outcome::Gone;
        }
        assert!(matches!(page.mapped, Mapped::Own(_)), "page {vpn:?} is merged already");
        if page.pinned {
            return Outcome::Pinned;
        }
        if self.content(page.mapped) != content {
            return Outcome::Differs;
        }
        if let Some(kpfn) = target {
            self.frames.get_mut(&kpfn).expect("a target is in use").maps += 1;
        }
        let page = &mut self.pages[index(vpn)];
        page.mapped = target.map_or(Mapped::Zero, Mapped::Frame);
        // A new mapping counts as written at the next walk, as on Linux.
        page.written = true;
        Outcome::Merged
    }
}

impl Memory for Machine {
    fn register(&self, pages: Range<Vpn>) -> Result<(), MemoryError> {
        let mut state = self.state();
        let range = index(pages.start)..index(pages.end);
        let Some(registered) = state.pages.get_mut(range) else {
            return Err(MemoryError::NotMergeable(pages));
        };
        registered.iter_mut().for_each(|page| page.written = page.mapped != Mapped::Nothing);
        Ok(())
    }

    fn unregister(&self, pages: Range<Vpn>) -> Result<(), MemoryError> {
        let state = self.state();
        let merged = state.pages[index(pages.start)..index(pages.end)]
            .iter()
            .any(|page| matches!(page.mapped, Mapped::Frame(_)));
        assert!(!merged, "unregistered while merged");
        Ok(())
    }

    fn written(
        &self,
        pages: Range<Vpn>,
        max_pages: u64,
        out: &mut Vec<Written>,
    ) -> Result<Vpn, MemoryError> {
        let mut state = self.state();
        let mut left = max_pages;
        let mut at = pages.start;
        while at < pages.end && left > 0 {
            let page = &mut state.pages[index(at)];
            let next = at.plus(1);
            at = next;
            if std::mem::take(&mut page.written) {
                let Some(kind) = page.mapped.kind() else { continue };
                match out.last_mut() {
                    Some(last) if last.pages.end.plus(1) == next && last.kind == kind => {
                        last.pages.end = next;
                    }
                    _ => out.push(Written { pages: Vpn(next.0 - 1)..next, kind }),
                }
                left -= 1;
            }
        }
        Ok(at)
    }

    fn kinds(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Kind>>) -> Result<(), MemoryError> {
        let state = self.state();
        for run in runs {
            let pages = &state.pages[index(run.start)..index(run.end)];
            out.extend(pages.iter().map(|page| page.mapped.kind()));
        }
        Ok(())
    }

    fn read(
        &self,
        runs: &[Range<Vpn>],
        each: &mut dyn FnMut(&[u8; PAGE_SIZE]),
    ) -> Result<(), MemoryError> {
        for vpn in runs.iter().flat_map(|run| run.start.0..run.end.0).map(Vpn) {
            let content = {
                let state = self.state();
                match state.pages.get(index(vpn)).map(|page| page.mapped) {
                    None | Some(Mapped::Nothing) => return Ok(()),
                    Some(mapped) => state.content(mapped),
                }
            };
            // Relaxed: a setting and a counter, nothing is ordered by them.
            let cost = self.read_cost_nanos.load(Ordering::Relaxed);
            if cost > 0 {
                self.used().fetch_add(cost, Ordering::Relaxed);
            }
            each(&expand(content));
        }
        Ok(())
    }

    fn merge(&self, runs: &[Run], out: &mut Vec<Outcome>) {
        let mut state = self.state();
        for run in runs {
            for place in 0..run.pages.end.0 - run.pages.start.0 {
                let target = match run.target {
                    Target::Frames(first) => Some(first.plus(place)),
                    Target::Zero => None,
                };
                out.push(state.merge(run.pages.start.plus(place), target));
            }
        }
    }

    fn unmerge(&self, ranges: &[Range<Vpn>]) -> Result<(), MemoryError> {
        let mut state = self.state();
        for vpn in ranges.iter().flat_map(|range| range.start.0..range.end.0).map(Vpn) {
            let page = state.pages[index(vpn)];
            if matches!(page.mapped, Mapped::Frame(_) | Mapped::Zero) {
                state.copies_left =
                    state.copies_left.checked_sub(1).ok_or(MemoryError::OutOfMemory)?;
                let nid = match page.mapped {
                    Mapped::Frame(kpfn) => state.frames[&kpfn].nid,
                    _ => page.nid,
                };
                let content = state.content(page.mapped);
                state.unmap(page.mapped);
                let page = &mut state.pages[index(vpn)];
                *page = Page { mapped: Mapped::Own(content), nid, written: true, ..*page };
            }
        }
        Ok(())
    }

    fn nodes_of(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Nid>>) -> Result<(), MemoryError> {
        let state = self.state();
        if let Some(run) = runs.iter().find(|run| index(run.end) > state.pages.len()) {
            return Err(MemoryError::NotMergeable(run.clone()));
        }
        let pages = runs.iter().flat_map(|run| &state.pages[index(run.start)..index(run.end)]);
        out.extend(pages.map(|page| match page.mapped {
            Mapped::Nothing | Mapped::Zero => None,
            Mapped::Frame(kpfn) => Some(state.frames[&kpfn].nid),
            Mapped::Own(_) => Some(page.nid),
        }));
        Ok(())
    }

    fn mappings(&self) -> Result<Mappings, MemoryError> {
        Ok(self.state().mappings)
    }

    fn metadata_bytes(&self) -> u64 {
        0
    }
}

impl Frames for Machine {
    fn allocate(&self, nid: Nid, count: u64) -> Result<Range<Kpfn>, FrameError> {
        let mut state = self.state();
        let state = &mut *state;
        let count = count.min(state.frames_left);
        let node = self.topology.nodes().iter().position(|node| node.nid == nid);
        let last = node.map_or(Kpfn(0), |node| pool(node).end);
        let of_node = node.and_then(|node| state.pools.get_mut(node));
        let Some((next, freed)) = of_node.filter(|_| count > 0 && !state.offline.contains(&nid))
        else {
            return Err(FrameError::OutOfMemory(nid));
        };
        let withheld = |kpfn: Kpfn| state.withheld.iter().find(|range| range.contains(&kpfn));
        // Now and then a freed number is used again, alone; new ones are adjacent.
        let (first, count) = match freed.iter().rposition(|kpfn| withheld(*kpfn).is_none()) {
            Some(place) => (freed.swap_remove(place), 1),
            None => {
                let mut first = Kpfn(*next);
                while let Some(range) = withheld(first) {
                    first = range.end;
                }
                let is_free = |n: &u64| first.plus(*n) < last && withheld(first.plus(*n)).is_none();
                (first, (0..count).take_while(is_free).count() as u64)
            }
        };
        if count == 0 {
            return Err(FrameError::OutOfMemory(nid));
        }
        let end = first.plus(count);
        *next = (*next).max(end.0);
        state.frames_left -= count;
        for kpfn in (first.0..end.0).map(Kpfn) {
            state.frames.insert(kpfn, Frame { content: 0, nid, maps: 0 });
        }
        Ok(first..end)
    }

    fn write(&self, kpfn: Kpfn, content: &[u8; PAGE_SIZE]) {
        let mut state = self.state();
        let frame = state.frames.get_mut(&kpfn).expect("written frames are in use");
        assert_eq!(frame.maps, 0, "frame {kpfn:?} is written while pages are mapped to it");
        frame.content = shrink(content);
    }

    fn read(&self, kpfn: Kpfn, content: &mut [u8; PAGE_SIZE]) {
        *content = expand(self.state().frames[&kpfn].content);
    }

    fn free(&self, kpfns: &[Kpfn]) {
        let mut state = self.state();
        for kpfn in kpfns {
            let frame = state.frames.remove(kpfn).expect("freed frames are in use");
            assert_eq!(frame.maps, 0, "frame {kpfn:?} is freed while pages are mapped to it");
            state.frames_left = state.frames_left.saturating_add(1);
            let node = usize::try_from(kpfn.0 >> POOL_SHIFT).expect("a node");
            state.pools[node].1.push(*kpfn);
        }
    }

    fn nodes_of(&self, kpfns: &[Kpfn], out: &mut Vec<Option<Nid>>) {
        let state = self.state();
        out.extend(kpfns.iter().map(|kpfn| state.frames.get(kpfn).map(|frame| frame.nid)));
    }

    fn pool(&self, nid: Nid) -> Vec<Range<Kpfn>> {
        let node = self.topology.nodes().iter().position(|node| node.nid == nid);
        node.map(pool).into_iter().collect()
    }

    fn withhold(&self, frames: &[Range<Kpfn>]) {
        self.state().withheld = frames.to_vec();
    }

    fn move_to(&self, kpfns: &[Kpfn], nid: Nid) -> std::io::Result<()> {
        kpfns.iter().for_each(|kpfn| self.try_move_frame(*kpfn, nid));
        Ok(())
    }

    fn metadata_bytes(&self) -> u64 {
        0
    }
}

impl Nodes for Machine {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn run_on(&self, _: Nid) -> std::io::Result<()> {
        Ok(())
    }

    fn thread_cpu_time(&self) -> Duration {
        self.cpu_clock()()
    }

    fn cpu_clock(&self) -> CpuClock {
        let used = self.used();
        // Relaxed: a counter, nothing is ordered by it.
        Box::new(move || Duration::from_nanos(used.load(Ordering::Relaxed)))
    }

    fn migrations(&self) -> std::io::Result<u64> {
        Ok(self.state().migrations)
    }

    fn online(&self) -> std::io::Result<Vec<Nid>> {
        let state = self.state();
        let all = self.topology.nodes().iter().map(|node| node.nid);
        Ok(all.filter(|nid| !state.offline.contains(nid)).collect())
    }

    fn place(&self, _: Range<*const u8>, _: Nid) -> std::io::Result<()> {
        Ok(())
    }

    fn places(&self, _: Range<*const u8>) -> std::io::Result<Vec<(Nid, u64)>> {
        Ok(Vec::new())
    }
}
