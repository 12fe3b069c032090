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
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::thread::Pid;

type Look = Box<dyn FnOnce() + Send>;

thread_local! {
    /// The calling thread's looker, unless it is left behind.
    static LOOKER: RefCell<Option<Looker>> = const { RefCell::new(None) };
    static USED: Arc<Used> = Arc::default();
    /// The calling thread's own, of which the second number is how long it was ready and had no CPU, in ns
    /// (Documentation/scheduler/sched-stats.rst).
    static STATISTICS: Option<File> = File::open("/proc/thread-self/schedstat").ok();
}

/// A looker that would run if it had a CPU is waited for up to so many times as long.
const LONGER: u32 = 8;

struct Looker {
    orders: SyncSender<Look>,
    thread: Pid,
    /// CPU time that it had used when it began its last look, in ns.
    before: Arc<AtomicU64>,
}

impl Looker {
    /// Ends when nobody can give it anything to do any more.
    fn start() -> io::Result<Self> {
        let (orders, ordered) = sync_channel::<Look>(1);
        let (tell, told) = sync_channel(1);
        let run = move || {
            // Fails if nobody waits any more.
            let _ = tell.send(rustix::thread::gettid());
            ordered.into_iter().for_each(|look| look());
        };
        std::thread::Builder::new().name("numerge-looker".into()).spawn(run)?;
        let thread = told.recv().map_err(io::Error::other)?;
        Ok(Self { orders, thread, before: Arc::default() })
    }

    /// What is left of the CPU time that it may use, if it would get on with its look if it had a CPU: it waits for
    /// nothing else.
    fn cpu_time_left(&self, most: Duration) -> Option<Duration> {
        let file =
            |name| std::fs::read_to_string(format!("/proc/self/task/{}/{name}", self.thread));
        let is_ready =
            |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R'));
        // Nothing if the kernel does not tell: then it may have used any.
        let used = file("schedstat").ok().and_then(|text| number(&text, 0)).unwrap_or(most);
        // SeqCst: so that it is the same look's; an earlier one's would do as well.
        let before = Duration::from_nanos(self.before.load(Ordering::SeqCst));
        let left = most.saturating_sub(used.saturating_sub(before));
        (file("stat").is_ok_and(is_ready) && !left.is_zero()).then_some(left)
    }
}

/// What a thread had used and waited for when it began something.
pub(crate) struct Began {
    pub(crate) at: Instant,
    cpu: Duration,
    delay: Duration,
    sleeps: i64,
}

impl Began {
    pub(crate) fn now() -> Self {
        let (delay, sleeps) = (delay(), sleeps());
        Self { at: Instant::now(), cpu: thread_cpu_time(), delay, sleeps }
    }

    /// CPU time used since.
    fn used(&self) -> Duration {
        thread_cpu_time().saturating_sub(self.cpu)
    }

    /// How long the thread was kept waiting since, if longer than `least`: by what is not its work and not the
    /// want of a CPU. Nothing if it never slept: then the machine was somewhere else.
    pub(crate) fn blocked(&self, least: Duration) -> Duration {
        let took = self.at.elapsed();
        if took <= least || sleeps() == self.sleeps {
            return Duration::ZERO;
        }
        let blocked = took.saturating_sub(self.used());
        let blocked = blocked.saturating_sub(delay().saturating_sub(self.delay));
        if blocked <= least { Duration::ZERO } else { blocked }
    }
}

/// How long the calling thread was ready and had no CPU; nothing if the kernel does not tell.
fn delay() -> Duration {
    let mut text = [0; 64];
    let read =
        STATISTICS.with(|file| file.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()));
    let text = text.get(..read.unwrap_or(0)).and_then(|text| std::str::from_utf8(text).ok());
    text.and_then(|text| number(text, 1)).unwrap_or_default()
}

/// A time in a schedstat file.
fn number(text: &str, place: usize) -> Option<Duration> {
    let nanos = text.split_ascii_whitespace().nth(place)?;
    nanos.parse().ok().map(Duration::from_nanos)
}

/// How often the calling thread has given up its CPU to wait for something.
fn sleeps() -> i64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: no safe binding asks for a thread's. There is room for what the kernel tells, and all bits zero
    // are a valid rusage.
    unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init().ru_nvcsw
    }
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
        self.0.fetch_add(nanos(used), Ordering::Relaxed);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What `look` gives, for which it has `most` of time, and some more if it only waits for a CPU. Done by the calling
