//! What merging, unmerging and mapping zeros cost a page, by the length of the run, on real memory.
//!
//! `cargo bench -p numerge-benches --bench merge` takes about 2 minutes, and a kernel and permissions
//! that `numerge merge` would want. The times are for one *page*, whatever the run's length. Every
//! other run of a region is merged, so that none joins its neighbour and each is a mapping of its
//! own: the dearest case.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use numerge_benches::unique_page;
use numerge_engine::machine::{Frames, Memory, Outcome, PAGE_SIZE, Run, Target, Vpn};
use numerge_engine::{Kpfn, Topology};
use numerge_linux::{AnonymousRegion, FramePools, ProcessMemory};

const RUN_LENGTHS: [usize; 5] = [1, 4, 16, 64, 256];
/// A whole number of pairs of the longest run.
const PAGES: usize = 8192;

/// A region registered with this process's memory, and frames with the same content.
struct World {
    pools: Arc<FramePools>,
    memory: ProcessMemory,
    region: AnonymousRegion,
    frames: Range<Kpfn>,
}

/// Which part of a cycle is timed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Merge,
    Unmerge,
}

impl World {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let topology = Arc::new(Topology::discover()?);
        let node = topology.nodes().iter().find(|node| node.memory_bytes > 0);
        let nid = node.ok_or("no node has memory")?.nid;
        let pools = Arc::new(FramePools::new(topology)?);
        let memory = ProcessMemory::new(pools.clone())?;
        let region = AnonymousRegion::new(PAGES * PAGE_SIZE)?;
        let frames = pools.allocate(nid, PAGES as u64)?;
        if frames.end.0 - frames.start.0 != PAGES as u64 {
            return Err("there are too few frames in one piece".into());
        }
        for page in 0..PAGES as u64 {
            pools.write(frames.start.plus(page), &unique_page(page));
        }
        memory.register(region.pages())?;
        Ok(Self { pools, memory, region, frames })
    }

    /// Gives every page the content of its frame, or zeros.
    fn fill(&self, zeros: bool) {
        for page in 0..PAGES {
            let content = if zeros { [0; PAGE_SIZE] } else { unique_page(page as u64) };
            self.region.write(page * PAGE_SIZE, &content).expect("the page is in the region");
        }
    }

    /// Every other run of so many pages.
    fn runs(&self, length: usize, zeros: bool) -> Vec<Run> {
        let run = |first: usize| {
            let start = self.region.pages().start.plus(first as u64);
            let pages: Range<Vpn> = start..start.plus(length as u64);
            let frames = self.frames.start.plus(first as u64);
            Run { pages, target: if zeros { Target::Zero } else { Target::Frames(frames) } }
        };
        (0..PAGES).step_by(2 * length).map(run).collect()
    }

    /// Merges the runs, and gives how long it took.
    fn merge(&self, runs: &[Run]) -> Duration {
        let mut outcomes = Vec::with_capacity(PAGES);
        let began = Instant::now();
        self.memory.merge(runs, &mut outcomes);
        let elapsed = began.elapsed();
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Merged), "every page is merged");
        elapsed
    }

    /// Unmerges everything, and gives how long it took.
    fn unmerge(&self) -> Duration {
        let began = Instant::now();
        self.memory.unmerge(&[self.region.pages()]).expect("there is memory for the copies");
        began.elapsed()
    }

    /// The time that `count` pages take, measured by at least as many.
    fn pages(
        &self,
        count: u64,
        runs: &[Run],
        mut cycle: impl FnMut(&Self, &[Run]) -> Duration,
    ) -> Duration {
        let pages_each = PAGES as u64 / 2;
        let cycles = count.div_ceil(pages_each);
        let elapsed: Duration = (0..cycles).map(|_| cycle(self, runs)).sum();
        // Only whole cycles can be measured; criterion asked for a number of pages.
        elapsed.mul_f64(count as f64 / (cycles * pages_each) as f64)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The process ends after this, so what fails here harms nobody.
        let _ = self.memory.unmerge(&[self.region.pages()]);
        let _ = self.memory.unregister(self.region.pages());
        let count = self.frames.end.0 - self.frames.start.0;
        self.pools.free(&(0..count).map(|n| self.frames.start.plus(n)).collect::<Vec<_>>());
    }
}

fn merge(criterion: &mut Criterion) {
    let world = match World::new() {
        Ok(world) => world,
        Err(error) => {
            println!("SKIPPED merge: {error}");
            return;
        }
    };
    let mut group = criterion.benchmark_group("merge");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group.sample_size(20);
    world.fill(false);
    for (name, part) in [("merge", Part::Merge), ("unmerge", Part::Unmerge)] {
        for length in RUN_LENGTHS {
            let runs = world.runs(length, false);
            group.bench_function(BenchmarkId::new(name, length), |bencher| {
                let cycle = |world: &World, runs: &[Run]| {
                    let (merged, unmerged) = (world.merge(runs), world.unmerge());
                    if part == Part::Merge { merged } else { unmerged }
                };
                bencher.iter_custom(|count| world.pages(count, &runs, cycle));
            });
        }
    }
    for length in RUN_LENGTHS {
        let runs = world.runs(length, true);
        group.bench_function(BenchmarkId::new("zero", length), |bencher| {
            let cycle = |world: &World, runs: &[Run]| {
                world.fill(true);
                world.merge(runs)
            };
            bencher.iter_custom(|count| world.pages(count, &runs, cycle));
        });
    }
    group.finish();
}

criterion_group!(benches, merge);
criterion_main!(benches);
