//! This process's memory, for the engine.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use numerge_engine::machine::{
    Kind, Mappings, Memory, MemoryError, Outcome, PAGE_SIZE, Run, Vpn, Written,
};
use numerge_topology::Nid;

use crate::area::Area;
use crate::device::UffdDevice;
use crate::error::{Error, system};
use crate::events::EventReader;
use crate::fork::{self, Held};
use crate::frame_file::FrameSource;
use crate::maps::{self, Attributes};
use crate::mend::Mending;
use crate::num::{PAGE_SHIFT, address, bytes, count, size};
use crate::pagemap::{PageRegion, Pagemap};
use crate::pin_test::PinTest;
use crate::ranges::Ranges;
use crate::uffd::{Mode, Span, Uffd};
use crate::{copy, host, nodes};

/// Pages that are frozen at once: who touches one waits for at most as many to be merged.
pub(crate) const STAGING_PAGES: usize = 256;

/// No page number of a program's is as large: 57 bits of address are the most there are.
pub(crate) const ADDRESSABLE: Vpn = Vpn(1 << (57 - PAGE_SHIFT));

/// The memory of the process this runs in.
///
/// Rules for who registers memory:
/// - A registered range must not be unmapped, remapped, protected or given other advice before it is
///   unregistered, and not be dropped with `MADV_DONTNEED` while merged (it would read as what it
///   was merged with). The same goes, also after that, for pages that unmerging had to leave in their
///   file mapping ([`ProcessMemory::pages_left_in_file_mapping`]). Who sees these calls of the program's
///   before they are made (the agent) can allow them, with [`AddressSpace`](crate::AddressSpace) and the
///   functions that want it.
/// - It must hold nothing that the thread that merges touches itself: its stack, the heap.
///
/// While a run is merged (tens of microseconds), who touches it waits, system calls too. The exception
/// is access through /proc/PID/mem and ptrace, which the kernel does not let wait: it fails with EIO,
/// and can be tried again.
///
/// After a fork the child's copy of this value does nothing: the child's memory is whole and
/// private, and is not tracked.
#[derive(Debug)]
pub struct ProcessMemory {
    pub(crate) frames: Arc<dyn FrameSource>,
    /// Tracks writes (asynchronously), and freezes whole pages while they are merged.
    pub(crate) tracking: Arc<Uffd>,
    /// Makes writers wait while pages are unmerged.
    pub(crate) holding: Uffd,
    pub(crate) pagemap: Pagemap,
    /// Where pages are while they are out of the program's view; empty while nobody holds
    /// [`Tables`].
    pub(crate) staging: Area,
    tables: Mutex<Tables>,
    pub(crate) mending: Mutex<Mending>,
    pub(crate) counters: Counters,
    /// The machine counts private mappings against a limit, so replacing one can fail half-way.
    pub(crate) strict_overcommit: bool,
    _events: EventReader,
    depth: u64,
}

/// What is known of registered memory. Locked only by who holds [`fork::hold`], or does not touch
/// mappings.
#[derive(Debug)]
pub(crate) struct Tables {
    /// Registered ranges.
    pub(crate) registered: Ranges<Attributes>,
    /// Pages mapped to frames, or written to since they were (and then still in a file mapping).
    pub(crate) in_file: Ranges<Attributes>,
    /// Of these, pages that unmerging had to leave there.
    pub(crate) left: Ranges<()>,
    /// Pages the program is about to do something else with: not merged any more.
    pub(crate) leaving: Ranges<()>,
    /// Times that memory was given back in the middle of a file mapping, since islands were joined.
    pub(crate) islands: u64,
    pub(crate) pin_test: PinTest,
    /// Empty anonymous memory, never touched, for each kind of registered range.
    pub(crate) empties: Vec<(Attributes, Area)>,
}

impl Tables {
    /// Whether it can be told of single pages that they are not pinned, as things stand.
    pub(crate) fn can_tell_pins(&self) -> bool {
        self.pin_test.can_tell(&self.registered)
    }

    /// The first pages in `pages` that are registered and in file mappings.
    pub(crate) fn registered_file_in(&self, pages: &Range<Vpn>) -> Option<Range<Vpn>> {
        let mut at = pages.start;
        while let Some((found, _)) = self.in_file.next_in(&(at..pages.end)) {
            if let Some((registered, _)) = self.registered.next_in(&found) {
                return Some(registered);
            }
            at = found.end;
        }
        None
    }
}

/// What happened that the engine does not ask about.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Pages written after they were merged that were merged again, or given back to anonymous memory so
    /// that they can be.
    pub(crate) made_mergeable: AtomicU64,
    /// Pages whose writes can't be seen any more, since they could not be registered again.
    pub(crate) untracked: AtomicU64,
}

/// The right to take memory apart, and what is known of it.
pub(crate) struct Bench<'a> {
    pub(crate) tables: MutexGuard<'a, Tables>,
    // After the tables: fields are dropped in order, and the lock above must not outlive the right.
    _held: Held,
}

