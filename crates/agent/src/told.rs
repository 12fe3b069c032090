//! What the program has marked by madvise(2) is known to the engine when the call returns, as it is to
//! the kernel: who waits then for full scans to be over waits for the right ones.
//!
//! Without an engine, with one that does not listen, or where all memory is locked, the call returns all
//! the same. Nor does a program that marks very much in many calls wait each time: after a second of
//! waiting, it waits a tenth of the time at most.

use std::ops::Range;
use std::time::{Duration, Instant};

use numerge_engine::machine::Vpn;
use rustix::event::Timespec;

use crate::agent::enter;

/// How long a call waits at most; the ones after it do not wait then, until there is another engine.
const LONGEST: Duration = Duration::from_secs(1);
/// Between two looks. The service thread takes some 2 ms for what it has to do.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// Of the time, what may be waited.
const SHARE: u32 = 10;

/// For how long a look is urgent after somebody has waited for it. Who is not here any more, as a handler of
/// the program's may have jumped away, is not waited for.
const URGENCY: Duration = Duration::from_millis(20);

/// Waits until the engine was told of what is wanted of `pages`.
pub(crate) fn wait(pages: &Range<Vpn>) {
    let began = Instant::now();
    while let Some(mut here) = enter() {
        let (is_told, now) = (here.is_told(pages), Instant::now());
        let is_late = now >= began + LONGEST;
        // When what was waited before is made up for.
        let even = here.even.map_or(now, |even| even.max(now));
        if is_told || here.deaf || here.is_locked() || is_late || even > now + LONGEST * SHARE {
            here.deaf |= is_late && !is_told;
            here.even = Some(even + (now - began) * SHARE);
            return;
        }
        here.urgent_until = Some(now + URGENCY);
        drop(here);
        // Not the C library's, at which the program's thread may be cancelled.
        let _ = rustix::thread::nanosleep(&PAUSE);
    }
}
