//! Memory in which nothing is equal and every page is written to again and again: each scan has all of it to
//! look at, and nothing to merge.
//!
//! Knows nothing of who merges: `perf/advisor` runs it with ksmd, and below `numerge run`.
//! usage: rewrite MIB    (until it is killed)

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use memmap2::{Advice, MmapMut};
use numerge_engine::machine::PAGE_SIZE;

/// Between two rounds of writing to all pages.
const REST: Duration = Duration::from_millis(300);

fn rewrite(mib: usize) -> io::Result<()> {
    let mut memory = MmapMut::map_anon(mib << 20)?;
    memory.advise(Advice::Mergeable)?;
    for round in 1_u64.. {
        for (page, bytes) in (0_u64..).zip(memory.chunks_mut(PAGE_SIZE)) {
            bytes[..8].copy_from_slice(&page.to_ne_bytes());
            bytes[8..16].copy_from_slice(&round.to_ne_bytes());
        }
        std::thread::sleep(REST);
    }
    Ok(())
}

fn main() -> ExitCode {
    let mib = std::env::args().nth(1).and_then(|mib| mib.parse().ok());
    let Some(mib) = mib.filter(|mib| (1..1 << 20).contains(mib)) else {
        eprintln!("usage: rewrite MIB, a number from 1 to 1048575");
        return ExitCode::from(2);
    };
    match rewrite(mib) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rewrite: {error}");
            ExitCode::FAILURE
        }
    }
}
