//! Asking an engine that runs elsewhere: knobs, counters, clients.
//!
//! A Unix stream socket beside the one that agents connect to (`PATH.control`). A request is a line of
//! JSON, and so is its answer; a connection may ask any number of times, one after the other.
//!
//! | request | answer |
//! | --- | --- |
//! | `{"get": "run"}` | `{"value": 1}` |
//! | `{"set": {"knob": "run", "value": 1}}` | `{"value": 1}`, when it is done |
//! | `"status"` | `{"status": {...}}` |
//! | `"nodes"` | `{"nodes": [...]}` |
//! | anything else, or what can't be done | `{"error": {"errno": 22, "text": "..."}}` |

mod client;
mod listener;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use client::{AskError, Client};
pub use listener::{Answers, Listener};

/// Bytes of a request or an answer, the end of the line included.
const MOST_BYTES: u64 = 1 << 22;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// A knob's value.
    Get(String),
    /// To set a knob.
    Set {
        /// The kernel's name for it.
        knob: String,
        /// The value.
        value: u64,
    },
    /// Counters, of all and by domain, and clients.
    Status,
    /// Counters by NUMA node, which takes as long as there are frames, and with several nodes, pages.
    Nodes,
}

/// What is answered.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The knob's value, now.
    Value(u64),
    /// Counters, domains, clients.
    Status(Value),
    /// A list, an object for each node.
    Nodes(Value),
    /// It was not done, and nothing changed.
    Error {
        /// The kernel's error number for the like.
        errno: i32,
        /// For people.
        text: String,
    },
}

impl Answer {
    /// An error.
    #[must_use]
    pub fn error(errno: i32, text: impl std::fmt::Display) -> Self {
        Self::Error { errno, text: text.to_string() }
    }
}

/// Where the engine behind an agents' socket is asked.
#[must_use]
pub fn path_beside(socket: &Path) -> PathBuf {
    let mut path: OsString = socket.into();
    path.push(".control");
    path.into()
}
