//! NUMA nodes of a machine: their CPUs, memory and distances.

use std::fmt;

/// Number of a NUMA node as the system gives it; numbers may have gaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Nid(pub u32);

impl fmt::Display for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One NUMA node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its number.
    pub nid: Nid,
    /// The CPUs on it, in ascending order; none for a node that only has memory.
    pub cpus: Vec<u32>,
    /// Its memory in bytes; 0 for a node that only has CPUs.
    pub memory_bytes: u64,
    /// Distances to the nodes of [`Topology::nodes`], in their order; 10 is a node to itself.
    pub distances: Vec<u32>,
}

/// The nodes of one machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topology {
    nodes: Vec<Node>,
}

impl Topology {
    /// The nodes in ascending order of their numbers; at least one.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
}
