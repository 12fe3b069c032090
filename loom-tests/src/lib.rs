//! Models of numerge's concurrency, run in every interleaving that matters by loom.
//!
//! Under `--cfg loom` the stable tree takes its atomics from loom and its epochs from a mock that
//! frees as early as it may and reports every later use; see `sync` in `numerge-stable-tree`. All
//! constants shrink, so that two entries make the table double and a handful of frames use every
//! level of a directory. Without that cfg this crate is empty. `tools/loom` runs it.

#![cfg(loom)]

pub mod meet;
pub mod ops;
pub mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs a model in every interleaving with at most `preemptions` switches away from a thread that
/// could have gone on (all, if `None`). Says how many there were.
pub fn check(name: &str, preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 20_000;
    let start = std::time::Instant::now();
    // Said first as well, so that a failure shows which model it was.
    println!("model {name}");
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let (n, seconds) = (executions.load(Ordering::Relaxed), start.elapsed().as_secs_f64());
    println!("model {name}: {n} executions, {seconds:.2} s");
}
