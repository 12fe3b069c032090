//! Milliseconds, for the prunes of chains: real ones, or a test's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// Where an engine takes the time from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The system's monotonic clock.
    Monotonic(Instant),
    /// What a test says.
    Manual(Arc<AtomicU32>),
}

impl Default for Clock {
    fn default() -> Self {
        Self::Monotonic(Instant::now())
    }
}

impl Clock {
    /// Milliseconds since some moment; they wrap around after 49 days, as the kernel's jiffies do.
    #[expect(clippy::cast_possible_truncation, reason = "wraps around by design")]
    pub(crate) fn now_ms(&self) -> u32 {
        match self {
            Self::Monotonic(start) => start.elapsed().as_millis() as u32,
            Self::Manual(now) => now.load(Ordering::SeqCst),
        }
    }
}
