//! A program that merges its own memory: 64 MiB in which every fourth page is different.

use std::error::Error;
use std::time::Duration;

use numerge::{Knob, Merger, Options};

const PAGE: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let merger = Merger::new(Options::default())?;
    let region = merger.allocate(64 << 20)?;
    for page in 0..region.len() / PAGE {
        let content = if page % 4 == 0 { page } else { usize::MAX };
        region.write(page * PAGE, &content.to_le_bytes())?;
    }

    merger.set(Knob::PagesToScan, 100_000)?;
    merger.set(Knob::Run, 1)?;
    while merger.counters().full_scans < 3 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let counters = merger.counters();
    println!("{} frames hold {} pages more", counters.pages_shared, counters.pages_sharing);
    println!("{} MiB of {} saved", counters.bytes_saved() >> 20, region.len() >> 20);

    // Writing is as ever: the writer gets a copy of its own.
    region.write(PAGE, b"changed")?;
    let mut back = [0; 7];
    region.read(PAGE, &mut back)?;
    assert_eq!(&back, b"changed");

    drop(region);
    merger.shut_down()?;
    Ok(())
}
