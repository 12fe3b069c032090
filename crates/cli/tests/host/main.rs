//! `numerge run` and `numerge daemon`, with programs that know nothing of them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arrays;
mod asking;
mod bed;
mod bypass;
mod cases;
mod control_dir;
mod decay;
mod files;
mod frames;
mod full;
mod guests;
mod hard;
mod polled;
mod redis;
mod run;
mod stats;
mod stopped;
mod torture;
