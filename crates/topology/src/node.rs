//! One NUMA node and its number.

use std::fmt;

use serde::Serialize;

/// Number of a NUMA node as the system gives it; numbers may have gaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct Nid(pub u32);

impl fmt::Display for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` and not `write!`, so that the caller's width and alignment count.
        f.pad(&self.0.to_string())
    }
}

/// One NUMA node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Node {
    /// Its number.
    pub nid: Nid,
    /// The CPUs on it, in ascending order; none for a node that only has memory.
    pub cpus: Vec<u32>,
    /// Its memory in bytes; 0 for a node that only has CPUs.
    pub memory_bytes: u64,
    /// Distances to the nodes of [`Topology::nodes`](crate::Topology::nodes), in their order; 10 is
    /// a node to itself.
    pub distances: Vec<u32>,
}
