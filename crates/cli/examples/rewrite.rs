//! A program that knows nothing of numerge and writes all of its mergeable memory anew, round by round:
//! for each line that it reads a round, for which it writes a line.
//!
//! usage: rewrite MIB

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use memmap2::{Advice, MmapMut};

const PAGE: usize = 4096;
/// Pages of equal content.
const EQUAL: usize = 4;

/// In each round a page has other content, and other pages the same, by a permutation of them all.
fn content(page: usize, pages: usize, round: usize) -> u64 {
    let place = (page * 7919 + round * 104_729) % pages;
    ((place / EQUAL) as u64) << 16 | round as u64
}

fn fill(memory: &mut MmapMut, page: usize, content: u64) {
    for (n, place) in (0_u64..).zip(memory[page * PAGE..(page + 1) * PAGE].as_chunks_mut::<8>().0) {
        *place = (content.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n).to_ne_bytes();
    }
}

fn holds(memory: &MmapMut, page: usize, content: u64) -> bool {
    let words = memory[page * PAGE..(page + 1) * PAGE].as_chunks::<8>().0;
    (0_u64..).zip(words).all(|(n, word)| {
        u64::from_ne_bytes(*word) == content.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n
    })
}

fn main() -> ExitCode {
    let mib = std::env::args().nth(1).and_then(|n| n.parse::<usize>().ok()).unwrap_or(64);
    let pages = (mib << 20) / PAGE;
    let mut memory = MmapMut::map_anon(mib << 20).expect("memory");
    // EINVAL: a kernel without KSM, and nobody in between.
    if let Err(error) = memory.advise(Advice::Mergeable) {
        assert_eq!(error.raw_os_error(), Some(22), "MADV_MERGEABLE: {error}");
    }
    for (round, line) in io::stdin().lock().lines().enumerate() {
        if line.is_err() {
            break;
        }
        for page in 0..pages {
            if round > 0 && !holds(&memory, page, content(page, pages, round - 1)) {
                eprintln!("rewrite: page {page} changed after round {round}");
                return ExitCode::FAILURE;
            }
            fill(&mut memory, page, content(page, pages, round));
        }
        println!("round {round}");
        io::stdout().flush().expect("standard output");
    }
    ExitCode::SUCCESS
}
