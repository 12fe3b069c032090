//! How often and how long a client kept the engine waiting.

use std::time::Duration;

/// How long a client that was asked something says nothing before that is a stall.
const STALL: Duration = Duration::from_millis(100);

/// Times that a client was asked to merge or unmerge something and said nothing for 100 ms or longer. Who
/// touches what it was asked about may have waited as long.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stalls {
    /// How often.
    pub count: u64,
    /// How long in all.
    pub total: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Stalls {
    /// Counts a silence in, if it was long.
    pub(crate) fn and(self, silence: Duration) -> Self {
        if silence < STALL {
            return self;
        }
        Self {
            count: self.count + 1,
            total: self.total.saturating_add(silence),
            longest: self.longest.max(silence),
        }
    }
}
