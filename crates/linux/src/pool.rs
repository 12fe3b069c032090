//! Frame pools: where the content of merged pages lives.
//!
//! Each node has several rows ("stripes") of memfds, used in rotation, for the mappings of one file
//! share one lock in the kernel. A frame's number says where it is: `file number << 18 | page in
//! the file`, so a number is found again without a search.
//!
//! Files have no memory policy: the kernel would go by it, too, where a program writes to a page that
//! is mapped to a frame and gets a copy of its own (seen on 6.12). Copies would come from the frame's
//! node, not from the program's, and with a strict policy and that node full or offline, the program
//! would be killed. So it is the thread that reserves frames which asks for a node's memory, as a
//! wish, and what came from elsewhere is given back.
//!
//! Architecture invariant: a frame's memory is given back (a hole punched) only when no page of
//! this process, or of one that is served ([`FramePools::serve`]), maps it, which is the engine's
//! promise in [`Frames::free`], and no page of any other process. Where nobody was ever served, those
//! can only be forked from this one, and the kernel is asked ([`crate::witness`], and where there are
//! such processes [`crate::sharers`]). Else they are children of clients, or were clients, and all
//! processes are looked at, but only by who asks for it ([`FramePools::settle`]), for it takes long. A
//! private mapping of a hole would read zeros.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::ManuallyDrop;
use std::num::NonZero;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use numerge_engine::Kpfn;
use numerge_engine::machine::{FrameError, Frames, PAGE_SIZE};
use numerge_topology::{Nid, Topology};

mod giving_back;
#[cfg(test)]
mod tests;

use crate::error::Error;
use crate::frame_file::{FILE_FRAMES, FILE_SHIFT, FrameRun, FrameSource};
use crate::num::PAGE_SHIFT;
use crate::pool_file::PoolFile;
use crate::quarantine::Quarantine;
use crate::sharers::{self, ProcessId, Unanswered};
use crate::{fork, host, nodes};

/// Rows of files a node, used in rotation.
const STRIPES: usize = 4;
/// Most files there can be, by the width of a frame number.
const FILES: usize = 1 << (Kpfn::BITS - FILE_SHIFT);

/// Processes that were served and may have ended, before it is looked who lives still.
const EVER_SERVED: usize = 1024;

/// The frame pools of one security domain, one pool for each node that has memory.
#[derive(Debug)]
pub struct FramePools {
    topology: Arc<Topology>,
    pools: Vec<NodePool>,
    /// By file number. Only grows; files live as long as the pools. No other lock but a file's own is
    /// waited for under this one.
    files: RwLock<Vec<Arc<PoolFile>>>,
    waiting: Mutex<Quarantine>,
    /// Files with any of these frames hand out no more.
    withheld: RwLock<Vec<Range<Kpfn>>>,
    served: Mutex<Served>,
    /// Who does not let itself be looked at.
    unanswered: Arc<Unanswered>,
    made_ticks: u64,
    /// [`fork::depth`] of the process that made this.
    depth: u64,
}

/// Who has the files, beside this process.
#[derive(Debug, Default)]
struct Served {
    /// Processes that are served, by their number here.
    now: BTreeMap<u64, ProcessId>,
    /// Processes whose mappings of frames are all known to the engine, by their number here.
    known: BTreeMap<u64, ProcessId>,
    /// Processes that were served at any time and live still, as of the last look.
    ever: BTreeSet<ProcessId>,
    /// The users of all processes that ever were served.
    users: BTreeSet<u32>,
    next: u64,
}

/// A process that is given the files: while this lives, the engine knows what it maps of them.
#[derive(Debug)]
pub struct Serving {
    pools: Arc<FramePools>,
    number: u64,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut served = self.pools.served();
        served.now.remove(&self.number);
        served.known.remove(&self.number);
    }
}

#[derive(Debug)]
struct NodePool {
    nid: Nid,
    turn: AtomicUsize,
    /// File numbers, oldest first.
    stripes: [Mutex<Vec<usize>>; STRIPES],
}

impl FramePools {
    /// Makes the pools of a machine, all empty.
    ///
    /// # Errors
    /// If forks can't be watched for.
    pub fn new(topology: Arc<Topology>) -> Result<Self, Error> {
        fork::watch()?;
        let waiting =
            Quarantine::new().map_err(|source| Error::System { call: "memfd_create", source })?;
        let nodes = topology.nodes().iter();
        let pools = nodes.filter(|node| node.memory_bytes > 0).map(|node| NodePool {
            nid: node.nid,
            turn: AtomicUsize::new(0),
            stripes: Default::default(),
        });
        Ok(Self {
            pools: pools.collect(),
            topology,
            files: RwLock::default(),
            waiting: Mutex::new(waiting),
            withheld: RwLock::default(),
            served: Mutex::default(),
            unanswered: Arc::default(),
            made_ticks: sharers::now_ticks(),
            depth: fork::depth(),
        })
    }

