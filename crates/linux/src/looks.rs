//! Looks at one process, and how long others wait for them.
//!
//! A process that keeps its looks waiting can keep nobody waiting for long: who takes too long is left behind
//! (`looker`), nothing else is begun until that has returned, and what looks are blocked for is taken from
//! what the process has for it, so that neither many short waits add up.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::looker::{self, thread_cpu_time};

/// How long a look may take, and how long all of them may be blocked together.
const WAIT: Duration = Duration::from_millis(250);
/// A look may be blocked for so long before it counts: a program that maps memory has its mappings locked
/// for short times, often.
const USUAL: Duration = Duration::from_millis(5);
/// What a process has for being blocked comes back in so many times that time.
const SLOWER: u32 = 40;

/// Looks at one process.
#[derive(Debug)]
pub(crate) struct Looks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug)]
struct State {
    next: u64,
    /// By number, and whether somebody waits for it still.
    under_way: BTreeMap<u64, bool>,
    patience: Patience,
    is_closed: bool,
}

/// What a process has for being blocked.
#[derive(Clone, Copy, Debug)]
struct Patience {
    left: Duration,
    /// When that was so.
    at: Instant,
}

impl Patience {
    fn at(self, now: Instant) -> Self {
        let back = now.saturating_duration_since(self.at) / SLOWER;
        Self { left: (self.left + back).min(WAIT), at: now }
    }

    /// Whether it is worth to begin.
    fn suffices(self) -> bool {
        self.left >= WAIT / 2
    }

    fn spend(&mut self, blocked: Duration) {
        self.left = self.left.saturating_sub(blocked.saturating_sub(USUAL));
    }
}

