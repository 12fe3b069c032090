//! A program that knows nothing of numerge: threads that fill memory which they offer for merging, share
//! it with each other, move it, protect it, give it back, read into it from a file past the page cache,
//! fork and start processes, and check every byte all the while; signals write to such memory wherever
//! they interrupt.
//!
//! usage: torture SECONDS [SEED]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut, MmapOptions, RemapOptions, UncheckedAdvice};
use rustix::process::{Signal, WaitOptions, getpid, kill_process, waitpid};

const PAGE: usize = 4096;
const PAGES: usize = 512;
const THREADS: u64 = 4;
const BOOKS: usize = 6;
/// Contents of pages: few, so that many are equal.
const CONTENTS: u64 = 20;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }

    fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap_or(0)
    }
}

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

fn offer(memory: &MmapMut) {
    // EINVAL: a kernel without KSM, and nobody in between.
    if let Err(error) = memory.advise(Advice::Mergeable) {
        assert_eq!(error.raw_os_error(), Some(22), "MADV_MERGEABLE: {error}");
    }
}

/// A file of one page of each content, without a name, read past the page cache where the file system
/// allows that.
fn file_of_contents() -> File {
    let name = format!("torture.{}", std::process::id());
    let mut file = File::create_new(&name).expect("a file in this directory");
    for content in 0..CONTENTS {
        let bytes: Vec<u8> = (0..PAGE / 8).flat_map(|n| word(content, n).to_ne_bytes()).collect();
        file.write_all(&bytes).expect("writing to it");
    }
    file.sync_all().expect("writing to it");
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&name);
    let opened = direct.or_else(|_| File::open(&name)).expect("opening it");
    std::fs::remove_file(name).expect("removing its name");
    opened
}

fn word(content: u64, n: usize) -> u64 {
    if content == 0 { 0 } else { Random(content * 1_000_003 + n as u64).below(u64::MAX) }
}

/// Pages, and what is in them.
struct Book {
    memory: MmapMut,
    contents: Vec<u64>,
}

impl Book {
    fn new() -> Self {
        let memory = MmapMut::map_anon(PAGES * PAGE).expect("memory");
        offer(&memory);
        Self { memory, contents: vec![0; PAGES] }
    }

    fn fill(&mut self, page: usize, content: u64) {
        let bytes = &mut self.memory[page * PAGE..(page + 1) * PAGE];
        for (n, place) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *place = word(content, n).to_ne_bytes();
        }
        self.contents[page] = content;
    }

    /// The first word that is wrong.
    fn wrong(&self, page: usize) -> Option<usize> {
        let words = self.memory[page * PAGE..(page + 1) * PAGE].as_chunks::<8>().0;
        let content = self.contents[page];
        (0..words.len()).find(|n| u64::from_ne_bytes(words[*n]) != word(content, *n))
    }

    fn check(&self, page: usize) {
        let (wrong, content) = (self.wrong(page), self.contents[page]);
        assert_eq!(wrong, None, "page {page}, content {content}: the word that is wrong");
    }

    /// A child finds what there was, and what it writes does not show here.
    fn fork(&mut self, random: &mut Random) {
        let (page, content) = (random.index(PAGES), random.below(CONTENTS));
        // SAFETY: the child only computes with memory that is there, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let all_right = |book: &Self| (0..PAGES).all(|page| book.wrong(page).is_none());
            let right = all_right(self) && {
                self.fill(page, content);
                all_right(self)
            };
            // SAFETY: ends the child, whose other threads are not there.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        let Some(child) = rustix::process::Pid::from_raw(child) else {
            return; // too many processes, for the moment
        };
        // The parent goes on writing while the child looks.
        (0..20).for_each(|_| self.fill(random.index(PAGES), random.below(CONTENTS)));
        let ended = loop {
            match waitpid(Some(child), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                ended => break ended.expect("waitpid").expect("a child").1,
            }
        };
        assert_eq!(
            ended.exit_status(),
            Some(0),
            "a child found wrong content, or failed: {ended:?}"
        );
    }

    /// Read only, and back.
    fn protect(&mut self) {
        let empty = MmapMut::map_anon(PAGE).expect("memory");
        let memory = std::mem::replace(&mut self.memory, empty);
        let memory = memory.make_read_only().expect("mprotect");
        self.memory = memory.make_mut().expect("mprotect");
    }
}

