//! A program that knows nothing of numerge: threads that fill memory which they offer for merging, share
//! it with each other, move it, give it back, start processes, and check every byte all the while.
//!
//! usage: torture SECONDS [SEED]

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut, MmapOptions, RemapOptions, UncheckedAdvice};

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
        let book = Self { memory, contents: vec![0; PAGES] };
        book.offer();
        book
    }

    fn offer(&self) {
        // EINVAL: a kernel without KSM, and nobody in between.
        if let Err(error) = self.memory.advise(Advice::Mergeable) {
            assert_eq!(error.raw_os_error(), Some(22), "MADV_MERGEABLE: {error}");
        }
    }

    fn fill(&mut self, page: usize, content: u64) {
        let bytes = &mut self.memory[page * PAGE..(page + 1) * PAGE];
        for (n, place) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *place = word(content, n).to_ne_bytes();
        }
        self.contents[page] = content;
    }

    fn check(&self, page: usize) {
        let bytes = &self.memory[page * PAGE..(page + 1) * PAGE];
        for (n, found) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let (found, content) = (u64::from_ne_bytes(*found), self.contents[page]);
            assert_eq!(found, word(content, n), "page {page}, word {n}, content {content}");
        }
    }
}

fn operate(books: &[RwLock<Book>], random: &mut Random, checks: &AtomicU64) {
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
    match random.below(12) {
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
            book.offer();
        }
        5..8 => {
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
    let books: Vec<RwLock<Book>> = (0..BOOKS).map(|_| RwLock::new(Book::new())).collect();
    let (books, checks) = (Arc::new(books), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let (books, checks, stop) = (books.clone(), checks.clone(), stop.clone());
            let mut random = Random(seed << 16 | n);
            std::thread::spawn(move || {
                while !stop.load(SeqCst) {
                    operate(&books, &mut random, &checks);
                    if random.below(4) == 0 {
                        std::thread::sleep(Duration::from_micros(random.below(4000)));
                    }
                }
            })
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end && threads.iter().all(|thread| !thread.is_finished()) {
        std::thread::sleep(Duration::from_millis(100));
    }
    stop.store(true, SeqCst);
    let failed =
        threads.into_iter().map(std::thread::JoinHandle::join).filter(Result::is_err).count();
    if failed > 0 {
        eprintln!("torture: {failed} threads failed");
        return ExitCode::FAILURE;
    }
    println!("{} pages checked: no error", checks.load(SeqCst));
    ExitCode::SUCCESS
}