    /// Gives back now what can be given back of the frames that other processes kept in use. Where
    /// nobody was ever served, that also happens by itself from time to time, when frames are taken and
    /// given back. Gives how many frames still wait.
    pub fn settle(&self) -> u64 {
        if self.is_inherited() {
            return 0;
        }
        if self.was_anybody_served() {
            return self.settle_among_all();
        }
        let mut waiting = self.waiting();
        waiting.look_at_once();
        self.release(&mut waiting);
        waiting.frames()
    }

    /// How many frames wait to be given back.
    pub fn waiting_frames(&self) -> u64 {
        if self.is_inherited() { 0 } else { self.waiting().frames() }
    }

    /// The pool files there are, by their numbers: frame `number << 18` is the first of each.
    pub fn file_numbers(&self) -> Range<u64> {
        0..self.file_count() as u64
    }

    /// A pool file, to be read only, for another process. None if there is none of that number.
    ///
    /// # Errors
    /// What the system said.
    pub fn read_only_file(&self, number: u64) -> io::Result<Option<OwnedFd>> {
        let file = usize::try_from(number).ok().and_then(|number| self.file(number));
        file.filter(|_| !self.is_inherited()).map(|file| file.open_read_only()).transpose()
    }

    /// Takes note that another process, of a user, is going to be given files: the engine knows of all
    /// frames that it maps until the result is dropped.
    ///
    /// Not of those that it maps already: it is the child of a client, or was one, and may keep them
    /// where the engine does not look. Then it is looked at like any other.
    ///
    /// # Errors
    /// If it can't be told what it maps, as when it has ended.
    pub fn serve(self: &Arc<Self>, pid: NonZero<i32>, user: u32) -> io::Result<Serving> {
        let pid = pid.get().unsigned_abs();
        let process = ProcessId::of(pid)?;
        let knows_all = sharers::of_process(pid, &self.file_ids())?.is_empty();
        let mut served = self.served();
        let number = served.next;
        served.next += 1;
        served.users.insert(user);
        if served.ever.len() > 2 * served.known.len() + EVER_SERVED {
            served.ever.retain(ProcessId::lives);
        }
        served.ever.insert(process);
        served.now.insert(number, process);
        if knows_all {
            served.known.insert(number, process);
        }
        drop(served);
        Ok(Serving { pools: Arc::clone(self), number })
    }

    /// Whether this is a copy that came with a fork. The original's owner goes on using the files,
    /// so the copy keeps its hands off them.
    pub(crate) fn is_inherited(&self) -> bool {
        self.depth != fork::depth()
    }