/// What all threads have.
struct Shared {
    books: Vec<RwLock<Book>>,
    /// Page n has content n.
    file: File,
    checks: AtomicU64,
    stop: AtomicBool,
}

fn operate(shared: &Shared, random: &mut Random) {
    let Shared { books, checks, .. } = shared;
    let place = random.index(books.len());
    if random.below(3) > 0 {
        // Several at once.
        let book = books[place].read().expect("another thread failed");
        (0..40).for_each(|_| book.check(random.index(PAGES)));
        checks.fetch_add(40, SeqCst);
        return;
    }
    let mut book = books[place].write().expect("another thread failed");
    let first = random.index(PAGES - 64);
    let count = 1 + random.index(64);
    match random.below(15) {
        0 => *book = Book::new(),
        1 => {
            let there = RemapOptions::new().may_move(true);
            // SAFETY: grows and shrinks again; no reference to the old place is kept.
            unsafe {
                book.memory.remap(2 * PAGES * PAGE, there).expect("mremap");
                book.memory.remap(PAGES * PAGE, there).expect("mremap");
            }
        }
        2 => {
            // SAFETY: what is there is not needed any more, and the memory is private: it reads as
            // zeros then.
            unsafe {
                book.memory
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, first * PAGE, count * PAGE)
                    .expect("MADV_DONTNEED");
            }
            book.contents[first..first + count].fill(0);
        }
        3 => {
            let ended = Command::new("true").status().expect("true");
            assert!(ended.success());
        }
        4 => {
            // Some that is offered only once it is full.
            let mut memory = MmapOptions::new().len(PAGES * PAGE).map_anon().expect("memory");
            memory.copy_from_slice(&book.memory);
            book.memory = memory;
            offer(&book.memory);
        }
        5 => book.fork(random),
        6 => book.protect(),
        7 => {
            let (count, from) = (1 + random.index(8), random.below(CONTENTS - 8));
            let place = &mut book.memory[first * PAGE..(first + count) * PAGE];
            shared.file.read_exact_at(place, from * PAGE as u64).expect("reading the file");
            for (page, content) in (first..first + count).zip(from..) {
                book.contents[page] = content;
            }
        }
        8..11 => {
            for n in 0..count {
                book.fill(first + n, 1 + n as u64 % (CONTENTS - 1));
            }
        }
        _ => {
            for _ in 0..16 {
                let page = random.index(PAGES);
                book.check(page);
                book.fill(page, random.below(CONTENTS));
            }
        }
    }
    (0..PAGES).for_each(|page| book.check(page));
    checks.fetch_add(PAGES as u64, SeqCst);
}

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    let (seconds, seed) = (*numbers.first().unwrap_or(&10), *numbers.get(1).unwrap_or(&1));
    count_signals();
    let shared = Arc::new(Shared {
        books: (0..BOOKS).map(|_| RwLock::new(Book::new())).collect(),
        file: file_of_contents(),
        checks: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let shared = shared.clone();
            let mut random = Random(seed << 16 | n);
            std::thread::spawn(move || {
                while !shared.stop.load(SeqCst) {
                    operate(&shared, &mut random);
                    if random.below(4) == 0 {
                        std::thread::sleep(Duration::from_micros(random.below(4000)));
                    }
                }
            })
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
    println!("{} pages checked, {signals} signals: no error", shared.checks.load(SeqCst));
    ExitCode::SUCCESS
}
