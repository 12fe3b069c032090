//! How long a program waits for its own memory while that is merged: the time of single accesses to pages
//! that are being merged, broken and merged again all the while.
//!
//! Knows nothing of who merges: `perf/stall` runs it alone, with ksmd, and below `numerge run`.
//! usage: stall MIB SECONDS

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};
use numerge_engine::machine::PAGE_SIZE;

/// Pages a content.
const EQUAL: usize = 8;
/// Pages written anew after each so many accesses, so that there is always something to merge.
const ACCESSES: u32 = 64;

fn fill(memory: &mut MmapMut, page: usize, content: u64) {
    let bytes = &mut memory[page * PAGE_SIZE..(page + 1) * PAGE_SIZE];
    for (n, place) in (0_u64..).zip(bytes.as_chunks_mut::<8>().0) {
        *place = (content.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n).to_ne_bytes();
    }
}

fn measure(mib: usize, seconds: u64) -> io::Result<()> {
    let pages = (mib << 20) / PAGE_SIZE;
    let mut memory = MmapMut::map_anon(mib << 20)?;
    // EINVAL: a kernel without KSM, and nobody in between.
    if let Err(error) = memory.advise(Advice::Mergeable)
        && error.kind() != io::ErrorKind::InvalidInput
    {
        return Err(error);
    }
    let content = |page: usize| (page / EQUAL) as u64;
    for page in 0..pages {
        fill(&mut memory, page, content(page));
    }
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    let mut random = 0x1234_5678_9abc_def0_u64;
    let mut next = |n: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 16).unwrap_or(0) % n
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for _ in 0..ACCESSES {
            let (page, word) = (next(pages), next(PAGE_SIZE / 8) * 8);
            let at = page * PAGE_SIZE + word;
            let began = Instant::now();
            std::hint::black_box(memory[at]);
            reads.push(began.elapsed());
            let byte = memory[at];
            let began = Instant::now();
            memory[at] = std::hint::black_box(byte);
            writes.push(began.elapsed());
        }
        let page = next(pages);
        fill(&mut memory, page, content(page));
    }
    for page in 0..pages {
        let mut expected = MmapMut::map_anon(PAGE_SIZE)?;
        fill(&mut expected, 0, content(page));
        if memory[page * PAGE_SIZE..(page + 1) * PAGE_SIZE] != expected[..] {
            return Err(io::Error::other(format!("page {page} changed")));
        }
    }
    for (what, mut times) in [("read", reads), ("write", writes)] {
        times.sort_unstable();
        let at = |per_mille: usize| {
            let place = (times.len() * per_mille / 1000).min(times.len() - 1);
            times[place].as_secs_f64() * 1e6
        };
        println!("{what} {:.2} {:.2} {:.2} {:.1}", at(500), at(990), at(999), at(1000));
    }
    Ok(())
}

fn main() -> ExitCode {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    let [mib @ 1..=65536, seconds @ 1..=3600] = numbers[..] else {
        eprintln!("usage: stall MIB SECONDS");
        return ExitCode::FAILURE;
    };
    match measure(mib, seconds as u64) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stall: {error}");
            ExitCode::FAILURE
        }
    }
}
