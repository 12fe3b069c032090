//! What the engine needs of the machine it runs on, and nothing more.
//!
//! The engine knows no system call. It reaches memory, frames and nodes through the three traits
//! here, in batches, so that the same engine runs on this process's memory, on the memory of other
//! programs, and on a machine that exists only in a test.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use numerge_stable_tree::{Fingerprint, Kpfn};
use numerge_topology::{Nid, Topology};

use crate::fingerprint::Fingerprinter;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// Virtual page number: an address of the program divided by [`PAGE_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vpn(pub u64);

impl Vpn {
    /// The page `n` pages further on.
    #[must_use]
    pub const fn plus(self, n: u64) -> Self {
        Self(self.0 + n)
    }
}

/// What lies at a page that was written since it was last looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Memory of the program's own.
    Private,
    /// A frame: the page is still merged.
    Frame,
    /// The machine's own page of zeros.
    Zero,
}

/// Adjacent pages of one kind that were written, or first touched, or newly mapped, since the last
/// look.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    /// The pages.
    pub pages: Range<Vpn>,
    /// What they are now.
    pub kind: Kind,
}

/// What the pages of a run are to become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The first page is mapped to this frame, the next to the frame after it, and so on.
    Frames(Kpfn),
    /// All pages are mapped to the machine's page of zeros.
    Zero,
}

/// Adjacent pages to be merged in one go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// The pages, at least one.
    pub pages: Range<Vpn>,
    /// What they are merged with.
    pub target: Target,
}

/// What became of one page of a [`Run`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It had the target's content while nothing could change it, and is mapped to the target.
    Merged,
    /// Its content is not the target's. Nothing was changed.
    Differs,
    /// The machine would not let go of it now (pinned for DMA, shared by a fork). Nothing was
    /// changed; worth another try later.
    Pinned,
    /// It lies in a mapping that can't be merged as it is (written to after it was merged).
    /// Nothing was changed; trying again is of no use before the next write to it.
    Refused,
    /// There is no page: unmapped, or never touched. Nothing was changed.
    Gone,
    /// The machine ran out of something (memory, mappings). Nothing was changed.
    Exhausted,
    /// The program has much to answer already and was not asked. Nothing was changed; worth another
    /// try at the next look.
    Deferred,
    /// The program has not answered yet, and may merge the page at any moment. What became of it is
    /// told by [`Memory::late`].
    Late,
}

/// Why memory could not be looked at or changed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A range that the program does not have, or not as private anonymous memory.
    #[error("pages {:#x}..{:#x} are not private anonymous memory of the program", .0.start.0, .0.end.0)]
    NotMergeable(Range<Vpn>),
    /// The machine has no memory for private copies (the kernel's ENOMEM or EAGAIN).
    #[error("out of memory for private copies of merged pages")]
    OutOfMemory,
    /// The program was asked to do it and does not answer: it is stopped, or very busy.
    #[error("the program does not answer")]
    NoAnswer,
    /// Anything else, with the call that failed.
    #[error("{call}: {source}")]
    System {
        /// The system call or ioctl.
        call: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Pages whose copies the engine wants by one call, so that they are in a CPU's own cache still when they are used.
pub const READ_PAGES: usize = 16;

/// Most pages that the engine looks at together, of which nearly none is copied: as many as make it cheap for a machine
/// to hand a call over to another thread.
pub const PIECE_PAGES: usize = 512;

/// How many mappings a program has, and how many it may have (`vm.max_map_count`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mappings {
    /// Mappings in use, the program's own included.
    pub used: u64,
    /// The most the machine allows one program.
    pub limit: u64,
}

/// One program's memory, which the program goes on using all the while.
///
/// All page ranges passed lie in ranges that [`Memory::register`] accepted. Calls for disjoint
/// ranges may come from several threads at once; the engine never has two calls that change the
/// same page under way at the same time.
pub trait Memory: Send + Sync {
    /// Starts to track writes in `pages`. Everything counts as written at first.
    ///
    /// # Errors
    /// [`MemoryError::NotMergeable`] if any page is something else than private anonymous memory.
    fn register(&self, pages: Range<Vpn>) -> Result<(), MemoryError>;