/// A look under way; it has returned when this is dropped.
struct UnderWay {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.shared.state().under_way.remove(&self.number);
        self.shared.returned.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Numbers and times: whole whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Looks {
    pub(crate) fn new() -> Self {
        let patience = Patience { left: WAIT, at: Instant::now() };
        let state = State { next: 0, under_way: BTreeMap::new(), patience, is_closed: false };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), returned: Condvar::new() }) }
    }

    /// What `look` gives.
    ///
    /// # Errors
    /// `TimedOut` if it takes too long: then it may come to an end later. `WouldBlock` if it is not begun, for
    /// the process keeps another one waiting, or has done so too long by now, or the system has no thread.
    pub(crate) fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        self.look_for(WAIT, look)
    }

    fn look_for<T: Send + 'static>(
        &self,
        most: Duration,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let under_way = self.begin(Instant::now())?;
        let number = under_way.number;
        let run = move || {
            let (began, cpu) = (Instant::now(), thread_cpu_time());
            let found = look();
            let took = began.elapsed();
            if took > USUAL {
                let waited = took.saturating_sub(thread_cpu_time().saturating_sub(cpu));
                let blocked = waited.saturating_sub(waits::for_cpu()).min(WAIT);
                under_way.shared.state().patience.spend(blocked);
            }
            drop(under_way);
            found
        };
        looker::call(most, run).inspect_err(|_| self.leave_behind(number)).map_err(|error| {
            // No thread: the system says so in several ways.
            if error.kind() == io::ErrorKind::TimedOut { error } else { not_begun() }
        })
    }

    fn begin(&self, now: Instant) -> io::Result<UnderWay> {
        let mut state = self.shared.state();
        state.patience = state.patience.at(now);
        let is_kept_waiting = state.under_way.values().any(|is_waited_for| !is_waited_for);
        if state.is_closed || is_kept_waiting || !state.patience.suffices() {
            return Err(not_begun());
        }
        let number = state.next;
        state.next += 1;
        state.under_way.insert(number, true);
        Ok(UnderWay { shared: Arc::clone(&self.shared), number })
    }

    fn leave_behind(&self, number: u64) {
        if let Some(is_waited_for) = self.shared.state().under_way.get_mut(&number) {
            *is_waited_for = false;
        }
    }

    /// Begins none any more, and waits, however long it takes, until all have returned.
    pub(crate) fn close(&self) {
        let mut state = self.shared.state();
        state.is_closed = true;
        while !state.under_way.is_empty() {
            let waited = self.shared.returned.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn not_begun() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

/// What a thread waits for that is nobody's fault.
mod waits {
    use std::cell::Cell;
    use std::time::Duration;

    thread_local! {
        static BEFORE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    /// How long the calling thread was ready and had no CPU since this was last asked, if the kernel tells:
    /// the second number of /proc/PID/schedstat (Documentation/scheduler/sched-stats.rst).
    pub(super) fn for_cpu() -> Duration {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let nanos = text.split_whitespace().nth(1).and_then(|nanos| nanos.parse().ok());
        let now = Duration::from_nanos(nanos.unwrap_or(0));
        now.saturating_sub(BEFORE.replace(now))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
        result.expect_err("a look that gives nothing").kind()
    }

    #[test]
    fn what_returns_is_given() {
        let looks = Looks::new();
        assert_eq!(looks.look(|| 5).expect("a thread"), 5);
        assert_eq!(looks.look(|| 6).expect("a thread"), 6);
        looks.close();
        assert_eq!(kind(looks.look(|| 7)), io::ErrorKind::WouldBlock, "closed");
    }

    #[test]
    fn s6_nothing_is_begun_after_what_does_not_return_until_it_does() {
        let looks = Looks::new();
        let (release, held) = channel::<()>();
        let short = Duration::from_millis(1);
        assert_eq!(kind(looks.look_for(short, move || held.recv())), io::ErrorKind::TimedOut);
        assert_eq!(kind(looks.look_for(LONG, || 5)), io::ErrorKind::WouldBlock);
        drop(release);
        let began = Instant::now();
        while !looks.shared.state().under_way.is_empty() && began.elapsed() < LONG {
            std::thread::sleep(short);
        }
        assert_eq!(looks.look_for(LONG, || 5).expect("a thread"), 5);
    }

    #[test]
    fn s6_others_do_not_wait_for_who_is_not_late() {
        let looks = Looks::new();
        let (release, held) = channel::<()>();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| looks.look_for(LONG, move || held.recv()));
            let began = Instant::now();
            while looks.shared.state().under_way.is_empty() && began.elapsed() < LONG {
                std::thread::yield_now();
            }
            assert_eq!(looks.look_for(LONG, || 5).expect("a thread"), 5);
            drop(release);
            assert!(first.join().expect("no panic").is_ok());
        });
    }

    #[test]
    fn s6_being_blocked_is_limited_in_all() {
        let looks = Looks::new();
        let block = || std::thread::sleep(WAIT / 4);
        let blocked = (0..8).map(|_| looks.look_for(LONG, block)).filter(Result::is_ok).count();
        assert!((2..=3).contains(&blocked), "{blocked} times");
        let now = Instant::now();
        assert!(looks.begin(now).is_err());
        assert!(looks.begin(now + WAIT * SLOWER).is_ok(), "it comes back");
    }

    #[test]
    fn short_waits_cost_nothing_and_what_comes_back_has_a_limit() {
        let now = Instant::now();
        let mut patience = Patience { left: WAIT, at: now };
        patience.spend(USUAL);
        assert_eq!(patience.left, WAIT);
        patience.spend(WAIT / 2 + USUAL + USUAL);
        assert!(!patience.suffices());
        assert!(patience.at(now + USUAL * SLOWER).suffices());
        assert_eq!(patience.at(now + LONG).left, WAIT);
        patience.spend(LONG);
        assert_eq!(patience.left, Duration::ZERO);
    }

    #[test]
    fn s6_work_and_waiting_for_a_cpu_do_not_count() {
        let looks = Looks::new();
        let work = || {
            let before = thread_cpu_time();
            while thread_cpu_time() - before < WAIT {}
        };
        looks.look_for(LONG, work).expect("a thread");
        assert!(looks.begin(Instant::now()).is_ok());
    }
}
