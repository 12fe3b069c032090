//! numerge's side: an engine on its own process's memory.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use numerge_benches::unique_page;
use numerge_engine::machine::{Memory, PAGE_SIZE};
use numerge_engine::{Counters, Engine, EngineOptions, Knob};
use numerge_linux::{FramePools, Machine, ProcessMemory};
use numerge_topology::Topology;
use rustix::time::{ClockId, clock_gettime};

use crate::report::Judged;

/// Long enough between looks at the counters for the looks to cost nothing.
const POLL: Duration = Duration::from_millis(5);
/// A batch that was under way when scanning was stopped has ended after this.
const SETTLE: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(1800);
/// One page in so many is written before the last scans.
const WRITTEN_ONE_IN: usize = 100;

/// Runs [`part`] in a new process.
pub(crate) fn measure(pages: usize) -> io::Result<Judged> {
    let output = crate::itself("numerge-part", pages)?.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other("the part that measures numerge failed"));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let values: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Judged::from_values(&values).ok_or_else(|| io::Error::other("the numerge part said too little"))
}

/// CPU seconds of all threads of this process, those that ended included.
fn cpu_s() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0)).as_secs_f64()
}

/// Waits until `done` holds.
fn wait(engine: &Engine, done: impl Fn(&Counters) -> bool) -> io::Result<()> {
    let began = Instant::now();
    while !done(&engine.counters()) {
        if began.elapsed() > TIMEOUT {
            let (counters, errors) = (engine.counters(), engine.take_errors());
            return Err(io::Error::other(format!("not done in time: {counters:?} {errors:?}")));
        }
        sleep(POLL);
    }
    Ok(())
}

/// CPU seconds of a visit to every page.
fn full_scan_cpu_s(engine: &Engine) -> f64 {
    let before = cpu_s();
    engine.full_scan();
    cpu_s() - before
}

/// Judges `pages` unique pages, and prints what it took as [`Judged`] reads it.
pub(crate) fn part(pages: usize) -> io::Result<()> {
    crate::end_with_parent()?;
    let other = |error: &dyn std::error::Error| io::Error::other(error.to_string());
    let topology = Arc::new(Topology::discover().map_err(|error| other(&error))?);
    let pools = FramePools::new(Arc::clone(&topology)).map_err(|error| other(&error))?;
    let pools = Arc::new(pools);
    let memory = ProcessMemory::new(pools.clone()).map_err(|error| other(&error))?;
    let memory: Arc<dyn Memory> = Arc::new(memory);
    let machine = Arc::new(Machine::new(topology));
    let engine = Engine::new(pools, machine, EngineOptions::default());
    let engine = engine.map_err(|error| other(&error))?;
    for (knob, value) in [(Knob::PagesToScan, 100_000), (Knob::SleepMillisecs, 0)] {
        engine.set(knob, value).map_err(|error| other(&error))?;
    }
    let region = crate::unique_memory(pages)?;
    let handle = engine.register(&memory, region.pages()).map_err(|error| other(&error))?;

    let (began, before) = (Instant::now(), cpu_s());
    engine.set(Knob::Run, 1).map_err(|error| other(&error))?;
    wait(&engine, |counters| counters.full_scans >= 1)?;
    let first_look_cpu_s = cpu_s() - before;
    wait(&engine, |counters| counters.pages_unshared == pages as u64)?;
    let (cpu, seconds) = (cpu_s() - before, began.elapsed().as_secs_f64());

    engine.set(Knob::Run, 0).map_err(|error| other(&error))?;
    sleep(SETTLE);
    // Ends the pass that was under way, so that the next begins at the beginning.
    engine.full_scan();
    let idle_scan_cpu_s = full_scan_cpu_s(&engine);
    for page in (0..pages).step_by(WRITTEN_ONE_IN) {
        region.write(page * PAGE_SIZE, &unique_page((pages + page) as u64))?;
    }
    let written_scan_cpu_s = full_scan_cpu_s(&engine);
    let second_look_cpu_s = full_scan_cpu_s(&engine);
    let counters = engine.counters();
    if counters.pages_unshared != pages as u64 {
        return Err(io::Error::other(format!("what was written was not judged: {counters:?}")));
    }
    println!(
        "{cpu} {seconds} {first_look_cpu_s} {idle_scan_cpu_s} {written_scan_cpu_s} \
         {second_look_cpu_s} {}",
        counters.metadata_bytes
    );
    drop(handle);
    engine.shut_down().map_err(|error| other(&error))
}
