//! System calls that may never return, made by a thread that nobody has to wait for.
//!
//! A process decides how long a look at it takes: who reads a page of a file of its own file system waits until
//! that answers, and who walks its page tables or wants its list of mappings, until whoever has those locked
//! lets go of them. No signal ends such a wait. So a thread that looks at processes has another one do it, its
//! looker, which is given all it needs and gives back what it found, and which is left behind when it takes
//! too long. Giving and getting back takes some 3 us together (measured on two busy CPUs).
//!
//! A looker is started by the thread that it looks for and so runs on the same CPUs, near the same memory. The
//! CPU time that it uses counts as that thread's.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

type Look = Box<dyn FnOnce() + Send>;

thread_local! {
    /// The calling thread's looker, unless it is left behind.
    static LOOKER: RefCell<Option<SyncSender<Look>>> = const { RefCell::new(None) };
    static USED: Arc<Used> = Arc::default();
}

/// CPU time that a thread's lookers have used.
#[derive(Default, Debug)]
pub(crate) struct Used(AtomicU64);

impl Used {
    /// That of the calling thread's.
    pub(crate) fn of_current_thread() -> Arc<Self> {
        USED.with(Arc::clone)
    }

    pub(crate) fn get(&self) -> Duration {
        // Relaxed: a counter; what was used for a look was added before its answer was sent.
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn add(&self, used: Duration) {
        // Relaxed: as where it is read.
        self.0.fetch_add(u64::try_from(used.as_nanos()).unwrap_or(0), Ordering::Relaxed);
    }
}

/// What `look` gives, for which it has `most` of time. Done by the calling thread's looker.
///
/// # Errors
/// `TimedOut` if it takes longer: then it may still come to an end. What the system said if it has no thread.
pub(crate) fn call<T: Send + 'static>(
    most: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let looker = LOOKER.take().map_or_else(start, Ok)?;
    let (answer, answered) = sync_channel(1);
    let used = Used::of_current_thread();
    let order = move || {
        let before = thread_cpu_time();
        let found = look();
        used.add(thread_cpu_time().saturating_sub(before));
        // Fails if nobody waits any more.
        let _ = answer.send(found);
    };
    // Fails if it has ended, which only a panic ends it by; so there will be no answer.
    let _ = looker.send(Box::new(order));
    let found = answered.recv_timeout(most).map_err(|_| io::ErrorKind::TimedOut)?;
    LOOKER.set(Some(looker));
    Ok(found)
}

/// The calling thread's next look is made by a new looker: the thread runs elsewhere now.
pub(crate) fn dismiss() {
    LOOKER.take();
}

/// A looker ends when nobody can give it anything to do any more.
fn start() -> io::Result<SyncSender<Look>> {
    let (orders, ordered) = sync_channel::<Look>(1);
    let run = move || ordered.into_iter().for_each(|look| look());
    std::thread::Builder::new().name("numerge-looker".into()).spawn(run)?;
    Ok(orders)
}

/// CPU time that the calling thread has used itself.
pub(crate) fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn looker() -> std::thread::ThreadId {
        call(LONG, || std::thread::current().id()).expect("a thread")
    }

    #[test]
    fn one_thread_looks_for_another() {
        let first = looker();
        assert_ne!(first, std::thread::current().id());
        assert_eq!(first, looker());
        dismiss();
        assert_ne!(first, looker());
        let others = std::thread::spawn(|| (looker(), std::thread::current().id()));
        let others = others.join().expect("no panic");
        assert!(others.0 != first && others.1 != first);
    }

    #[test]
    fn s6_who_takes_too_long_is_left_behind() {
        let first = looker();
        let (release, held) = channel::<()>();
        let late = call(Duration::from_millis(1), move || held.recv());
        assert_eq!(late.expect_err("it does not return").kind(), io::ErrorKind::TimedOut);
        assert_ne!(looker(), first);
        drop(release);
    }

    #[test]
    fn s5_4_what_a_looker_uses_is_counted() {
        const SPENT: Duration = Duration::from_millis(20);
        let used = Used::of_current_thread();
        let before = used.get();
        let spend = || {
            let began = Instant::now();
            while thread_cpu_time() < SPENT && began.elapsed() < LONG {}
        };
        call(LONG, spend).expect("a thread");
        assert!(used.get() - before >= SPENT / 2, "{:?}", used.get());
        let others = std::thread::spawn(|| Used::of_current_thread().get());
        assert_eq!(others.join().expect("no panic"), Duration::ZERO);
    }
}
