//! The in-memory machine with a hook at each call: it can be held up, made to fail, or be answered
//! late, as by a program that is another process.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use numerge_engine::in_memory::Machine;
use numerge_engine::machine::{
    FrameError, Frames, Kind, Mappings, Memory, MemoryError, Outcome, PAGE_SIZE, Run, Target, Vpn,
    Written,
};
use numerge_engine::{Kpfn, Nid};
use parking_lot::Mutex;

/// A call of the machine's that hooks hear of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Register,
    Unregister,
    Written,
    Kinds,
    Read,
    Merge,
    Late,
    Unmerge,
    NodesOf,
    Mappings,
    Allocate,
    Free,
    /// For the node of one frame alone.
    NodeOfFrame,
    NodesOfFrames,
}

/// What is done beside the machine's calls. They are told the pages, or the frames, by number.
pub(crate) trait Hooks: Send + Sync {
    /// If this fails, so does the call, half done where a call can be.
    fn before(&self, call: Call, at: &[Range<u64>]) -> Result<(), MemoryError>;

    /// If this fails, so does the call, though it is done.
    fn after(&self, call: Call, at: &[Range<u64>]) -> Result<(), MemoryError>;

    /// What is said of a page instead of merging it.
    fn outcome(&self, _: Vpn) -> Option<Outcome> {
        None
    }
}

pub(crate) fn broken() -> MemoryError {
    MemoryError::System { call: "test", source: std::io::ErrorKind::Other.into() }
}

/// What a program was asked and has not done.
enum Asked {
    Merge(Run),
    Unmerge(Range<Vpn>),
}

/// What goes between the engine and a program that answers late.
#[derive(Default)]
struct Desk {
    /// In the order in which the program will do it.
    asked: Vec<Asked>,
    known: BTreeMap<Vpn, Outcome>,
    /// Pages that are gone, and of which the engine does not know that yet.
    dead: Vec<Range<Vpn>>,
}

/// The machine, and what is done beside its calls.
pub(crate) struct Hooked<H> {
    machine: Arc<Machine>,
    pub(crate) hooks: H,
    desk: Mutex<Desk>,
}

fn numbers(pages: &Range<Vpn>) -> Range<u64> {
    pages.start.0..pages.end.0
}

fn all_numbers(runs: &[Range<Vpn>]) -> Vec<Range<u64>> {
    runs.iter().map(numbers).collect()
}

fn frame_numbers(kpfns: &[Kpfn]) -> Vec<Range<u64>> {
    kpfns.iter().map(|kpfn| kpfn.0..kpfn.0 + 1).collect()
}

/// A run page by page.
fn single(run: &Run) -> impl Iterator<Item = Run> {
    let (first, target) = (run.pages.start, run.target);
    (0..run.pages.end.0 - first.0).map(move |place| Run {
        pages: first.plus(place)..first.plus(place + 1),
        target: match target {
            Target::Frames(kpfn) => Target::Frames(kpfn.plus(place)),
            Target::Zero => Target::Zero,
        },
    })
}

impl<H: Hooks> Hooked<H> {
    pub(crate) fn new(machine: &Arc<Machine>, hooks: H) -> Arc<Self> {
        Arc::new(Self { machine: Arc::clone(machine), hooks, desk: Mutex::default() })
    }

    /// The program does what it was asked, as far as that is `wanted` by its first page.
    pub(crate) fn answer(&self, wanted: impl Fn(Vpn) -> bool) {
        let mut desk = self.desk.lock();
        let Desk { asked, known, .. } = &mut *desk;
        asked.retain(|asked| match asked {
            Asked::Merge(run) if wanted(run.pages.start) => {
                let mut outcomes = Vec::new();
                self.machine.merge(std::slice::from_ref(run), &mut outcomes);
                known.extend(outcomes.pop().map(|outcome| (run.pages.start, outcome)));
                false
            }
            Asked::Unmerge(pages) if wanted(pages.start) => {
                // Without memory for the copies they stay merged, as is allowed.
                let _ = self.machine.unmerge(std::slice::from_ref(pages));
                false
            }
            _ => true,
        });
    }