/// thread's looker.
///
/// # Errors
/// `TimedOut` if it takes longer: then it may still come to an end. What the system said if it has no thread.
pub(crate) fn call<T: Send + 'static>(
    most: Duration,
    look: impl FnOnce(&Began) -> T + Send + 'static,
) -> io::Result<T> {
    let looker = LOOKER.take().map_or_else(Looker::start, Ok)?;
    let (answer, answered) = sync_channel(1);
    let (used, before) = (Used::of_current_thread(), Arc::clone(&looker.before));
    let order = move || {
        let began = Began::now();
        before.store(nanos(began.cpu), Ordering::SeqCst);
        let found = look(&began);
        used.add(began.used());
        // Fails if nobody waits any more.
        let _ = answer.send(found);
    };
    // Fails if it has ended, which only a panic ends it by; so there will be no answer.
    let _ = looker.orders.send(Box::new(order));
    let last = Instant::now() + most * LONGER;
    let mut found = answered.recv_timeout(most);
    while matches!(found, Err(RecvTimeoutError::Timeout)) && Instant::now() < last {
        let Some(left) = looker.cpu_time_left(most) else { break };
        // However little that is, it is asked for seldom.
        let left = left.max(most / LONGER).min(last.saturating_duration_since(Instant::now()));
        found = answered.recv_timeout(left);
    }
    let found = found.map_err(|_| io::ErrorKind::TimedOut)?;
    LOOKER.set(Some(looker));
    Ok(found)
}

/// The calling thread's next look is made by a new looker: the thread runs elsewhere now.
pub(crate) fn dismiss() {
    LOOKER.take();
}

/// CPU time that the calling thread has used itself.
pub(crate) fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn looker() -> std::thread::ThreadId {
        call(LONG, |_| std::thread::current().id()).expect("a thread")
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
        let late = call(Duration::from_millis(1), move |_| held.recv());
        assert_eq!(late.expect_err("it does not return").kind(), io::ErrorKind::TimedOut);
        assert_ne!(looker(), first);
        drop(release);
    }

    /// A program may cause as much work as it likes.
    #[test]
    fn s6_who_works_too_long_is_left_behind_too() {
        const MOST: Duration = Duration::from_millis(50);
        let work = |_: &Began| {
            let before = thread_cpu_time();
            while thread_cpu_time() - before < 4 * MOST {}
        };
        let began = Began::now();
        assert!(call(MOST, work).is_err());
        // Or it had no CPU.
        assert!(began.at.elapsed() < MOST * LONGER * 4);
    }

    #[test]
    fn s6_who_only_wants_a_cpu_is_waited_for_longer() {
        const MOST: Duration = Duration::from_secs(1);
        let looker = Looker::start().expect("a thread");
        let (stop, stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (told, seen) = (Arc::clone(&stop), Arc::clone(&stopped));
        let spin = move || {
            while told.load(Ordering::SeqCst) == 0 {}
            seen.store(1, Ordering::SeqCst);
        };
        looker.orders.send(Box::new(spin)).expect("it waits");
        let began = Instant::now();
        while looker.cpu_time_left(MOST).is_none() {
            assert!(began.elapsed() < LONG, "it runs, or would, and has used nearly nothing");
        }
        assert_eq!(looker.cpu_time_left(Duration::ZERO), None, "more than it has");
        stop.store(1, Ordering::SeqCst);
        while stopped.load(Ordering::SeqCst) == 0 {}
        // It sleeps until it has something to do again.
        while looker.cpu_time_left(LONG).is_some() {
            assert!(began.elapsed() < LONG);
        }
    }

    #[test]
    fn s6_only_sleeping_is_being_blocked() {
        const LONG: Duration = Duration::from_millis(20);
        let began = Began::now();
        while began.used() < LONG {}
        assert_eq!(began.blocked(LONG / 2), Duration::ZERO, "it worked");
        let began = Began::now();
        std::thread::sleep(LONG);
        assert!(began.blocked(LONG / 4) >= LONG / 2);
        assert_eq!(began.blocked(60 * LONG), Duration::ZERO, "not longer than that");
    }

    #[test]
    fn s5_4_what_a_looker_uses_is_counted() {
        const SPENT: Duration = Duration::from_millis(20);
        let used = Used::of_current_thread();
        let before = used.get();
        let spend = |_: &Began| {
            let began = Instant::now();
            while thread_cpu_time() < SPENT && began.elapsed() < LONG {}
        };
        call(LONG, spend).expect("a thread");
        assert!(used.get() - before >= SPENT / 2, "{:?}", used.get());
        let others = std::thread::spawn(|| Used::of_current_thread().get());
        assert_eq!(others.join().expect("no panic"), Duration::ZERO);
    }
}
