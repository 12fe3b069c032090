//! How many mappings clients have, for who asks.
//!
//! The kernel has no count of them: each has to be read, which takes some 30 ms where there are as many as
//! a program may have. So there is a limit on the time that is spent on it each time somebody asks, those
//! counted longest ago come first, and of the others, and where it is less than a second old, the last count
//! is given. A client that doesn't let itself be counted, as it may, is not waited for.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::Client;

/// After so long, no other client's mappings are counted.
const MOST: Duration = Duration::from_millis(20);

/// How old a count may be for who asks again and again.
const FRESH: Duration = Duration::from_secs(1);

/// What was counted of a client, and when.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counted {
    /// None: never.
    at: Option<Instant>,
    /// None if they could not be counted.
    pub(crate) mappings: Option<u64>,
}

/// Counts the mappings of clients, as far as there is time.
pub(crate) fn count_some(clients: &[Arc<Client>]) {
    let until = Instant::now() + MOST;
    let mut clients: Vec<&Arc<Client>> = clients.iter().collect();
    // Cached: others may be counting too.
    clients.sort_by_cached_key(|client| client.counted.lock().at);
    for client in clients {
        let now = Instant::now();
        let is_fresh = client.counted.lock().at.is_some_and(|at| now.duration_since(at) < FRESH);
        if now >= until || is_fresh {
            break;
        }
        // Not locked meanwhile: who asks for the last count does not wait.
        let mappings = client.memory.process().mappings();
        let mut counted = client.counted.lock();
        counted.at = Some(now);
        let is_unknown = mappings.as_ref().is_err_and(|error| {
            matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
        });
        if !is_unknown {
            counted.mappings = mappings.ok();
        }
    }
}
