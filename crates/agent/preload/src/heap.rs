//! The agent's own heap.
//!
//! The program's malloc can't be used: its memory may be merged, so a thread of the agent could wait for
//! a page that it has frozen itself; and it may be that malloc that called the agent, with its locks held.
//!
//! Where the kernel gives no more, because the program has used up all mappings that it may have, the heap has
//! some memory that was there from the beginning: without it the agent could not even give mappings back.
//!
//! A fork waits until nobody is in here, and the child finds it free.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dlmalloc::{Allocator, Dlmalloc};
use numerge_agent::{place_for, system_call};

/// # Safety
/// A mapping, or the end of one, that is not used any more.
unsafe fn unmap(at: *mut u8, bytes: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { system_call(libc::SYS_munmap, [at.expose_provenance(), bytes, 0, 0, 0, 0]) }.is_ok()
}

/// Memory in pieces from the kernel, by raw system calls.
struct Kernel;

const PAGE: usize = 4096;

// SAFETY: each call gives or takes whole mappings of this process that nobody else knows of.
unsafe impl Allocator for Kernel {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let register = |flags: i32| usize::try_from(flags).unwrap_or(0);
        let usable = register(libc::PROT_READ | libc::PROT_WRITE);
        let flags = register(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let place = place_for(size).expose_provenance();
        // SAFETY: asks for new memory where nothing is.
        let made =
            unsafe { system_call(libc::SYS_mmap, [place, size, usable, flags, usize::MAX, 0]) };
        let Ok(made) = made else {
            return LAST.take(size).unwrap_or((ptr::null_mut(), 0, 0));
        };
        (ptr::with_exposed_provenance_mut(made), size, 0)
    }

    fn remap(&self, _ptr: *mut u8, _old: usize, _new: usize, _can_move: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, ptr: *mut u8, old: usize, new: usize) -> bool {
        // SAFETY: the end of a mapping made above, which is not used any more.
        unsafe { unmap(ptr.wrapping_add(new), old - new) }
    }

    fn free(&self, ptr: *mut u8, size: usize) -> bool {
        // SAFETY: a mapping made above, which is not used any more.
        unsafe { unmap(ptr, size) }
    }

    fn can_release_part(&self, _flags: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        PAGE
    }
}

/// What is left when the kernel gives no more. Costs nothing until then.
#[repr(C, align(4096))]
struct Last {
    memory: UnsafeCell<[u8; Last::BYTES]>,
    taken: AtomicBool,
}

static LAST: Last =
    Last { memory: UnsafeCell::new([0; Last::BYTES]), taken: AtomicBool::new(false) };

// SAFETY: the memory is given away once, to one heap.
unsafe impl Sync for Last {}

impl Last {
    /// For tables of the program's mappings, and looks at them.
    const BYTES: usize = 4 << 20;
    /// dlmalloc's EXTERN_BIT: memory that is not its own to give back.
    const NOT_GIVEN_BACK: u32 = 1;

    /// All of it, for good, if nobody has it yet and it is enough.
    fn take(&self, size: usize) -> Option<(*mut u8, usize, u32)> {
        if size > Self::BYTES || self.taken.swap(true, Ordering::SeqCst) {
            return None;
        }
        Some((self.memory.get().cast(), Self::BYTES, Self::NOT_GIVEN_BACK))
    }
}

/// The heap, for all of this library.
pub(crate) struct Heap {
    lock: Mutex<()>,
    memory: UnsafeCell<Dlmalloc<Kernel>>,
    /// The lock of a thread that forks, on its way from one handler to the next.
    forking: UnsafeCell<Option<MutexGuard<'static, ()>>>,
}

// SAFETY: both cells are touched only by who has the lock.
unsafe impl Sync for Heap {}

impl Heap {
    pub(crate) const fn new() -> Self {
        Self {
            lock: Mutex::new(()),
            memory: UnsafeCell::new(Dlmalloc::new_with_allocator(Kernel)),
            forking: UnsafeCell::new(None),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Dlmalloc<Kernel>) -> T) -> T {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: under the lock, and `act` is one call that does not come back here.
        act(unsafe { &mut *self.memory.get() })
    }

    /// Keeps everybody out until [`Self::end_fork`].
    pub(crate) fn begin_fork(&'static self) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: this thread has the lock.
        unsafe { *self.forking.get() = Some(guard) };
    }

    /// In parent and child: by the thread that forked, or its image.
    pub(crate) fn end_fork(&'static self) {
        // SAFETY: this thread has had the lock since `begin_fork`.
        drop(unsafe { (*self.forking.get()).take() });
    }
}

// SAFETY: passes on what dlmalloc gives, which keeps to the layout.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size and alignment of a layout.
        self.with(|memory| unsafe { memory.malloc(layout.size(), layout.align()) })
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise: from here, with this layout.
        self.with(|memory| unsafe { memory.free(ptr, layout.size(), layout.align()) });
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size and alignment of a layout.
        self.with(|memory| unsafe { memory.calloc(layout.size(), layout.align()) })
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise: from here, with this layout.
        self.with(|memory| unsafe { memory.realloc(ptr, layout.size(), layout.align(), new_size) })
    }
}