    /// Ends what [`Memory::register`] began. The pages must be unmerged already.
    ///
    /// # Errors
    /// If the machine refuses; the range must then be taken as still registered.
    fn unregister(&self, pages: Range<Vpn>) -> Result<(), MemoryError>;

    /// Appends to `out` the pages written since they were last reported, in ascending order, and
    /// arms them for the next time. Never-touched pages are not reported.
    ///
    /// Stops when `max_pages` (at least 1) have been reported; gives where the walk ended, which is
    /// `pages.end` when all was seen.
    ///
    /// # Errors
    /// [`MemoryError`]; what was appended before counts as reported.
    fn written(
        &self,
        pages: Range<Vpn>,
        max_pages: u64,
        out: &mut Vec<Written>,
    ) -> Result<Vpn, MemoryError>;

    /// Appends what lies at each page of the runs now, in order; None where there is no page. Changes nothing.
    ///
    /// # Errors
    /// [`MemoryError`]; nothing is appended then.
    fn kinds(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Kind>>) -> Result<(), MemoryError>;

    /// Passes copies of the pages to `each`, one after the other, up to the first that can't be
    /// read. The program may be writing to them: a copy may be torn, but then [`Memory::written`]
    /// reports the page next time.
    ///
    /// A copy is passed on while it is in the innermost cache still, which is most of what makes
    /// looking at a page cheap.
    ///
    /// # Errors
    /// [`MemoryError`]: of the pages that were not passed nothing is known, and all of `runs` are reported by
    /// [`Memory::written`] as if they had been written.
    fn read(
        &self,
        runs: &[Range<Vpn>],
        each: &mut dyn FnMut(&[u8; PAGE_SIZE]),
    ) -> Result<(), MemoryError>;

    /// As [`Memory::read`], but passes the pages' fingerprints, which a machine that has other threads read for it
    /// leaves to them.
    ///
    /// # Errors
    /// As those of [`Memory::read`].
    fn fingerprints(
        &self,
        runs: &[Range<Vpn>],
        prints: &Arc<Fingerprinter>,
        each: &mut dyn FnMut(Fingerprint),
    ) -> Result<(), MemoryError> {
        self.read(runs, &mut |content| each(prints.of(content)))
    }

    /// Freezes, verifies and maps each run, and appends to `out` one outcome a page, runs in order.
    /// No page of the program changes its content, whatever the outcome.
    fn merge(&self, runs: &[Run], out: &mut Vec<Outcome>);

    /// Appends what became of those of `pages` of which it is known by now, once of each; their outcome
    /// was [`Outcome::Late`]. What was told is forgotten, what was not asked for is kept until it is, or
    /// the page is merged again or vanishes. Never waits for the program. A machine that always answers
    /// at once has nothing to tell.
    fn late(&self, pages: &[Vpn], out: &mut Vec<(Vpn, Outcome)>) {
        let _ = (pages, out);
    }

    /// Gives every page of the ranges memory of its own again, equal to what it was mapped to, and
    /// arranges that it can be merged again. Pages that have their own already stay as they are.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`] if there is too little; then some pages may still be merged,
    /// and all are intact. Calling again is allowed.
    fn unmerge(&self, ranges: &[Range<Vpn>]) -> Result<(), MemoryError>;

    /// Appends the node of each page of the runs, in order; None where there is no page.
    ///
    /// # Errors
    /// If the machine can't be asked; nothing is appended then.
    fn nodes_of(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Nid>>) -> Result<(), MemoryError>;

    /// Counts the program's mappings.
    ///
    /// # Errors
    /// If the machine can't be asked.
    fn mappings(&self) -> Result<Mappings, MemoryError>;

    /// Bytes this keeps to manage the program's registered memory.
    fn metadata_bytes(&self) -> u64;
}

