//! Reclamation of what a reader without a lock may still hold (Fraser, TR-579, 2004).
//!
//! A reader pins itself before it follows pointers. An object taken out of a structure is retired:
//! it is freed once every reader that was pinned at that moment has let go, for one that pins
//! itself later can no longer find it. Numbers can be retired like objects; they come out of
//! [`Collector::expired`], which is how a frame's *content* is protected by the same epochs.
//!
//! This is crossbeam's implementation behind the interface that the mock shares. A collector
//! belongs to one structure, so that a stalled reader elsewhere delays nothing here. Nothing but
//! memory is freed in deferred functions: no system call, no lock.

use std::ptr;
use std::sync::Arc;

use super::{AtomicBool, Counter, Ordering, Queue, heap_bytes};

/// What deferred functions need: they reach it by a raw pointer, for they outlive borrows.
#[derive(Debug, Default)]
struct Shared {
    /// Retired and not yet freed: objects and numbers.
    lag: Counter,
    /// Bytes of the objects not yet freed.
    bytes: Counter,
    expired: Queue<u64>,
}

/// The epochs of one structure.
///
/// The fields' order matters: garbage that is left is freed while `inner` is dropped, and needs
/// `shared`.
#[derive(Debug)]
pub struct Collector {
    inner: crossbeam_epoch::Collector,
    shared: Arc<Shared>,
}

/// One thread's part in a [`Collector`]. Here, too, the order of the fields matters.
#[derive(Debug)]
pub struct Handle {
    inner: crossbeam_epoch::LocalHandle,
    shared: Arc<Shared>,
}

/// While it lives, nothing reachable at its creation is freed. Not to be held over a system call.
#[derive(Debug)]
pub struct Guard<'h> {
    inner: crossbeam_epoch::Guard,
    shared: &'h Shared,
}

impl Default for Collector {
    fn default() -> Self {
        Self::new()
    }
}

impl Collector {
    /// Epochs of a new structure.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: crossbeam_epoch::Collector::new(), shared: Arc::default() }
    }

    /// Lets the calling thread take part.
    #[must_use]
    pub fn register(&self) -> Handle {
        Handle { inner: self.inner.register(), shared: Arc::clone(&self.shared) }
    }

    /// Tells this collector from every other one that is in use.
    #[must_use]
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.shared).addr()
    }

    /// The numbers whose grace period is over.
    #[must_use]
    pub fn expired(&self) -> &Queue<u64> {
        &self.shared.expired
    }

    /// How many objects and numbers are retired and not yet freed.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.shared.lag.get()
    }

    /// Bytes of the objects that were allocated and not yet freed.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.shared.bytes.get()
    }

    /// Frees an object at once.
    ///
    /// # Safety
    /// `object` comes from [`Guard::alloc`] of this collector, was not retired, and nobody else can
    /// reach it.
    pub unsafe fn free<T>(&self, object: *mut T) {
        // SAFETY: allocated by a box in `alloc`, and the caller's alone.
        drop(unsafe { Box::from_raw(object) });
        self.shared.bytes.sub(heap_bytes(size_of::<T>()));
    }
}

impl Handle {
    /// Starts a read. A pin within a pin costs almost nothing, and collects nothing.
    #[must_use]
    pub fn pin(&self) -> Guard<'_> {
        Guard { inner: self.inner.pin(), shared: &self.shared }
    }

    /// Hands this thread's garbage over and frees some of what may be freed. Where nothing is going
    /// on, a few calls free everything; with a guard of this thread alive, it frees nothing.
    pub fn flush(&self) {
        self.inner.pin().flush();
    }
}

impl Guard<'_> {
    /// Allows what was retired before now to be freed. What was read before must be forgotten,
    /// which the exclusive borrow sees to.
    pub fn repin(&mut self) {
        self.inner.repin();
    }

    /// Puts a value on the heap.
    pub fn alloc<T>(&self, value: T) -> *mut T {
        self.shared.bytes.add(heap_bytes(size_of::<T>()));
        Box::into_raw(Box::new(value))
    }

    /// Reads through a pointer.
    ///
    /// # Safety
    /// `object` comes from [`Guard::alloc`], or lives as long as the structure, and could be reached
    /// when or after this guard was made.
    pub unsafe fn deref<T>(&self, object: *mut T) -> &T {
        // SAFETY: the object was not retired before this guard was made, so it outlives it.
        unsafe { &*object }
    }

    /// Frees an object when nobody can hold it any more.
    ///
    /// # Safety
    /// `object` comes from [`Guard::alloc`] of the same collector, is retired only once, and can no
    /// longer be reached by who pins itself from now on.
    pub unsafe fn retire<T: Send>(&self, object: *mut T) {
        self.shared.lag.add(1);
        let shared: *const Shared = self.shared;
        // SAFETY: the object is freed once, after the grace period. `shared` is alive whenever
        // deferred functions run: that is inside a call on, or the drop of, a collector, a handle
        // or a guard, and each of them keeps `shared` for longer than its inner part.
        unsafe {
            self.inner.defer_unchecked(move || {
                drop(Box::from_raw(object));
                (*shared).bytes.sub(heap_bytes(size_of::<T>()));
                (*shared).lag.sub(1);
            });
        }
    }

    /// Raises `flag` when every guard that exists now is gone.
    pub fn retire_flag(&self, flag: Arc<AtomicBool>) {
        self.shared.lag.add(1);
        let shared: *const Shared = self.shared;
        // SAFETY: as in `retire`.
        unsafe {
            self.inner.defer_unchecked(move || {
                // Release: pairs with the load that waits for the flag.
                flag.store(true, Ordering::Release);
                (*shared).lag.sub(1);
            });
        }
    }

    /// The [`Collector::id`] of the structure that this guard protects.
    #[must_use]
    pub fn id(&self) -> usize {
        ptr::from_ref(self.shared).addr()
    }

    /// Puts `number` on [`Collector::expired`] when nobody can hold what it stands for any more.
    pub fn retire_number(&self, number: u64) {
        self.shared.lag.add(1);
        let shared: *const Shared = self.shared;
        // SAFETY: as in `retire`.
        unsafe {
            self.inner.defer_unchecked(move || {
                (*shared).expired.push(number);
                (*shared).lag.sub(1);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_freed_after_the_grace_period_and_not_before() {
        let collector = Collector::new();
        let (reader, writer) = (collector.register(), collector.register());
        let read = reader.pin();
        let object = {
            let guard = writer.pin();
            let object = guard.alloc(7_u64);
            // SAFETY: never published, retired once.
            unsafe { guard.retire(object) };
            guard.retire_number(42);
            object
        };
        for _ in 0..100 {
            writer.flush();
        }
        assert_eq!((collector.lag(), collector.expired().pop()), (2, None));
        // SAFETY: `read` was made before the object was retired.
        assert_eq!(unsafe { *read.deref(object) }, 7);

        drop(read);
        for _ in 0..100 {
            writer.flush();
        }
        assert_eq!((collector.lag(), collector.expired().pop()), (0, Some(42)));
        assert_eq!(collector.allocated_bytes(), 0);
    }

    #[test]
    fn garbage_goes_with_the_last_of_collector_and_handles() {
        let collector = Collector::new();
        let handle = collector.register();
        drop(collector);
        let guard = handle.pin();
        let object = guard.alloc(std::sync::Arc::new(()));
        // SAFETY: just allocated.
        let witness = std::sync::Arc::downgrade(unsafe { guard.deref(object) });
        // SAFETY: never published, retired once.
        unsafe { guard.retire(object) };
        drop(guard);
        drop(handle);
        assert!(witness.upgrade().is_none());
    }
}
