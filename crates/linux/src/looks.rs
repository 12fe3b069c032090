//! Looks at one process, and how long others wait for them.
//!
//! A process that keeps its looks waiting can keep nobody waiting for long: who takes too long is left behind
//! (`looker`), nothing else is begun until that has returned, and what looks are blocked for is
//! summed up, so that many short waits are no way around it. That goes with the process, not
//! with who looks: one that connects again is no other, and a look that was left behind may change what the
//! next finds.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::looker::{self, Began};
use crate::sharers::ProcessId;

/// How long a look may be blocked, and how long all of them together before none is begun any more.
const WAIT: Duration = Duration::from_millis(250);
/// A look may be blocked for so long before it counts: a program that maps memory has its mappings locked
/// for short times, often.
const USUAL: Duration = Duration::from_micros(200);
/// And so for each so many pages that it reads.
const USUAL_PAGES: usize = 64;
/// What looks were blocked for is forgotten in so many times that time.
const SLOWER: u32 = 8;

/// Processes that are looked at, or were and live still.
static PROCESSES: Mutex<BTreeMap<ProcessId, Arc<Shared>>> = Mutex::new(BTreeMap::new());

/// Looks at one process, by one who looks.
#[derive(Debug)]
pub(crate) struct Looks {
    shared: Arc<Shared>,
    is_closed: AtomicBool,
}

/// All looks at one process.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug)]
struct State {
    next: u64,
    /// By number, and since when nobody waits for it any more.
    under_way: BTreeMap<u64, Option<Instant>>,
    patience: Patience,
}

/// How long looks at a process were blocked, less what is forgotten. What several wait for at a time counts once, or
/// twice where long waits enclose short ones.
#[derive(Clone, Copy, Debug)]
struct Patience {
    spent: Duration,
    /// When that was so.
    at: Instant,
    /// The last time for which it is counted.
    from: Instant,
    until: Instant,
}

impl Patience {
    const fn new(now: Instant) -> Self {
        Self { spent: Duration::ZERO, at: now, from: now, until: now }
    }

    fn at(self, now: Instant) -> Self {
        let forgotten = now.saturating_duration_since(self.at) / SLOWER;
        Self { spent: self.spent.saturating_sub(forgotten), at: now.max(self.at), ..self }
    }

    /// Whether it is worth to begin.
    fn suffices(self) -> bool {
        self.spent < WAIT
    }

    /// A look was blocked for so long, until now.
    fn spend(&mut self, blocked: Duration, now: Instant) {
        let since = now.checked_sub(blocked).unwrap_or(now);
        let (from, until) = (self.from.max(since), self.until.min(now));
        let new = blocked.saturating_sub(until.saturating_duration_since(from));
        let Self { spent, at, .. } = self.at(since);
        let from = if since <= self.until { self.from.min(since) } else { since };
        *self = Self { spent: spent + new, at: at.max(now), from, until: self.until.max(now) };
    }
}

/// A look under way; it has returned when this is dropped.
struct UnderWay {
    shared: Arc<Shared>,
    number: u64,
}

impl UnderWay {
    /// It began then and was blocked for so long. Of one that was left behind nobody knows when it was: it counts
    /// as though it had been as long as somebody waited.
    fn spend(&self, began: Instant, blocked: Duration) {
        if blocked.is_zero() {
            return;
        }
        let (now, mut state) = (Instant::now(), self.shared.state());
        let end = state.under_way.get(&self.number).copied().flatten().unwrap_or(now);
        state.patience.spend(blocked.min(end.saturating_duration_since(began)), end);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.shared.state().under_way.remove(&self.number);
        self.shared.returned.notify_all();
    }
}

