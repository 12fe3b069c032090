//! Epochs for a model checker: exact, and suspicious.
//!
//! Same interface as crossbeam's behind it (`epoch.rs`), but a retired object is freed at the first
//! moment the contract allows: when the last guard that was pinned at its retirement goes. Freed
//! objects keep their memory until the end of the execution, so that each later use of one is seen
//! and reported instead of reading what happens to be there; so are objects retired twice, and
//! those neither retired nor freed at the end.
//!
//! The state is under the standard library's lock; in front of each use of it stands one operation
//! on `gate`, where loom may switch threads. Its orderings give what the contract gives: who pins or
//! frees after a retirement sees what the retiring thread did before (retire releases, pin and unpin
//! acquire, and the read-modify-writes between carry it on), and who frees has seen all that the
//! readers did before they let go (unpin releases). That a later pin sees that, too, is more than
//! the contract gives, but hides nothing: whatever can be stale for a reader that pins late can be
//! stale for one that pins early and reads late.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::Arc;
use std::sync::Mutex as StdMutex;
use std::sync::PoisonError;

use super::{AtomicBool, AtomicUsize, Ordering, Queue, heap_bytes};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Live,
    Retired,
    Freed,
}

#[derive(Debug)]
struct Object {
    life: Life,
    bytes: u64,
    /// Gives the memory back.
    release: unsafe fn(usize),
}

#[derive(Debug)]
enum Garbage {
    Object(usize),
    Number(u64),
    Flag(Arc<AtomicBool>),
}

#[derive(Debug, Default)]
struct State {
    guards_made: u64,
    pinned: Vec<u64>,
    /// What is retired, with the guards it waits for.
    waiting: Vec<(Vec<u64>, Garbage)>,
    objects: BTreeMap<usize, Object>,
}

#[derive(Debug)]
struct Shared {
    gate: AtomicUsize,
    state: StdMutex<State>,
    expired: Queue<u64>,
}

/// The epochs of one structure.
#[derive(Debug)]
pub struct Collector {
    shared: Arc<Shared>,
}

/// One thread's part in a [`Collector`].
#[derive(Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// While it lives, nothing reachable at its creation is freed.
#[derive(Debug)]
pub struct Guard<'h> {
    id: u64,
    shared: &'h Shared,
}

impl Shared {
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn pin(&self) -> u64 {
        self.gate.fetch_add(1, Ordering::Acquire);
        self.with(|state| {
            state.guards_made += 1;
            state.pinned.push(state.guards_made);
            state.guards_made
        })
    }

    fn unpin(&self, id: u64) {
        self.gate.fetch_add(1, Ordering::AcqRel);
        let due = self.with(|state| {
            state.pinned.retain(|&pinned| pinned != id);
            for (guards, _) in &mut state.waiting {
                guards.retain(|&guard| guard != id);
            }
            state.free_due()
        });
        // Outside the lock, for these may switch threads.
        for garbage in due {
            match garbage {
                Garbage::Object(_) => {}
                Garbage::Number(number) => self.expired.push(number),
                // Release: pairs with the load that waits for the flag.
                Garbage::Flag(flag) => flag.store(true, Ordering::Release),
            }
        }
    }

    fn retire(&self, garbage: Garbage) {
        self.gate.fetch_add(1, Ordering::Release);
        self.with(|state| {
            if let Garbage::Object(address) = garbage {
                let object = state.objects.get_mut(&address).expect("retired but never allocated");
                assert_eq!(object.life, Life::Live, "retired twice");
                object.life = Life::Retired;
            }
            state.waiting.push((state.pinned.clone(), garbage));
        });
    }
}