/// Why frames could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// No memory for more frames on that node.
    #[error("out of memory for frames on node {0}")]
    OutOfMemory(Nid),
    /// Anything else, with the call that failed.
    #[error("{call}: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The frame pools of one security domain, a pool for each node.
pub trait Frames: Send + Sync {
    /// Reserves up to `count` (at least 1) consecutive frames on `nid`, memory included: what is
    /// returned can be written without failing. Gives at least one, as many as are to be had in one
    /// piece.
    ///
    /// # Errors
    /// [`FrameError::OutOfMemory`] if there is not even one.
    fn allocate(&self, nid: Nid, count: u64) -> Result<Range<Kpfn>, FrameError>;

    /// Writes a page's content to an allocated frame that no page is mapped to yet.
    fn write(&self, kpfn: Kpfn, content: &[u8; PAGE_SIZE]);

    /// Copies an allocated frame's content.
    fn read(&self, kpfn: Kpfn, content: &mut [u8; PAGE_SIZE]);

    /// Takes back frames that no rmap item and no reader has any more. Their memory goes back to
    /// the machine as soon as the machine itself maps them nowhere.
    fn free(&self, kpfns: &[Kpfn]);

    /// Appends the node each frame's memory is on now; None if it can't be told.
    fn nodes_of(&self, kpfns: &[Kpfn], out: &mut Vec<Option<Nid>>);

    /// The numbers of all frames of a node's pool, in use or not, in ascending order; empty for a
    /// node without a pool.
    fn pool(&self, nid: Nid) -> Vec<Range<Kpfn>>;

    /// From now on hands out no frames with these numbers, and again those of the last call.
    fn withhold(&self, frames: &[Range<Kpfn>]);

    /// Asks the machine to move the memory of frames to a node. How far it went [`Self::nodes_of`]
    /// tells.
    ///
    /// # Errors
    /// What the system said, if it can't be asked; some may have been moved.
    fn move_to(&self, kpfns: &[Kpfn], nid: Nid) -> std::io::Result<()>;

    /// Bytes this keeps to manage the frames, the frames themselves not included.
    fn metadata_bytes(&self) -> u64;
}

/// Tells the CPU time that some thread has used.
pub type CpuClock = Box<dyn Fn() -> Duration + Send + Sync>;

/// The machine's nodes and CPUs.
pub trait Nodes: Send + Sync {
    /// Nodes, CPUs, distances.
    fn topology(&self) -> &Topology;

    /// Binds the calling thread to the CPUs of `nid`, or of the nearest node that has CPUs.
    ///
    /// # Errors
    /// What the system said.
    fn run_on(&self, nid: Nid) -> std::io::Result<()>;

    /// CPU time the calling thread has used, and others for it.
    fn thread_cpu_time(&self) -> Duration;

    /// The clock of [`Self::thread_cpu_time`], for other threads to read too. Not to be read once the
    /// thread has ended.
    fn cpu_clock(&self) -> CpuClock;

    /// A number that is another one once the machine has moved memory between nodes. It may be
    /// another one although nothing was moved.
    ///
    /// # Errors
    /// What the system said.
    fn migrations(&self) -> std::io::Result<u64>;

    /// The nodes that have memory or CPUs online now, in ascending order.
    ///
    /// # Errors
    /// What the system said.
    fn online(&self) -> std::io::Result<Vec<Nid>>;

    /// Puts the engine's own memory in these bytes on a node, what is there already and what comes;
    /// whole pages only, and others if there is no room.
    ///
    /// # Errors
    /// What the system said.
    fn place(&self, bytes: Range<*const u8>, nid: Nid) -> std::io::Result<()>;

    /// How many of the whole pages in these bytes of the engine's own memory are on each node.
    ///
    /// # Errors
    /// What the system said.
    fn places(&self, bytes: Range<*const u8>) -> std::io::Result<Vec<(Nid, u64)>>;
}