impl Shared {
    fn new() -> Self {
        let patience = Patience::new(Instant::now());
        let state = State { next: 0, under_way: BTreeMap::new(), patience };
        Self { state: Mutex::new(state), returned: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Numbers and times: whole whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Looks {
    /// At a process that lives.
    pub(crate) fn at(process: ProcessId) -> Self {
        // A map: whole whoever panicked.
        let mut processes = PROCESSES.lock().unwrap_or_else(PoisonError::into_inner);
        // Seldom, for each that is not looked at any more has to be asked for.
        if processes.len().is_power_of_two() {
            processes.retain(|process, shared| Arc::strong_count(shared) > 1 || process.lives());
        }
        Self::of(Arc::clone(processes.entry(process).or_insert_with(|| Arc::new(Shared::new()))))
    }

    const fn of(shared: Arc<Shared>) -> Self {
        Self { shared, is_closed: AtomicBool::new(false) }
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
        self.look_for(WAIT, USUAL, look)
    }

    /// The same where `look` wants the process's memory so often: each time it may be blocked a little.
    ///
    /// # Errors
    /// As those of [`Self::look`].
    pub(crate) fn look_at<T: Send + 'static>(
        &self,
        pages: usize,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let times = u32::try_from(pages.div_ceil(USUAL_PAGES)).unwrap_or(u32::MAX);
        self.look_for(WAIT, USUAL.saturating_mul(times.max(1)), look)
    }

    fn look_for<T: Send + 'static>(
        &self,
        most: Duration,
        usual: Duration,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let under_way = self.begin(Duration::ZERO)?;
        let number = under_way.number;
        let run = move |began: &Began| {
            let found = look();
            under_way.spend(began.at, began.blocked(usual));
            drop(under_way);
            found
        };
        looker::call(most, run).inspect_err(|_| self.leave_behind(number)).map_err(|error| {
            // No thread: the system says so in several ways.
            if error.kind() == io::ErrorKind::TimedOut { error } else { not_begun() }
        })
    }

    /// After `later`, which is for tests.
    fn begin(&self, later: Duration) -> io::Result<UnderWay> {
        let mut state = self.shared.state();
        state.patience = state.patience.at(Instant::now() + later);
        let is_kept_waiting = state.under_way.values().any(Option::is_some);
        if self.is_closed.load(Ordering::SeqCst) || is_kept_waiting || !state.patience.suffices() {
            return Err(not_begun());
        }
        let number = state.next;
        state.next += 1;
        state.under_way.insert(number, None);
        Ok(UnderWay { shared: Arc::clone(&self.shared), number })
    }

    fn leave_behind(&self, number: u64) {
        if let Some(left) = self.shared.state().under_way.get_mut(&number) {
            *left = Some(Instant::now());
        }
    }

    /// Begins none any more, and waits, however long it takes, until all have returned that were under way.
    pub(crate) fn close(&self) {
        let mut state = self.shared.state();
        self.is_closed.store(true, Ordering::SeqCst);
        let end = state.next;
        while state.under_way.first_key_value().is_some_and(|(number, _)| *number < end) {
            let waited = self.shared.returned.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn not_begun() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn looks() -> Looks {
        Looks::of(Arc::new(Shared::new()))
    }

    fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
        result.expect_err("a look that gives nothing").kind()
    }

    #[test]
    fn what_returns_is_given() {
        let looks = looks();
        assert_eq!(looks.look(|| 5).expect("a thread"), 5);
        assert_eq!(looks.look(|| 6).expect("a thread"), 6);
        looks.close();
        assert_eq!(kind(looks.look(|| 7)), io::ErrorKind::WouldBlock, "closed");
    }

    #[test]
    fn s6_nothing_is_begun_after_what_does_not_return_until_it_does() {
        let looks = looks();
        let (release, held) = channel::<()>();
        let short = Duration::from_millis(1);
        assert_eq!(
            kind(looks.look_for(short, USUAL, move || held.recv())),
            io::ErrorKind::TimedOut
        );
        assert_eq!(kind(looks.look_for(LONG, USUAL, || 5)), io::ErrorKind::WouldBlock);
        drop(release);
        let began = Instant::now();
        while !looks.shared.state().under_way.is_empty() && began.elapsed() < LONG {
            std::thread::sleep(short);
        }
        assert_eq!(looks.look_for(LONG, USUAL, || 5).expect("a thread"), 5);
    }

    #[test]
    fn s6_a_process_is_the_same_for_all_who_look_at_it() {
        let me = ProcessId::of(std::process::id()).expect("stat");
        let (first, second) = (Looks::at(me), Looks::at(me));
        let (release, held) = channel::<()>();
        let late = first.look_for(Duration::from_millis(1), USUAL, move || held.recv());
        assert_eq!(kind(late), io::ErrorKind::TimedOut);
        assert_eq!(kind(second.look_for(LONG, USUAL, || 5)), io::ErrorKind::WouldBlock);
        assert_eq!(kind(Looks::at(me).look_for(LONG, USUAL, || 5)), io::ErrorKind::WouldBlock);
        drop(release);
        first.close();
        assert_eq!(kind(first.look_for(LONG, USUAL, || 5)), io::ErrorKind::WouldBlock, "closed");
        assert_eq!(second.look_for(LONG, USUAL, || 5).expect("not closed"), 5);
    }

    /// Until they give up; what is blocked after that keeps nobody.
    #[test]
    fn s6_who_is_left_behind_counts_for_as_long_as_somebody_waited() {
        let looks = looks();
        // Whatever it does afterwards.
        let block_and_work = || {
            std::thread::sleep(2 * WAIT);
            let before = looker::thread_cpu_time();
            while looker::thread_cpu_time() - before < WAIT {}
        };
        assert_eq!(kind(looks.look_for(WAIT / 2, USUAL, block_and_work)), io::ErrorKind::TimedOut);
        let shared = Arc::clone(&looks.shared);
        looks.close();
        assert!((WAIT / 8..WAIT).contains(&shared.state().patience.spent));
    }

    #[test]
    fn s6_others_do_not_wait_for_who_is_not_late() {
        let looks = looks();
        let (release, held) = channel::<()>();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| looks.look_for(LONG, USUAL, move || held.recv()));
            let began = Instant::now();
            while looks.shared.state().under_way.is_empty() && began.elapsed() < LONG {
                std::thread::yield_now();
            }
            assert_eq!(looks.look_for(LONG, USUAL, || 5).expect("a thread"), 5);
            drop(release);
            assert!(first.join().expect("no panic").is_ok());
        });
    }

    #[test]
    fn s6_being_blocked_is_limited_in_all() {
        let looks = looks();
        let block = || std::thread::sleep(WAIT / 4);
        let blocked =
            (0..8).map(|_| looks.look_for(LONG, USUAL, block)).filter(Result::is_ok).count();
        assert!((3..8).contains(&blocked), "{blocked} times");
        assert!(looks.begin(Duration::ZERO).is_err());
        assert!(looks.begin(WAIT * SLOWER).is_ok(), "it comes back");
    }

    #[test]
    fn s6_what_looks_were_blocked_for_is_summed_up_and_forgotten_again() {
        let began = Instant::now();
        let part = WAIT / 4;
        let mut patience = Patience::new(began);
        // Several that waited for the same.
        (0..32).for_each(|_| patience.spend(part, began + part));
        assert_eq!(patience.spent, part);
        // One that had begun before, and others were begun meanwhile, and blocked for shorter.
        patience = patience.at(began + part).at(began + 3 * part / 2);
        let spent = patience.spent;
        patience.spend(part / 8, began + 15 * part / 8);
        patience.spend(2 * part, began + 2 * part);
        assert!((part / 2..=2 * part).contains(&(patience.spent - spent)), "{patience:?}");
        let spent = patience.spent;
        patience.spend(WAIT, began + 2 * part + WAIT);
        assert_eq!(patience.spent, spent + WAIT);
        assert!(!patience.suffices());
        let now = patience.at;
        assert!(!patience.at(now + SLOWER * part).suffices(), "no more than that is forgotten");
        assert!(patience.at(now + SLOWER * 3 * part).suffices());
        assert_eq!(patience.at(now + LONG).spent, Duration::ZERO);
    }

    #[test]
    fn s6_work_and_waiting_for_a_cpu_do_not_count() {
        let looks = looks();
        let work = || {
            let before = looker::thread_cpu_time();
            while looker::thread_cpu_time() - before < WAIT {}
        };
        looks.look_for(LONG, USUAL, work).expect("a thread");
        assert!(looks.begin(Duration::ZERO).is_ok());
    }
}