impl ProcessMemory {
    /// Prepares to merge this process's memory with these frames.
    ///
    /// # Errors
    /// What [`crate::check_kernel`] gives, and what the system said otherwise.
    pub fn new(frames: Arc<dyn FrameSource>) -> Result<Self, Error> {
        Self::with_device(frames, None)
    }

    /// The same by a device that was lent, where this user may not make userfaultfds otherwise. It is not
    /// needed any more afterwards.
    ///
    /// # Errors
    /// As [`ProcessMemory::new`].
    pub fn with_device(
        frames: Arc<dyn FrameSource>,
        lent: Option<&UffdDevice>,
    ) -> Result<Self, Error> {
        host::check_kernel_with(lent)?;
        fork::watch()?;
        let tracking = Arc::new(Uffd::open(host::TRACKING, lent)?);
        let staging = area(STAGING_PAGES, Attributes::default())?;
        // MOVE needs its destination registered. Not for missing pages: unmerging fills it itself.
        register(&tracking, staging.span(), Mode::WP)?;
        let events = EventReader::start(Arc::clone(&tracking)).map_err(|source| Error::System {
            call: "start the thread that reads events",
            source,
        })?;
        Ok(Self {
            frames,
            tracking,
            holding: Uffd::open(host::HOLDING, lent)?,
            pagemap: Pagemap::open()?,
            staging,
            tables: Mutex::new(Tables {
                registered: Ranges::new(),
                in_file: Ranges::new(),
                left: Ranges::new(),
                leaving: Ranges::new(),
                islands: 0,
                pin_test: PinTest::new(),
                empties: Vec::new(),
            }),
            mending: Mutex::new(Mending::new()),
            counters: Counters::default(),
            strict_overcommit: host::strict_overcommit(),
            _events: events,
            depth: fork::depth(),
        })
    }

    /// Pages with memory of their own that can't be merged again now: the program wrote to them
    /// after they were merged, and has a file open through which a device could be writing to them
    /// unseen (io_uring, O_DIRECT, vfio and the like); or the machine was short of memory.
    #[must_use]
    pub fn pages_left_in_file_mapping(&self) -> u64 {
        if self.is_inherited() {
            return 0; // the lock may have been held by a thread that is not here
        }
        self.tables().left.pages()
    }

    /// Pages written after they were merged that were merged again, or made mergeable, in total.
    #[must_use]
    pub fn pages_made_mergeable(&self) -> u64 {
        self.counters.made_mergeable.load(Ordering::Relaxed) // a counter
    }

    /// Pages whose writes can't be seen any more since the machine refused to track them again, in
    /// total. Their content is right; the engine's counters may be off by as many.
    #[must_use]
    pub fn pages_untracked(&self) -> u64 {
        self.counters.untracked.load(Ordering::Relaxed) // a counter
    }

    /// Checks and registers a range like [`Memory::register`], and says in full why it can't be.
    ///
    /// # Errors
    /// [`Error::NotAnonymous`], [`Error::Attribute`], or what the system said.
    pub fn register_range(&self, pages: Range<Vpn>) -> Result<(), Error> {
        if self.is_inherited() {
            return Err(Error::NotAnonymous {
                start: address(pages.start),
                reason: "this memory was inherited by a fork".into(),
            });
        }
        if pages.is_empty() || pages.end > ADDRESSABLE {
            return Err(Error::NotAnonymous {
                start: address(pages.start),
                reason: "no such range of pages".into(),
            });
        }
        self.check_unknown(&self.bench().tables, &pages)?;
        let attributes = maps::mergeable(&pages)?;
        let mut bench = self.bench();
        self.register_found(&mut bench.tables, pages, attributes)
    }

    fn check_unknown(&self, tables: &Tables, pages: &Range<Vpn>) -> Result<(), Error> {
        match tables.registered.next_in(pages) {
            Some((found, _)) => Err(Error::NotAnonymous {
                start: address(found.start),
                reason: "it is registered already".into(),
            }),
            None => Ok(()),
        }
    }

    /// Registers what was found to be mergeable, and to have these attributes.
    pub(crate) fn register_found(
        &self,
        tables: &mut Tables,
        pages: Range<Vpn>,
        attributes: Attributes,
    ) -> Result<(), Error> {
        self.check_unknown(tables, &pages)?;
        if !tables.empties.iter().any(|(of, _)| *of == attributes) {
            let empty = area(STAGING_PAGES, attributes)?;
            register(&self.tracking, empty.span(), Mode::MISSING_WP)?;
            tables.empties.push((attributes, empty));
        }
        register(&self.tracking, span(&pages), Mode::WP)?;
        // Anonymous memory is in no file, whatever was there before.
        tables.in_file.remove(&pages);
        tables.left.remove(&pages);
        tables.registered.insert(pages, attributes);
        Ok(())
    }

    /// Keeps forks, signals and other merges away until the result is dropped.
    pub(crate) fn bench(&self) -> Bench<'_> {
        let held = fork::hold();
        Bench { tables: self.tables(), _held: held }
    }

    /// Whether this is a copy that came with a fork: its descriptors act on the parent's memory.
    pub(crate) fn is_inherited(&self) -> bool {
        self.depth != fork::depth()
    }

    pub(crate) fn tables(&self) -> MutexGuard<'_, Tables> {
        // Changed last, after memory is whole again, by functions that don't panic.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn area(pages: usize, attributes: Attributes) -> Result<Area, Error> {
    Area::new(pages, attributes).map_err(|source| Error::System { call: "mmap", source })
}

