//! An engine for this process's own memory.

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;

use numerge_engine::machine::{Mappings, Memory, MemoryError, PAGE_SIZE, Vpn};
use numerge_engine::{
    Engine, EngineError, EngineOptions, PagesByNode, RegionHandle, RegisterError,
};
use numerge_linux::{AnonymousRegion, FramePools, Machine, ProcessMemory};
use numerge_topology::{Topology, TopologyError};

/// Why there is no merger.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The machine can't do it, or will not let this user do it.
    #[error(transparent)]
    System(#[from] numerge_linux::Error),
    /// The machine's nodes can't be told.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The engine could not be built.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Why there is no region.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// No address space.
    #[error("can't map {bytes} bytes: {source}")]
    Map {
        /// How much was asked for.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// Not a whole number of pages at a page boundary.
    #[error("{start:#x}, {bytes} bytes: a range to register begins and ends at multiples of 4096")]
    Unaligned {
        /// Where it begins.
        start: usize,
        /// How long it is.
        bytes: usize,
    },
    /// The engine would not have it.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// Merges this process's memory. Knobs and counters are those of the [`Engine`] it is.
///
/// Dropping it unmerges everything, as [`Merger::shut_down`] does.
pub struct Merger {
    engine: Engine,
    memory: Arc<ProcessMemory>,
}

impl Merger {
    /// A merger that does nothing until [`Knob::Run`](numerge_engine::Knob::Run) is 1.
    ///
    /// # Errors
    /// [`BuildError`]: a kernel older than 6.8, no permission for userfaultfd, a bad option.
    pub fn new(options: EngineOptions) -> Result<Self, BuildError> {
        numerge_linux::check_kernel()?;
        let topology = Arc::new(Topology::discover()?);
        let pools = Arc::new(FramePools::new(Arc::clone(&topology))?);
        let memory = Arc::new(ProcessMemory::new(pools.clone())?);
        let engine = Engine::new(pools, Arc::new(Machine::new(topology)), options)?;
        Ok(Self { engine, memory })
    }

    /// Allocates and registers memory of at least `bytes` bytes, rounded up to whole pages. None of
    /// it is used before it is written to.
    ///
    /// # Errors
    /// [`AllocateError`]; nothing is left behind.
    pub fn allocate(&self, bytes: usize) -> Result<Region, AllocateError> {
        let memory =
            AnonymousRegion::new(bytes).map_err(|source| AllocateError::Map { bytes, source })?;
        let handle = self.register_pages(memory.pages())?;
        Ok(Region { handle, memory: ManuallyDrop::new(memory) })
    }

    /// Registers memory that the program has already: private, anonymous, readable and writable.
    ///
    /// # Errors
    /// [`AllocateError`]; nothing is changed then.
    ///
    /// # Safety
    /// Until the registration is dropped, the range must stay mapped as it is: no `munmap`,
    /// `mremap`, `mmap` over it, `mprotect`, or `madvise` that changes its content or its
    /// inheritance, and the allocator that it came from must not do so either. Reading and writing
    /// go on as before, from any thread.
    pub unsafe fn register(
        &self,
        start: *mut u8,
        bytes: usize,
    ) -> Result<Registration, AllocateError> {
        let (start, unaligned) =
            (start.addr(), AllocateError::Unaligned { start: start.addr(), bytes });
        let Some(end) = start.checked_add(bytes) else { return Err(unaligned) };
        if start % PAGE_SIZE != 0 || end % PAGE_SIZE != 0 {
            return Err(unaligned);
        }
        let vpn = |address: usize| Vpn((address / PAGE_SIZE) as u64);
        Ok(Registration { handle: self.register_pages(vpn(start)..vpn(end))? })
    }

    fn register_pages(&self, pages: std::ops::Range<Vpn>) -> Result<RegionHandle, RegisterError> {
        let memory: Arc<dyn Memory> = self.memory.clone();
        self.engine.register(&memory, pages)
    }

    /// How many mappings this process has, and may have.
    ///
    /// # Errors
    /// If the system can't be asked.
    pub fn mappings(&self) -> Result<Mappings, MemoryError> {
        self.memory.mappings()
    }

    /// Stops scanning, unmerges everything and lets go of all regions, whose memory stays as it is.
    ///
    /// # Errors
    /// If memory for private copies runs out. What is merged then stays merged and valid until the
    /// process ends.
    pub fn shut_down(self) -> Result<(), MemoryError> {
        self.engine.shut_down()
    }
}

impl Deref for Merger {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

/// Memory that a [`Merger`] allocated. Dropping it gives the memory back.
///
/// It is read and written by copying, or through [`AnonymousRegion::as_ptr`].
pub struct Region {
    handle: RegionHandle,
    memory: ManuallyDrop<AnonymousRegion>,
}

impl Region {
    /// Makes the region's memory private and the merger forget it, and gives it back.
    ///
    /// # Errors
    /// The region as it was, if there is no memory for private copies.
    pub fn into_private(self) -> Result<AnonymousRegion, (Self, MemoryError)> {
        match self.handle.unregister() {
            Ok(()) => {
                let mut this = ManuallyDrop::new(self);
                // SAFETY: dropped once, for `this` is never dropped. The handle keeps the whole
                // engine alive, its threads and pools too, so it must not be leaked.
                unsafe { std::ptr::drop_in_place(&raw mut this.handle) };
                // SAFETY: taken once, for the same reason.
                Ok(unsafe { ManuallyDrop::take(&mut this.memory) })
            }
            Err(error) => Err((self, error)),
        }
    }

    /// How many of its pages are on each node, merged ones where their frames are.
    ///
    /// # Errors
    /// If the system can't be asked.
    pub fn pages_by_node(&self) -> Result<PagesByNode, MemoryError> {
        self.handle.pages_by_node()
    }
}

impl Deref for Region {
    type Target = AnonymousRegion;

    fn deref(&self) -> &AnonymousRegion {
        &self.memory
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // What can't be unmerged must not be unmapped either: the engine would go on counting on
        // it. The memory is leaked then.
        if self.handle.unregister().is_ok() {
            // SAFETY: dropped once, here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

/// A range registered by [`Merger::register`]. Dropping it makes the memory private and the merger
/// forget it, if there is memory for private copies; if that may be short, and the range is to be
/// unmapped, let go of it by [`Registration::unregister`].
pub struct Registration {
    handle: RegionHandle,
}

impl Registration {
    /// Makes the range private memory and the merger forget it.
    ///
    /// # Errors
    /// If there is no memory for private copies; the range is registered still.
    pub fn unregister(&self) -> Result<(), MemoryError> {
        self.handle.unregister()
    }

    /// How many of its pages are on each node, merged ones where their frames are.
    ///
    /// # Errors
    /// If the system can't be asked.
    pub fn pages_by_node(&self) -> Result<PagesByNode, MemoryError> {
        self.handle.pages_by_node()
    }
}