impl State {
    /// Frees the objects that wait for no guard any more; gives all that waits for none.
    fn free_due(&mut self) -> Vec<Garbage> {
        let (due, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(guards, _)| guards.is_empty());
        self.waiting = waiting;
        for (_, garbage) in &due {
            if let Garbage::Object(address) = garbage {
                self.objects.get_mut(address).expect("known since alloc").life = Life::Freed;
            }
        }
        due.into_iter().map(|(_, garbage)| garbage).collect()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let objects = self.with(|state| std::mem::take(&mut state.objects));
        let leaked = objects.values().filter(|object| object.life == Life::Live).count();
        for (address, object) in objects {
            // SAFETY: the memory of each object is released here only, and nobody is left to use it.
            unsafe { (object.release)(address) };
        }
        if !std::thread::panicking() {
            assert_eq!(leaked, 0, "objects leaked");
        }
    }
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
        let shared =
            Shared { gate: AtomicUsize::new(0), state: StdMutex::default(), expired: Queue::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Lets the calling thread take part.
    #[must_use]
    pub fn register(&self) -> Handle {
        Handle { shared: Arc::clone(&self.shared) }
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
        self.shared.with(|state| state.waiting.len() as u64)
    }

    /// Bytes of the objects that were allocated and not yet freed.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        let bytes = |state: &mut State| {
            state.objects.values().filter(|o| o.life != Life::Freed).map(|o| o.bytes).sum()
        };
        self.shared.with(bytes)
    }

    /// Frees an object at once.
    ///
    /// # Safety
    /// `object` comes from [`Guard::alloc`] of this collector, was not retired, and nobody else can
    /// reach it.
    pub unsafe fn free<T>(&self, object: *mut T) {
        self.shared.with(|state| {
            let object = state.objects.get_mut(&object.addr()).expect("freed but never allocated");
            assert_eq!(object.life, Life::Live, "freed twice");
            object.life = Life::Freed;
        });
    }
}

impl Handle {
    /// Starts a read.
    #[must_use]
    pub fn pin(&self) -> Guard<'_> {
        Guard { id: self.shared.pin(), shared: &self.shared }
    }

    /// The mock never delays, so there is nothing to do.
    pub fn flush(&self) {}
}

impl Guard<'_> {
    /// Allows what was retired before now to be freed.
    pub fn repin(&mut self) {
        self.shared.unpin(self.id);
        self.id = self.shared.pin();
    }

    /// Puts a value on the heap.
    pub fn alloc<T>(&self, value: T) -> *mut T {
        unsafe fn release<T>(address: usize) {
            // SAFETY: `address` is the exposed address of a box that is released once.
            drop(unsafe { Box::from_raw(ptr::with_exposed_provenance_mut::<T>(address)) });
        }
        let object = Box::into_raw(Box::new(value));
        let known =
            Object { life: Life::Live, bytes: heap_bytes(size_of::<T>()), release: release::<T> };
        self.shared.with(|state| state.objects.insert(object.expose_provenance(), known));
        object
    }

    /// Reads through a pointer.
    ///
    /// # Safety
    /// `object` comes from [`Guard::alloc`], or lives as long as the structure, and could be reached
    /// when or after this guard was made.
    pub unsafe fn deref<T>(&self, object: *mut T) -> &T {
        let life = self.shared.with(|state| state.objects.get(&object.addr()).map(|o| o.life));
        match life {
            // What was not allocated here lives as long as the structure (a bucket's sentinel).
            Some(Life::Live | Life::Retired) | None => {}
            Some(Life::Freed) => panic!("use after free"),
        }
        // SAFETY: freed objects keep their memory until the execution ends.
        unsafe { &*object }
    }

    /// Frees an object when nobody can hold it any more.
    ///
    /// # Safety
    /// `object` comes from [`Guard::alloc`] of the same collector, is retired only once, and can no
    /// longer be reached by who pins itself from now on.
    pub unsafe fn retire<T: Send>(&self, object: *mut T) {
        self.shared.retire(Garbage::Object(object.addr()));
    }

    /// Raises `flag` when every guard that exists now is gone.
    pub fn retire_flag(&self, flag: Arc<AtomicBool>) {
        self.shared.retire(Garbage::Flag(flag));
    }

    /// The [`Collector::id`] of the structure that this guard protects.
    #[must_use]
    pub fn id(&self) -> usize {
        ptr::from_ref(self.shared).addr()
    }

    /// Puts `number` on [`Collector::expired`] when nobody can hold what it stands for any more.
    pub fn retire_number(&self, number: u64) {
        self.shared.retire(Garbage::Number(number));
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // A failed model unwinds outside of the checker's control.
        if !std::thread::panicking() {
            self.shared.unpin(self.id);
        }
    }
}