    /// The program, which is stopped now, will unmerge pages when it goes on.
    pub(crate) fn unmerge_later(&self, pages: impl IntoIterator<Item = Range<Vpn>>) {
        self.desk.lock().asked.extend(pages.into_iter().map(Asked::Unmerge));
    }

    /// The program unmaps pages, and `tell` tells the engine; then there can be others in their place.
    pub(crate) fn vanish(&self, pages: &Range<Vpn>, tell: impl FnOnce()) {
        {
            let mut desk = self.desk.lock();
            let Desk { asked, known, dead } = &mut *desk;
            asked.retain(|asked| match asked {
                Asked::Merge(run) if pages.contains(&run.pages.start) => {
                    known.insert(run.pages.start, Outcome::Gone);
                    false
                }
                _ => true,
            });
            (pages.start.0..pages.end.0).for_each(|page| self.machine.discard(Vpn(page)));
            dead.push(pages.clone());
        }
        tell();
        let mut desk = self.desk.lock();
        desk.dead.retain(|dead| dead != pages);
        desk.known.retain(|page, _| !pages.contains(page));
    }

    fn merge_page(&self, run: Run, out: &mut Vec<Outcome>) {
        match self.hooks.outcome(run.pages.start) {
            Some(Outcome::Late) => {
                let mut desk = self.desk.lock();
                if desk.dead.iter().any(|dead| dead.contains(&run.pages.start)) {
                    return out.push(Outcome::Gone);
                }
                desk.asked.push(Asked::Merge(run));
                out.push(Outcome::Late);
            }
            Some(outcome) => out.push(outcome),
            None => self.machine.merge(&[run], out),
        }
    }
}

impl<H: Hooks> Memory for Hooked<H> {
    fn register(&self, pages: Range<Vpn>) -> Result<(), MemoryError> {
        self.hooks.before(Call::Register, &[numbers(&pages)])?;
        Memory::register(&*self.machine, pages)
    }

    fn unregister(&self, pages: Range<Vpn>) -> Result<(), MemoryError> {
        self.hooks.before(Call::Unregister, &[numbers(&pages)])?;
        self.machine.unregister(pages)
    }

    fn written(
        &self,
        pages: Range<Vpn>,
        max_pages: u64,
        out: &mut Vec<Written>,
    ) -> Result<Vpn, MemoryError> {
        let at = [numbers(&pages)];
        if let Err(error) = self.hooks.before(Call::Written, &at) {
            let half = Vpn(pages.start.0.midpoint(pages.end.0));
            self.machine.written(pages.start..half, max_pages, out)?;
            return Err(error);
        }
        let reached = self.machine.written(pages, max_pages, out)?;
        self.hooks.after(Call::Written, &at)?;
        Ok(reached)
    }

    fn kinds(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Kind>>) -> Result<(), MemoryError> {
        let at = all_numbers(runs);
        self.hooks.before(Call::Kinds, &at)?;
        self.machine.kinds(runs, out)?;
        self.hooks.after(Call::Kinds, &at)
    }

    fn read(
        &self,
        runs: &[Range<Vpn>],
        each: &mut dyn FnMut(&[u8; PAGE_SIZE]),
    ) -> Result<(), MemoryError> {
        let at = all_numbers(runs);
        self.hooks.before(Call::Read, &at).inspect_err(|_| self.machine.report_again(runs))?;
        let mut copies = Vec::new();
        Memory::read(&*self.machine, runs, &mut |content| copies.push(*content))?;
        let after = self.hooks.after(Call::Read, &at);
        // Some have been passed on, as where a machine ends in the midst of it.
        let passed = if after.is_ok() { copies.len() } else { copies.len() / 2 };
        copies[..passed].iter().for_each(each);
        after.inspect_err(|_| self.machine.report_again(runs))
    }

