//! Writes that are under way, and the signals that their writers got meanwhile.
//!
//! Only an unmerging (`run` = 2) lasts long enough to be interrupted. An interrupt that comes first is
//! seen by the write before it begins to unmerge; one that comes later ends the unmerging, again and
//! again until that is over, for it may not have begun by then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::source::Source;

/// Between two tries to end an unmerging.
const AGAIN: Duration = Duration::from_millis(5);

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

    /// A request is about to be answered; most are no writes.
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

    /// The write has unmerged, or could not. True if its writer got a signal by now; of one that comes later
    /// it does not hear.
    pub(crate) fn end_to_unmerge(&self, number: u64) -> bool {
        let mut under_way = self.under_way.lock();
        let Some(write) = under_way.get_mut(&number) else { return false };
        write.is_unmerging = false;
        self.ended.notify_all();
        write.is_interrupted
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

    /// Until a write, or every write, has ended its unmerging.
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
