//! The program `numerge daemon`, with programs of several users below `numerge run`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bed;
mod cgroup;
mod control_dir;
mod default_place;
mod endings;
mod hostile;
mod limits;
mod log;
mod metrics;
mod status;
mod system_calls;
mod systemd;
mod unmerging;
mod users;