    /// Page by page, as a real machine is not one step either.
    fn merge(&self, runs: &[Run], out: &mut Vec<Outcome>) {
        let at: Vec<_> = runs.iter().map(|run| numbers(&run.pages)).collect();
        if self.hooks.before(Call::Merge, &at).is_err() {
            return;
        }
        runs.iter().flat_map(single).for_each(|run| self.merge_page(run, out));
        if self.hooks.after(Call::Merge, &at).is_err()
            && out.last().is_some_and(|last| !matches!(last, Outcome::Merged | Outcome::Late))
        {
            out.pop();
        }
    }

    fn late(&self, pages: &[Vpn], out: &mut Vec<(Vpn, Outcome)>) {
        let at: Vec<_> = pages.iter().map(|page| page.0..page.0 + 1).collect();
        if self.hooks.before(Call::Late, &at).is_ok() {
            let known = &mut self.desk.lock().known;
            out.extend(pages.iter().filter_map(|page| known.remove_entry(page)));
        }
    }

    fn unmerge(&self, ranges: &[Range<Vpn>]) -> Result<(), MemoryError> {
        let at = all_numbers(ranges);
        if let Err(error) = self.hooks.before(Call::Unmerge, &at) {
            let (some, rest) = ranges.split_at(ranges.len() / 2);
            self.machine.unmerge(some)?;
            if matches!(error, MemoryError::NoAnswer) {
                self.unmerge_later(rest.iter().cloned());
            }
            return Err(error);
        }
        self.machine.unmerge(ranges)?;
        self.hooks.after(Call::Unmerge, &at)
    }

    fn nodes_of(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Nid>>) -> Result<(), MemoryError> {
        self.hooks.before(Call::NodesOf, &all_numbers(runs))?;
        Memory::nodes_of(&*self.machine, runs, out)
    }

    fn mappings(&self) -> Result<Mappings, MemoryError> {
        self.hooks.before(Call::Mappings, &[])?;
        self.machine.mappings()
    }

    fn metadata_bytes(&self) -> u64 {
        0
    }
}

impl<H: Hooks> Frames for Hooked<H> {
    fn allocate(&self, nid: Nid, count: u64) -> Result<Range<Kpfn>, FrameError> {
        let done = self.hooks.before(Call::Allocate, &[]);
        done.map_err(|_| FrameError::OutOfMemory(nid))?;
        self.machine.allocate(nid, count)
    }

    fn write(&self, kpfn: Kpfn, content: &[u8; PAGE_SIZE]) {
        Frames::write(&*self.machine, kpfn, content);
    }

    fn read(&self, kpfn: Kpfn, content: &mut [u8; PAGE_SIZE]) {
        Frames::read(&*self.machine, kpfn, content);
    }

    fn free(&self, kpfns: &[Kpfn]) {
        self.machine.free(kpfns);
        // A frame that was given back is given back.
        let _ = self.hooks.after(Call::Free, &frame_numbers(kpfns));
    }

    fn nodes_of(&self, kpfns: &[Kpfn], out: &mut Vec<Option<Nid>>) {
        let call = if kpfns.len() == 1 { Call::NodeOfFrame } else { Call::NodesOfFrames };
        match self.hooks.before(call, &frame_numbers(kpfns)) {
            Ok(()) => Frames::nodes_of(&*self.machine, kpfns, out),
            Err(_) => out.extend(kpfns.iter().map(|_| None)),
        }
    }

    fn pool(&self, nid: Nid) -> Vec<Range<Kpfn>> {
        Frames::pool(&*self.machine, nid)
    }

    fn withhold(&self, frames: &[Range<Kpfn>]) {
        self.machine.withhold(frames);
    }

    fn move_to(&self, kpfns: &[Kpfn], nid: Nid) -> std::io::Result<()> {
        self.machine.move_to(kpfns, nid)
    }

    fn metadata_bytes(&self) -> u64 {
        0
    }
}
