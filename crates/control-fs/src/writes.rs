//! Writes that are under way, and the signals that their writers got meanwhile.
//!
//! Only an unmerging (`run` = 2) lasts long enough to be interrupted. An interrupt that comes first is
//! seen by the write before it begins to unmerge; one that comes later ends the unmerging, again and
//! again until the write is over, for it may not have begun by then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::source::Source;

/// Between two tries to end an unmerging.
const AGAIN: Duration = Duration::from_millis(5);

/// A write that is carried out. It is over when this is dropped, whether the kernel takes the answer or not.
pub(crate) struct UnderWay {
    writes: Arc<Writes>,
    number: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.writes.end(self.number);
    }
}

#[derive(Default)]
struct Write {
    is_interrupted: bool,
    is_unmerging: bool,
}

/// The writes, by the numbers that the kernel gives its requests.
pub(crate) struct Writes {
    source: Arc<dyn Source>,
    under_way: Mutex<HashMap<u64, Write>>,
    ended: Condvar,
}

impl Writes {
    pub(crate) fn new(source: Arc<dyn Source>) -> Self {
        Self { source, under_way: Mutex::default(), ended: Condvar::new() }
    }

    /// A write has come.
    pub(crate) fn begin(&self, number: u64) {
        self.under_way.lock().insert(number, Write::default());
    }

    /// Somebody carries a write out.
    pub(crate) fn carry_out(self: &Arc<Self>, number: u64) -> UnderWay {
        UnderWay { writes: Arc::clone(self), number }
    }

    /// A request is over, or about to be answered; most are no writes.
    pub(crate) fn end(&self, number: u64) {
        if self.under_way.lock().remove(&number).is_some() {
            self.ended.notify_all();
        }
    }

    /// The write is about to unmerge. False if its writer does not want that any more.
    pub(crate) fn begin_to_unmerge(&self, number: u64) -> bool {
        let mut under_way = self.under_way.lock();
        let Some(write) = under_way.get_mut(&number) else { return false };
        write.is_unmerging = !write.is_interrupted;
        write.is_unmerging
    }

    /// Whether the writer got a signal.
    pub(crate) fn is_interrupted(&self, number: u64) -> bool {
        self.under_way.lock().get(&number).is_some_and(|write| write.is_interrupted)
    }

    /// The writer got a signal.
    pub(crate) fn interrupt(self: &Arc<Self>, number: u64) {
        let mut under_way = self.under_way.lock();
        let Some(write) = under_way.get_mut(&number) else { return };
        if std::mem::replace(&mut write.is_interrupted, true) || !write.is_unmerging {
            return;
        }
        let writes = Arc::clone(self);
        let end = move || writes.end_unmerging(Some(number));
        // Without a thread the unmerging goes on, which is correct and takes longer.
        let _ = std::thread::Builder::new().name("control-fs-signal".into()).spawn(end);
    }

    /// Ends all unmerging: the files go.
    pub(crate) fn interrupt_all(&self) {
        self.end_unmerging(None);
    }

    /// Until a write, or every write, is over.
    fn end_unmerging(&self, number: Option<u64>) {
        let mut under_way = self.under_way.lock();
        while under_way.iter().any(|(other, write)| {
            write.is_unmerging && number.is_none_or(|number| number == *other)
        }) {
            drop(under_way);
            self.source.interrupt();
            under_way = self.under_way.lock();
            self.ended.wait_for(&mut under_way, AGAIN);
        }
    }
}
