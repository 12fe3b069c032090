//! What readers have begun to read.
//!
//! A reader that takes a few bytes at a time reads one value, as it was when it began: what it gets
//! must not be half of one number and half of the next.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Most files that are open at one time.
const OPEN: usize = 1 << 16;

/// The text that a reader is in, once it has begun.
pub(crate) type Begun = Arc<Mutex<Option<String>>>;

/// Open files, by handle.
#[derive(Default)]
pub(crate) struct Handles(Mutex<Open>);

#[derive(Default)]
struct Open {
    last: u64,
    texts: HashMap<u64, Begun>,
}

impl Handles {
    /// None if as many are open as may be.
    pub(crate) fn open(&self) -> Option<u64> {
        let mut open = self.0.lock();
        if open.texts.len() >= OPEN {
            return None;
        }
        open.last += 1;
        let handle = open.last;
        open.texts.insert(handle, Begun::default());
        Some(handle)
    }

    pub(crate) fn close(&self, handle: u64) {
        self.0.lock().texts.remove(&handle);
    }

    /// What a handle's reader is in.
    pub(crate) fn begun(&self, handle: u64) -> Option<Begun> {
        self.0.lock().texts.get(&handle).cloned()
    }
}

/// The bytes from `offset` on, of what is read now if that is the beginning, else of what was.
pub(crate) fn bytes(
    begun: &Begun,
    offset: u64,
    size: u32,
    read: impl FnOnce() -> String,
) -> Vec<u8> {
    let mut begun = begun.lock();
    if offset == 0 || begun.is_none() {
        *begun = Some(read());
    }
    let text = begun.as_deref().unwrap_or_default().as_bytes();
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX)).min(text.len());
    text[start..end].to_vec()
}
