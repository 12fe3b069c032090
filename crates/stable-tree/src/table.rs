//! Records reached by index, allocated a chunk at a time.
//!
//! Frame numbers and bucket numbers are dense from zero up, but how many there will be is not
//! known. Two directories of pointers lead to chunks of records; each part comes into being when an
//! index below it is first used, by a compare-and-swap that throws away the loser's copy. Nothing
//! moves or goes before the table does, so a record can be borrowed as long as the table.

use std::ptr;

use crate::sync::{AtomicPtr, Counter, Ordering, heap_bytes};

/// log2 of the pointers in the table, of the pointers in a directory, of the records in a chunk.
/// Together they are the 36 bits of a frame number; a model needs few, and to reach every edge.
#[cfg(not(loom))]
const LEVELS: (u32, u32, u32) = (12, 12, 12);
#[cfg(loom)]
const LEVELS: (u32, u32, u32) = (1, 1, 2);

const ROOT: u64 = 1 << LEVELS.0;
const DIRECTORY: u64 = 1 << LEVELS.1;
const CHUNK: u64 = 1 << LEVELS.2;

/// Records a table can have.
pub(crate) const CAPACITY: u64 = ROOT * DIRECTORY * CHUNK;

/// What a table is made of.
pub(crate) trait Indexed {
    /// The record `index` as it is before its first use.
    fn new(index: u64) -> Self;
}

/// A chunk is known by its first record.
type Directory<T> = Box<[AtomicPtr<T>]>;

/// Up to [`CAPACITY`] records.
#[derive(Debug)]
pub(crate) struct Table<T> {
    root: Box<[AtomicPtr<Directory<T>>]>,
    bytes: Counter,
}

fn nulls<T>(n: u64) -> Box<[AtomicPtr<T>]> {
    (0..n).map(|_| AtomicPtr::new(ptr::null_mut())).collect()
}

fn position(n: u64) -> usize {
    usize::try_from(n).expect("an index within a table's part fits in usize")
}

impl<T: Indexed> Table<T> {
    pub(crate) fn new() -> Self {
        let bytes = heap_bytes(size_of::<*mut T>() * position(ROOT));
        Self { root: nulls(ROOT), bytes: Counter::new(bytes) }
    }

    /// Bytes of all parts.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// The record, if its chunk exists.
    pub(crate) fn get(&self, index: u64) -> Option<&T> {
        let directory = self.root.get(position(index / CHUNK / DIRECTORY))?;
        // Acquire: pairs with the compare-and-swap that published the directory.
        let directory = directory.load(Ordering::Acquire);
        // SAFETY: a directory is published whole and lives as long as the table.
        let directory = unsafe { directory.as_ref() }?;
        // Acquire: pairs with the compare-and-swap that published the chunk.
        let chunk = directory[position(index / CHUNK % DIRECTORY)].load(Ordering::Acquire);
        if chunk.is_null() {
            return None;
        }
        // SAFETY: a chunk is published whole, has CHUNK records, and lives as long as the table.
        Some(unsafe { &*chunk.add(position(index % CHUNK)) })
    }

    /// The record; its chunk is made if need be. `None` beyond [`CAPACITY`].
    pub(crate) fn get_or_make(&self, index: u64) -> Option<&T> {
        if let Some(record) = self.get(index) {
            return Some(record);
        }
        let slot = self.root.get(position(index / CHUNK / DIRECTORY))?;
        if slot.load(Ordering::Acquire).is_null() {
            let bytes = heap_bytes(size_of::<Directory<T>>())
                + heap_bytes(size_of::<*mut T>() * position(DIRECTORY));
            let directory = Box::into_raw(Box::new(nulls(DIRECTORY)));
            if self.publish(slot, directory, bytes).is_err() {
                // SAFETY: allocated above and never published.
                drop(unsafe { Box::from_raw(directory) });
            }
        }
        // SAFETY: not null since the line above; published whole, lives as long as the table.
        let directory = unsafe { &*slot.load(Ordering::Acquire) };
        let slot = &directory[position(index / CHUNK % DIRECTORY)];
        if slot.load(Ordering::Acquire).is_null() {
            let first = index - index % CHUNK;
            let chunk: Box<[T]> = (first..first + CHUNK).map(T::new).collect();
            let bytes = heap_bytes(size_of_val(&*chunk));
            let chunk = Box::into_raw(chunk).cast::<T>();
            if self.publish(slot, chunk, bytes).is_err() {
                // SAFETY: allocated above and never published.
                unsafe { drop_chunk(chunk) };
            }
        }
        self.get(index)
    }

    /// The records there are, with their indices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        (0..CAPACITY / CHUNK)
            .filter(|chunk| {
                // Skips whole directories that do not exist.
                let directory = self.root[position(chunk / DIRECTORY)].load(Ordering::Acquire);
                !directory.is_null()
            })
            .flat_map(|chunk| chunk * CHUNK..(chunk + 1) * CHUNK)
            .filter_map(|index| Some((index, self.get(index)?)))
    }

    fn publish<P>(&self, slot: &AtomicPtr<P>, part: *mut P, bytes: u64) -> Result<(), ()> {
        // Release: pairs with the Acquire loads of `get`. On failure nothing is read: the loads
        // that follow have their own ordering.
        slot.compare_exchange(ptr::null_mut(), part, Ordering::Release, Ordering::Relaxed)
            .map_err(drop)?;
        self.bytes.add(bytes);
        Ok(())
    }
}

/// # Safety
/// `chunk` is the first record of a boxed slice of `CHUNK` that nobody uses.
unsafe fn drop_chunk<T>(chunk: *mut T) {
    let chunk = ptr::slice_from_raw_parts_mut(chunk, position(CHUNK));
    // SAFETY: passed on to the caller.
    drop(unsafe { Box::from_raw(chunk) });
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // Relaxed throughout: whoever drops the table has seen all that happened to it.
        for directory in self.root.iter().map(|slot| slot.load(Ordering::Relaxed)) {
            if directory.is_null() {
                continue;
            }
            // SAFETY: made by a box in `get_or_make`; nobody can use the table any more.
            let directory = unsafe { Box::from_raw(directory) };
            for chunk in directory.iter().map(|slot| slot.load(Ordering::Relaxed)) {
                if !chunk.is_null() {
                    // SAFETY: made in `get_or_make`; nobody can use the table any more.
                    unsafe { drop_chunk(chunk) };
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Index(u64);

    impl Indexed for Index {
        fn new(index: u64) -> Self {
            Self(index)
        }
    }

    #[test]
    fn records_exist_from_their_chunk_s_first_use_on() {
        let table = Table::<Index>::new();
        assert!(table.get(5).is_none());
        for index in [0, CHUNK - 1, CHUNK, CHUNK * DIRECTORY, CAPACITY - 1] {
            assert_eq!(table.get_or_make(index).map(|record| record.0), Some(index));
            assert_eq!(table.get(index ^ 1).map(|record| record.0), Some(index ^ 1));
        }
        assert!(table.get(CAPACITY).is_none() && table.get_or_make(CAPACITY).is_none());
        assert!(table.get(u64::MAX).is_none());
    }
}
