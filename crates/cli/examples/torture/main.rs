//! A program that knows nothing of numerge: threads that fill memory which they offer for merging, share
//! it with each other, move it, protect it, give it back, map it again, read into it from a file past the page
//! cache and into pinned pages, fork and start processes, and check every byte all the while; signals write to such memory wherever
//! they interrupt.
//!
//! usage: torture SECONDS [SEED]

mod book;
mod done;
mod processes;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use rustix::process::{Signal, getpid, kill_process};

use crate::book::{Book, CONTENTS, PAGE, PAGES, Random, offer, word};
use crate::done::{Done, Kind};

const THREADS: u64 = 4;
const BOOKS: usize = 6;
/// What `change` may do, the common ones more than once.
const CASES: u64 = 20;

/// Counted by the handler of signals, the second in mergeable memory.
static SIGNALS: AtomicU64 = AtomicU64::new(0);
static COUNTED: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

/// Has signals count in mergeable memory, which is there for good.
fn count_signals() {
    let memory = Box::leak(Box::new(MmapMut::map_anon(1 << 20).expect("memory")));
    offer(memory);
    COUNTED.store(memory.as_mut_ptr().cast(), SeqCst);
    // SAFETY: the handler only adds to atomics, which is allowed in one. The mapping is aligned, never
    // unmapped, and nothing else refers to it.
    let registered = unsafe {
        signal_hook::low_level::register(signal_hook::consts::SIGUSR1, || {
            (*COUNTED.load(SeqCst)).fetch_add(1, SeqCst);
            SIGNALS.fetch_add(1, SeqCst);
        })
    };
    registered.expect("a handler");
}

/// A file of one page of each content, without a name, and whether it is read past the page cache, which not
/// all file systems allow.
fn file_of_contents() -> (File, bool) {
    let name = format!("torture.{}", std::process::id());
    let mut file = File::create_new(&name).expect("a file in this directory");
    for content in 0..CONTENTS {
        let bytes: Vec<u8> = (0..PAGE / 8).flat_map(|n| word(content, n).to_ne_bytes()).collect();
        file.write_all(&bytes).expect("writing to it");
    }
    file.sync_all().expect("writing to it");
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&name);
    let is_direct = direct.is_ok();
    let opened = direct.or_else(|_| File::open(&name)).expect("opening it");
    std::fs::remove_file(name).expect("removing its name");
    (opened, is_direct)
}

/// What all threads have.
struct Shared {
    books: Vec<RwLock<Book>>,
    /// Page n has content n.
    file: File,
    /// The file is read past the page cache.
    is_direct: bool,
    checks: AtomicU64,
    done: Done,
    stop: AtomicBool,
}

/// Looks at some pages, several threads at once.
fn look(shared: &Shared, random: &mut Random) {
    let book = shared.books[random.index(BOOKS)].read().expect("another thread failed");
    (0..40).for_each(|_| book.check(random.index(PAGES)));
    shared.checks.fetch_add(40, SeqCst);
}

/// Does something to a book, and looks at all of it.
fn change(shared: &Shared, what: u64, random: &mut Random) {
    let mut book = shared.books[random.index(BOOKS)].write().expect("another thread failed");
    let first = random.index(PAGES - 64);
    let some = first..first + 1 + random.index(64);
    let read = first..first + 1 + random.index(8);
    let from = random.below(CONTENTS - 8);
    let (kind, is_done) = match what {
        0 => {
            *book = Book::new();
            (Kind::New, true)
        }
        1 => (Kind::Moved, book.resize()),
        2 => {
            book.drop_content(some);
            (Kind::DontNeed, true)
        }
        3 => {
            processes::spawn();
            (Kind::PosixSpawn, true)
        }
        4 => {
            processes::fork_and_exec();
            (Kind::ForkExec, true)
        }
        5 => (Kind::VforkExec, processes::vfork_and_exec()),
        6 => {
            book.copy();
            (Kind::OfferedFull, true)
        }
        7 => (Kind::Fork, book.fork(false, random)),
        8 => (Kind::RawClone, book.fork(true, random)),
        9 => {
            book.protect();
            (Kind::ReadOnly, true)
        }
        10 => (Kind::MappedAgain, book.map_again(0..PAGES)),
        11 => (Kind::MappedAgain, book.map_again(some)),
        12 => {
            book.read(&shared.file, read, from);
            (Kind::DirectRead, shared.is_direct)
        }
        13 => {
            let pause = Duration::from_micros(random.below(2000));
            (Kind::FixedRead, book.read_pinned(&shared.file, read, from, pause))
        }
        14..17 => {
            for (page, content) in some.zip((1..CONTENTS).cycle()) {
                book.fill(page, content);
            }
            (Kind::Filled, true)
        }
        _ => {
            for _ in 0..16 {
                let page = random.index(PAGES);
                book.check(page);
                book.fill(page, random.below(CONTENTS));
            }
            (Kind::Rewritten, true)
        }
    };
    (0..PAGES).for_each(|page| book.check(page));
    shared.checks.fetch_add(PAGES as u64, SeqCst);
    if is_done {
        shared.done.add(kind);
    }
}

fn work(shared: &Shared, random: &mut Random) {
    // Each once, wherever that begins, and then as it comes: a slow machine's run is short.
    let first = random.below(CASES);
    let mut cases = (first..first + CASES).map(|case| case % CASES);
    while !shared.stop.load(SeqCst) {
        if random.below(3) > 0 {
            look(shared, random);
        } else {
            change(shared, cases.next().unwrap_or_else(|| random.below(CASES)), random);
        }
        if random.below(4) == 0 {
            std::thread::sleep(Duration::from_micros(random.below(4000)));
        }
    }
}

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    let (seconds, seed) = (*numbers.first().unwrap_or(&10), *numbers.get(1).unwrap_or(&1));
    count_signals();
    let (file, is_direct) = file_of_contents();
    let shared = Arc::new(Shared {
        books: (0..BOOKS).map(|_| RwLock::new(Book::new())).collect(),
        file,
        is_direct,
        done: Done::default(),
        checks: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let shared = shared.clone();
            let mut random = Random(seed << 16 | n);
            std::thread::spawn(move || work(&shared, &mut random))
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end && threads.iter().all(|thread| !thread.is_finished()) {
        std::thread::sleep(Duration::from_millis(2));
        kill_process(getpid(), Signal::USR1).expect("a signal to itself");
    }
    shared.stop.store(true, SeqCst);
    let failed =
        threads.into_iter().map(std::thread::JoinHandle::join).filter(Result::is_err).count();
    // SAFETY: `count_signals` put it there.
    let counted = unsafe { &*COUNTED.load(SeqCst) }.load(SeqCst);
    let signals = SIGNALS.load(SeqCst);
    if failed > 0 || counted != signals {
        eprintln!(
            "torture: {failed} threads failed, {signals} signals, {counted} counted in memory"
        );
        return ExitCode::FAILURE;
    }
    println!("{}", shared.done.text());
    let missing = shared.done.missing(seconds);
    if !missing.is_empty() {
        eprintln!("torture: never done in {seconds} s: {}", missing.join(", "));
        return ExitCode::FAILURE;
    }
    println!("{} pages checked, {signals} signals: no error", shared.checks.load(SeqCst));
    ExitCode::SUCCESS
}
