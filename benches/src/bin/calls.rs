//! What a program's calls that change mappings cost: the mean time of each, on memory that nobody merges.
//!
//! Knows nothing of who merges: `perf/calls` runs it alone and with the agent.
//! usage: calls MIB REPEATS, where MIB of other memory are offered for merging first, 0 for none.

use std::hint::black_box;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut, UncheckedAdvice};
use numerge_engine::machine::PAGE_SIZE;

/// What is mapped, unmapped and protected.
const BYTES: usize = 64 << 10;
/// Time for the memory that is offered to be merged.
const MERGING: Duration = Duration::from_secs(2);

/// Mean time of a call of `act`, in microseconds, after as many as a tenth to warm up.
fn mean_us(repeats: u32, mut act: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    for _ in 0..repeats / 10 {
        act()?;
    }
    let began = Instant::now();
    for _ in 0..repeats {
        act()?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(repeats))
}

fn measure(mib: usize, repeats: u32) -> io::Result<()> {
    let offered = if mib > 0 { Some(MmapMut::map_anon(mib << 20)?) } else { None };
    if let Some(mut offered) = offered {
        offered.as_chunks_mut::<PAGE_SIZE>().0.iter_mut().for_each(|page| page[0] = 1);
        // EINVAL: a kernel without KSM, and nobody in between.
        if let Err(error) = offered.advise(Advice::Mergeable)
            && error.kind() != io::ErrorKind::InvalidInput
        {
            return Err(error);
        }
        std::thread::sleep(MERGING);
        std::mem::forget(offered); // for as long as the program runs
    }
    let pair = mean_us(repeats, || black_box(MmapMut::map_anon(BYTES)).map(drop))?;
    println!("mmap+munmap {pair:.4}");
    let mut memory = Some(MmapMut::map_anon(BYTES)?);
    let pair = mean_us(repeats, || {
        if let Some(writable) = memory.take() {
            memory = Some(writable.make_read_only()?.make_mut()?);
        }
        Ok(())
    })?;
    println!("mprotect+mprotect {pair:.4}");
    if let Some(memory) = memory {
        let drop_content = || {
            // SAFETY: no reference points to the content, which is dropped.
            unsafe { memory.unchecked_advise(UncheckedAdvice::DontNeed) }
        };
        println!("MADV_DONTNEED {:.4}", mean_us(repeats, drop_content)?);
    }
    Ok(())
}

fn main() -> ExitCode {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    let [mib @ 0..=65536, repeats @ 1..=1_000_000_000] = numbers[..] else {
        eprintln!("usage: calls MIB REPEATS");
        return ExitCode::FAILURE;
    };
    match measure(usize::try_from(mib).unwrap_or(0), repeats) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("calls: {error}");
            ExitCode::FAILURE
        }
    }
}