    fn place(&self, kpfn: Kpfn) -> Option<(Arc<PoolFile>, u64)> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let number = usize::try_from(kpfn.0 >> FILE_SHIFT).ok()?;
        Some((Arc::clone(files.get(number)?), kpfn.0 % FILE_FRAMES))
    }

    fn file(&self, number: usize) -> Option<Arc<PoolFile>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(number).cloned()
    }

    fn file_count(&self) -> usize {
        self.files.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Makes another file and gives its number.
    fn add_file(&self) -> io::Result<usize> {
        let made = PoolFile::new()?;
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if files.len() == FILES {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        files.push(Arc::new(made));
        Ok(files.len() - 1)
    }

    fn allocate_in(&self, pool: &NodePool, count: u64) -> io::Result<Range<Kpfn>> {
        // Relaxed: any rotation will do.
        let turn = pool.turn.fetch_add(1, Ordering::Relaxed) % STRIPES;
        let mut stripe = pool.stripes[turn].lock().unwrap_or_else(PoisonError::into_inner);
        for &number in &*stripe {
            let Some(file) = self.file(number).filter(|_| !self.is_withheld(number)) else {
                continue;
            };
            if file.free() > 0
                && let Some(frames) = file.allocate(count)?
            {
                return Ok(kpfns(number, &frames));
            }
        }
        // Asked before too, or each try would leave a file that is of no use.
        if self.is_withheld(self.file_count()) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let number = self.add_file()?;
        stripe.push(number);
        if self.is_withheld(number) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        match self.file(number).map(|file| file.allocate(count)) {
            Some(Ok(Some(frames))) => Ok(kpfns(number, &frames)),
            Some(Err(error)) => Err(error),
            _ => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }

    /// Gives back those of new frames that are not on a node, since it had no memory left, and those
    /// after them. None if there are no others.
    fn keep_on(&self, nid: Nid, frames: Range<Kpfn>) -> Option<Range<Kpfn>> {
        let all: Vec<Kpfn> = (frames.start.0..frames.end.0).map(Kpfn).collect();
        let mut nids = Vec::with_capacity(all.len());
        self.nodes_of(&all, &mut nids);
        let kept = nids.iter().take_while(|found| **found == Some(nid)).count();
        let end = frames.start.plus(kept as u64);
        if end < frames.end {
            // Nobody has seen them. If it fails, they stay where they are, in use by nobody.
            let _ = self.punch(&(end..frames.end));
        }
        (kept > 0).then_some(frames.start..end)
    }

    fn is_withheld(&self, number: usize) -> bool {
        let withheld = self.withheld.read().unwrap_or_else(PoisonError::into_inner);
        withheld.iter().any(|range| overlaps(range, &kpfns(number, &(0..FILE_FRAMES))))
    }

    fn waiting(&self) -> MutexGuard<'_, Quarantine> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn was_anybody_served(&self) -> bool {
        self.served().next > 0
    }
}

fn kpfns(file: usize, frames: &Range<u64>) -> Range<Kpfn> {
    let first = (file as u64) << FILE_SHIFT;
    Kpfn(first + frames.start)..Kpfn(first + frames.end)
}

fn overlaps(a: &Range<Kpfn>, b: &Range<Kpfn>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Sorts and joins adjacent frames of one file.
fn runs_of(kpfns: &[Kpfn]) -> Vec<Range<Kpfn>> {
    let mut sorted = kpfns.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut runs: Vec<Range<Kpfn>> = Vec::new();
    for kpfn in sorted {
        match runs.last_mut() {
            Some(run) if run.end == kpfn && kpfn.0 % FILE_FRAMES != 0 => run.end = kpfn.plus(1),
            _ => runs.push(kpfn..kpfn.plus(1)),
        }
    }
    runs
}

fn frame_error(nid: Nid, call: &'static str, source: io::Error) -> FrameError {
    let full = matches!(source.raw_os_error(), Some(libc::ENOMEM | libc::ENOSPC | libc::EFBIG));
    if full || source.kind() == io::ErrorKind::OutOfMemory {
        FrameError::OutOfMemory(nid)
    } else {
        FrameError::System { call, source }
    }
}

impl FrameSource for FramePools {
    fn locate(&self, first: Kpfn, count: u64) -> Option<FrameRun> {
        let (file, frame) = self.place(first)?;
        let inside = count > 0 && count <= FILE_FRAMES - frame;
        (inside && file.is_used(frame) && file.is_used(frame + count - 1))
            .then(|| FrameRun { file: Arc::clone(file.frames()), first: frame })
    }

    fn only_node(&self) -> Option<Nid> {
        match &*self.pools {
            [pool] => Some(pool.nid),
            _ => None,
        }
    }
}

impl Frames for FramePools {
    fn allocate(&self, nid: Nid, count: u64) -> Result<Range<Kpfn>, FrameError> {
        let pool = self.pools.iter().find(|pool| pool.nid == nid);
        let Some(pool) = pool.filter(|_| !self.is_inherited()) else {
            return Err(FrameError::System {
                call: "allocate",
                source: io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "no frame pool on that node in this process",
                ),
            });
        };
        self.release(&mut self.waiting());
        let count = count.max(1).min(host::spare_pages());
        if count == 0 {
            return Err(FrameError::OutOfMemory(nid));
        }
        if self.only_node().is_some() {
            return self
                .allocate_in(pool, count)
                .map_err(|source| frame_error(nid, "fallocate", source));
        }
        // Where the machine takes no policy, they are somewhere, perhaps on that node.
        let frames = self
            .topology
            .with_memory_from(nid, || self.allocate_in(pool, count))
            .unwrap_or_else(|_| self.allocate_in(pool, count));
        let frames = frames.map_err(|source| frame_error(nid, "fallocate", source))?;
        self.keep_on(nid, frames).ok_or(FrameError::OutOfMemory(nid))
    }

    fn write(&self, kpfn: Kpfn, content: &[u8; PAGE_SIZE]) {
        let Some(run) = self.locate(kpfn, 1).filter(|_| !self.is_inherited()) else {
            debug_assert!(false, "write to a frame that is not allocated");
            return;
        };
        // Through the file: a page new to the mapping would first be faulted in and cleared.
        let offset = run.first << PAGE_SHIFT;
        if run.file.file().write_all_at(content, offset).is_ok() {
            return;
        }
        let to = run.file.address(run.first);
        // SAFETY: the frame has memory and is mapped here as long as `run` lives; by the trait's
        // contract no page is mapped to it and nobody else writes or reads it now.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), to, PAGE_SIZE) };
    }

    fn read(&self, kpfn: Kpfn, content: &mut [u8; PAGE_SIZE]) {
        let Some(run) = self.locate(kpfn, 1).filter(|_| !self.is_inherited()) else {
            debug_assert!(false, "read of a frame that is not allocated");
            return;
        };
        // SAFETY: the frame has memory and is mapped here as long as `run` lives; nobody writes to
        // a frame once it is shared, and before that only its one owner, who is the caller.
        unsafe { std::ptr::copy_nonoverlapping(run.content(0), content.as_mut_ptr(), PAGE_SIZE) };
    }

    fn free(&self, kpfns: &[Kpfn]) {
        if kpfns.is_empty() || self.is_inherited() {
            return;
        }
        let mut waiting = self.waiting();
        waiting.add(runs_of(kpfns));
        self.release(&mut waiting);
    }

    fn nodes_of(&self, kpfns: &[Kpfn], out: &mut Vec<Option<Nid>>) {
        if let Some(nid) = self.only_node() {
            out.extend(kpfns.iter().map(|_| Some(nid)));
            return;
        }
        let places: Vec<_> = kpfns.iter().map(|&kpfn| self.locate(kpfn, 1)).collect();
        for run in places.iter().flatten() {
            // The system tells only of pages that are mapped here, not of those that only the file
            // has: frames are filled through the file.
            // SAFETY: as in `read`; what is read is not used.
            unsafe { run.content(0).read_volatile() };
        }
        let addresses = addresses(&places);
        if nodes::of_pages(&addresses, out).is_err() {
            out.extend(kpfns.iter().map(|_| None));
        }
    }

    fn pool(&self, nid: Nid) -> Vec<Range<Kpfn>> {
        let pools = self.pools.iter().filter(|pool| pool.nid == nid);
        let stripes = pools.flat_map(|pool| &pool.stripes);
        let mut numbers: Vec<usize> = stripes
            .flat_map(|stripe| stripe.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .collect();
        numbers.sort_unstable();
        numbers.into_iter().map(|number| kpfns(number, &(0..FILE_FRAMES))).collect()
    }

    fn withhold(&self, frames: &[Range<Kpfn>]) {
        if !self.is_inherited() {
            *self.withheld.write().unwrap_or_else(PoisonError::into_inner) = frames.to_vec();
        }
    }

    fn move_to(&self, kpfns: &[Kpfn], nid: Nid) -> io::Result<()> {
        if self.is_inherited() {
            return Ok(());
        }
        let places: Vec<_> = kpfns.iter().map(|&kpfn| self.locate(kpfn, 1)).collect();
        numerge_topology::move_pages(&addresses(&places), nid).map_err(io::Error::other)
    }

    fn metadata_bytes(&self) -> u64 {
        if self.is_inherited() {
            return 0; // the locks may have been held by threads that are not here
        }
        let waiting = self.waiting().bytes();
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let rows = files.iter().map(|file| file.metadata_bytes()).sum::<u64>();
        rows + (size_of::<Self>()
            + waiting
            + self.pools.capacity() * size_of::<NodePool>()
            + files.capacity() * (size_of::<Arc<PoolFile>>() + size_of::<usize>()))
            as u64
    }
}

/// Of frames, as they are mapped here; 0 for what is no frame.
fn addresses(places: &[Option<FrameRun>]) -> Vec<usize> {
    places.iter().map(|place| place.as_ref().map_or(0, |run| run.content(0).addr())).collect()
}

impl Drop for FramePools {
    fn drop(&mut self) {
        if self.is_inherited() {
            // The mappings were not inherited, and their addresses may be in use for other things.
            let files = self.files.get_mut().unwrap_or_else(PoisonError::into_inner);
            let _leaked = ManuallyDrop::new(std::mem::take(files));
            // This process may still map frames; its witness must say so until it ends.
            let waiting = self.waiting.get_mut().unwrap_or_else(PoisonError::into_inner);
            waiting.leave_witness();
        }
    }
}