fn register(uffd: &Uffd, span: Span, mode: Mode) -> Result<(), Error> {
    uffd.register(span, mode).map_err(|source| Error::System { call: "UFFDIO_REGISTER", source })
}

/// A page range in bytes.
pub(crate) const fn span(pages: &Range<Vpn>) -> Span {
    Span { start: address(pages.start), len: bytes(pages) }
}

/// A byte range that PAGEMAP_SCAN gave, in pages.
pub(crate) const fn pages_of(region: &PageRegion) -> Range<Vpn> {
    Vpn(region.start >> PAGE_SHIFT)..Vpn(region.end >> PAGE_SHIFT)
}

impl Memory for ProcessMemory {
    fn register(&self, pages: Range<Vpn>) -> Result<(), MemoryError> {
        match self.register_range(pages.clone()) {
            Err(Error::NotAnonymous { .. }) => Err(MemoryError::NotMergeable(pages)),
            other => Ok(other?),
        }
    }

    fn unregister(&self, pages: Range<Vpn>) -> Result<(), MemoryError> {
        if self.is_inherited() {
            return Ok(());
        }
        // What the program wrote to after it was merged is in a file mapping still.
        self.leave_files(&pages)?;
        self.join_if_due();
        let mut bench = self.bench();
        self.tracking
            .unregister(span(&pages))
            .map_err(|source| system("UFFDIO_UNREGISTER", source))?;
        // What had to be left in a file mapping stays known as such: see `calls`.
        bench.tables.registered.remove(&pages);
        Ok(())
    }

    fn written(
        &self,
        pages: Range<Vpn>,
        max_pages: u64,
        out: &mut Vec<Written>,
    ) -> Result<Vpn, MemoryError> {
        if self.is_inherited() {
            return Ok(pages.end);
        }
        self.mend_if_due();
        // Looked up before the walk: a page that is mapped to a frame only now is reported as the
        // program's own, as it was; that looks may be old is known to the engine.
        let may_be_files = |part: &Range<Vpn>| self.tables().in_file.next_in(part).is_some();
        self.pagemap
            .append_written(&pages, max_pages, &may_be_files, out)
            .map_err(|source| system("PAGEMAP_SCAN", source))
    }

    fn kinds(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Kind>>) -> Result<(), MemoryError> {
        if self.is_inherited() {
            out.extend((0..runs.iter().map(count).sum()).map(|_| None));
            return Ok(());
        }
        self.append_kinds(runs, out)
    }

    fn read(
        &self,
        runs: &[Range<Vpn>],
        each: &mut dyn FnMut(&[u8; PAGE_SIZE]),
    ) -> Result<(), MemoryError> {
        if self.is_inherited() {
            return Ok(());
        }
        let mut copy = [0; PAGE_SIZE];
        let mut pages = runs.iter().flat_map(|run| run.start.0..run.end.0).map(Vpn).peekable();
        while let Some(page) = pages.next() {
            if let Some(next) = pages.peek().filter(|next| next.0 != page.0 + 1) {
                copy::prefetch(*next);
            }
            copy::page(page, &mut copy);
            each(&copy);
        }
        Ok(())
    }

    fn merge(&self, runs: &[Run], out: &mut Vec<Outcome>) {
        let mut again = Vec::new();
        for run in runs {
            self.merge_run(run, &mut again, out);
        }
        if !self.is_inherited() {
            self.merge_again(&again, out);
            self.join_if_due();
        }
    }

    fn unmerge(&self, ranges: &[Range<Vpn>]) -> Result<(), MemoryError> {
        if self.is_inherited() {
            return Ok(());
        }
        self.unmerge_ranges(ranges)?;
        self.join_if_due();
        Ok(())
    }

    fn nodes_of(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Nid>>) -> Result<(), MemoryError> {
        let pages = runs.iter().flat_map(|run| run.start.0..run.end.0).map(Vpn);
        if let Some(nid) = self.frames.only_node() {
            out.extend(pages.map(|_| Some(nid)));
            return Ok(());
        }
        let addresses: Vec<_> = pages.map(|page| size(address(page))).collect();
        nodes::of_pages(&addresses, out).map_err(|source| system("move_pages", source))
    }

    fn metadata_bytes(&self) -> u64 {
        if self.is_inherited() {
            // Whoever held the lock when the process forked will never give it back here.
            return 0;
        }
        let tables = self.tables();
        tables.registered.bytes() + tables.in_file.bytes() + tables.left.bytes()
    }

    fn mappings(&self) -> Result<Mappings, MemoryError> {
        let read = |result: io::Result<u64>, call| result.map_err(|source| system(call, source));
        Ok(Mappings {
            used: read(maps::count(), "read /proc/thread-self/maps")?,
            limit: read(host::mappings_limit(), "read vm.max_map_count")?,
        })
    }
}
