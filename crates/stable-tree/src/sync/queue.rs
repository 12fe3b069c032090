//! A queue of many producers and consumers, first in, first out.
//!
//! The model's queue is a list under the standard library's lock, with one atomic operation in
//! front of each use of it: there the checker may switch threads, and there what went before a
//! push is made visible to the pop that follows. One switch for an operation keeps models small.

#[cfg(not(loom))]
use crossbeam::queue::SegQueue;
#[cfg(loom)]
use std::collections::VecDeque;

/// An unbounded queue. Its users bound what they put in it.
#[cfg(not(loom))]
#[derive(Debug)]
pub struct Queue<T>(SegQueue<T>);

#[cfg(not(loom))]
impl<T> Queue<T> {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        Self(SegQueue::new())
    }

    /// Appends an item. What the caller did before is visible to who pops it.
    pub fn push(&self, item: T) {
        self.0.push(item);
    }

    /// Takes the oldest item.
    pub fn pop(&self) -> Option<T> {
        self.0.pop()
    }

    /// How many items there are, about right while others push and pop.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// An unbounded queue. Its users bound what they put in it.
#[cfg(loom)]
#[derive(Debug)]
pub struct Queue<T> {
    gate: super::AtomicUsize,
    items: std::sync::Mutex<VecDeque<T>>,
}

#[cfg(loom)]
impl<T> Queue<T> {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self { gate: super::AtomicUsize::new(0), items: std::sync::Mutex::default() }
    }

    /// Appends an item. What the caller did before is visible to who pops it.
    pub fn push(&self, item: T) {
        self.items().push_back(item);
    }

    /// Takes the oldest item.
    pub fn pop(&self) -> Option<T> {
        self.items().pop_front()
    }

    /// How many items there are, about right while others push and pop.
    pub fn len(&self) -> usize {
        self.items().len()
    }

    fn items(&self) -> std::sync::MutexGuard<'_, VecDeque<T>> {
        self.gate.fetch_add(1, super::Ordering::AcqRel);
        self.items.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<T> Queue<T> {
    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}
