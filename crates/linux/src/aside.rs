//! System calls on another process that may never return, made by threads that nobody has to wait for.
//!
//! A process decides how long a look at it takes: who reads a page of a file of its own file system waits until
//! that answers, and who wants its list of mappings, until whoever has that locked lets go of it. No signal
//! ends such a wait. So what need not be fast is done by a thread of its own, which is left behind when it
//! takes too long, and nothing else is begun while there is one left behind.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After so long, a call counts as one that never returns.
const OVERDUE: Duration = Duration::from_secs(1);
/// Most calls under way at one time.
const CALLS: usize = 16;

/// The calls on one process.
#[derive(Default, Debug)]
pub(crate) struct Aside {
    calls: Arc<Calls>,
}

#[derive(Default, Debug)]
struct Calls {
    under_way: Mutex<UnderWay>,
    returned: Condvar,
}

#[derive(Default, Debug)]
struct UnderWay {
    next: u64,
    /// By number, and when each was begun.
    began: BTreeMap<u64, Instant>,
    is_closed: bool,
}

/// A call under way; it has returned when this is dropped.
struct Call {
    calls: Arc<Calls>,
    number: u64,
}

impl Calls {
    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        // A number and times: whole whoever panicked.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.under_way().began.remove(&self.number);
        self.calls.returned.notify_all();
    }
}

impl Aside {
    /// What `call` gives, for which it has `most` of time, a second at most.
    ///
    /// # Errors
    /// `TimedOut` if it takes longer, or another one has taken longer than a second and goes on, or there are
    /// as many as allowed; what the system said if it has no thread.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        most: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let under_way = self.begin(Instant::now())?;
        let (sender, receiver) = sync_channel(1);
        let run = move || {
            let result = call();
            drop(under_way);
            // Fails if nobody waits any more.
            let _ = sender.send(result);
        };
        std::thread::Builder::new().name("numerge-aside".into()).spawn(run)?;
        receiver.recv_timeout(most.min(OVERDUE)).map_err(|_| io::ErrorKind::TimedOut.into())
    }

    fn begin(&self, now: Instant) -> io::Result<Call> {
        let mut under_way = self.calls.under_way();
        let is_overdue = |began: &Instant| now.saturating_duration_since(*began) >= OVERDUE;
        if under_way.is_closed
            || under_way.began.len() >= CALLS
            || under_way.began.values().any(is_overdue)
        {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let number = under_way.next;
        under_way.next += 1;
        under_way.began.insert(number, now);
        Ok(Call { calls: Arc::clone(&self.calls), number })
    }

    /// Begins none any more, and waits, however long it takes, until all have returned.
    pub(crate) fn close(&self) {
        let mut under_way = self.calls.under_way();
        under_way.is_closed = true;
        while !under_way.began.is_empty() {
            let waited = self.calls.returned.wait(under_way);
            under_way = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn is_timeout<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
        result.expect_err("a call that does not return").kind() == io::ErrorKind::TimedOut
    }

    #[test]
    fn what_returns_is_given() {
        let aside = Aside::default();
        assert_eq!(aside.call(OVERDUE, || 5).expect("a thread"), 5);
        assert_eq!(aside.call(OVERDUE, || 6).expect("a thread"), 6);
        aside.close();
        assert!(is_timeout(aside.call(OVERDUE, || 7)), "closed");
    }

    #[test]
    fn s6_nothing_is_begun_after_what_does_not_return_until_it_does() {
        let aside = Aside::default();
        let (release, held) = channel::<()>();
        let began = Instant::now();
        assert!(is_timeout(aside.call(Duration::from_millis(1), move || held.recv())));
        let later = began + 2 * OVERDUE;
        assert!(aside.begin(began).is_ok(), "it may return yet");
        assert!(aside.begin(later).is_err());
        drop(release);
        let returned = || aside.calls.under_way().began.is_empty();
        while !returned() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(aside.begin(later).is_ok());
    }

    #[test]
    fn s6_no_more_are_left_behind_than_allowed() {
        let aside = Aside::default();
        let now = Instant::now();
        let calls: Vec<Call> = (0..CALLS).map(|_| aside.begin(now).expect("few")).collect();
        assert!(aside.begin(now).is_err());
        drop(calls);
        assert!(aside.begin(now).is_ok());
    }
}
