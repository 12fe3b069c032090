//! The machine as a value, and what must hold of it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Nid, Node, TopologyError};

/// Distance of a node to itself in the firmware's SLIT table; the kernel's LOCAL_DISTANCE.
pub(crate) const LOCAL_DISTANCE: u32 = 10;
/// Distance to any other node where nobody knows it; the kernel's REMOTE_DISTANCE.
pub(crate) const REMOTE_DISTANCE: u32 = 20;

/// The nodes of one machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Topology {
    nodes: Vec<Node>,
    this_machine: bool,
}

impl Topology {
    /// A machine that need not exist, for tests and models; nothing can be bound to its nodes.
    ///
    /// # Errors
    ///
    /// The first of these that does not hold, each its own [`TopologyError`]: there is a node; nids
    /// ascend; each node has a distance for each node, 10 to itself and no less to others; its CPUs
    /// ascend and are on no other node; some node has CPUs and some node has memory.
    pub fn new(nodes: Vec<Node>) -> Result<Self, TopologyError> {
        Self::checked(nodes, false)
    }

    /// [`new`](Self::new), for a caller who knows whether these are the nodes of this machine.
    pub(crate) fn checked(nodes: Vec<Node>, this_machine: bool) -> Result<Self, TopologyError> {
        if nodes.is_empty() {
            return Err(TopologyError::NoNodes);
        }
        if let Some(pair) = nodes.windows(2).find(|pair| pair[0].nid >= pair[1].nid) {
            return Err(TopologyError::NodesNotAscending { nid: pair[1].nid });
        }
        check_distances(&nodes)?;
        check_cpus(&nodes)?;
        if nodes.iter().all(|node| node.memory_bytes == 0) {
            return Err(TopologyError::NoMemory);
        }
        Ok(Self { nodes, this_machine })
    }

    /// The nodes in ascending order of their numbers; at least one.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Whether these are the nodes of the machine we run on, so that threads and memory can be
    /// bound to them; false for a machine from [`new`](Self::new) or described to hwloc.
    #[must_use]
    pub fn is_this_machine(&self) -> bool {
        self.this_machine
    }
}

fn check_distances(nodes: &[Node]) -> Result<(), TopologyError> {
    for from in nodes {
        if from.distances.len() != nodes.len() {
            return Err(TopologyError::DistanceCount {
                nid: from.nid,
                found: from.distances.len(),
                nodes: nodes.len(),
            });
        }
        for (to, &found) in nodes.iter().zip(&from.distances) {
            // Nodes that the kernel makes out of one (numa=fake) are 10 apart from each other.
            let holds =
                if from.nid == to.nid { found == LOCAL_DISTANCE } else { found >= LOCAL_DISTANCE };
            if !holds {
                return Err(TopologyError::Distance { from: from.nid, to: to.nid, found });
            }
        }
    }
    Ok(())
}

fn check_cpus(nodes: &[Node]) -> Result<(), TopologyError> {
    let mut seen: BTreeMap<u32, Nid> = BTreeMap::new();
    for node in nodes {
        if !node.cpus.is_sorted_by(|a, b| a < b) {
            return Err(TopologyError::CpusNotAscending { nid: node.nid });
        }
        for &cpu in &node.cpus {
            if let Some(first) = seen.insert(cpu, node.nid) {
                return Err(TopologyError::CpuOnTwoNodes { cpu, first, second: node.nid });
            }
        }
    }
    if seen.is_empty() { Err(TopologyError::NoCpus) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(nid: u32, cpus: &[u32], memory_bytes: u64, distances: &[u32]) -> Node {
        Node { nid: Nid(nid), cpus: cpus.into(), memory_bytes, distances: distances.into() }
    }

    fn error(nodes: Vec<Node>) -> String {
        format!("{:?}", Topology::new(nodes).unwrap_err())
    }

    #[test]
    fn s4_6_gaps_and_nodes_without_cpus_or_memory_are_ordinary() {
        let nodes = vec![
            node(1, &[4, 5], 0, &[10, 17, 28]),
            node(4, &[], 1 << 30, &[17, 10, 28]),
            node(9, &[0, 7], 1 << 34, &[28, 28, 10]),
        ];
        let machine = Topology::new(nodes.clone()).unwrap();
        assert_eq!(machine.nodes(), nodes);
        assert!(!machine.is_this_machine());
    }

    #[test]
    fn a_machine_has_nodes_that_ascend() {
        assert_eq!(error(vec![]), "NoNodes");
        let twice = vec![node(3, &[0], 1, &[10, 20]), node(3, &[1], 1, &[20, 10])];
        assert_eq!(error(twice), "NodesNotAscending { nid: Nid(3) }");
        let descending = vec![node(3, &[0], 1, &[10, 20]), node(2, &[1], 1, &[20, 10])];
        assert_eq!(error(descending), "NodesNotAscending { nid: Nid(2) }");
    }

    #[test]
    fn each_node_has_a_distance_to_each() {
        let few = vec![node(0, &[0], 1, &[10, 20]), node(1, &[1], 1, &[10])];
        assert_eq!(error(few), "DistanceCount { nid: Nid(1), found: 1, nodes: 2 }");
        let local = vec![node(0, &[0], 1, &[11])];
        assert_eq!(error(local), "Distance { from: Nid(0), to: Nid(0), found: 11 }");
        let close = vec![node(0, &[0], 1, &[10, 20]), node(1, &[1], 1, &[9, 10])];
        assert_eq!(error(close), "Distance { from: Nid(1), to: Nid(0), found: 9 }");
        let fake = vec![node(0, &[0], 1, &[10, 10]), node(1, &[1], 1, &[10, 10])];
        assert!(Topology::new(fake).is_ok(), "numa=fake makes such nodes");
    }

    #[test]
    fn each_cpu_is_on_one_node_once() {
        let unsorted = vec![node(0, &[1, 0], 1, &[10])];
        assert_eq!(error(unsorted), "CpusNotAscending { nid: Nid(0) }");
        let twice = vec![node(0, &[1, 1], 1, &[10])];
        assert_eq!(error(twice), "CpusNotAscending { nid: Nid(0) }");
        let shared = vec![node(0, &[0, 2], 1, &[10, 20]), node(5, &[1, 2], 1, &[20, 10])];
        assert_eq!(error(shared), "CpuOnTwoNodes { cpu: 2, first: Nid(0), second: Nid(5) }");
    }

    #[test]
    fn something_can_run_and_something_can_be_stored() {
        assert_eq!(error(vec![node(0, &[], 1, &[10])]), "NoCpus");
        assert_eq!(error(vec![node(0, &[0], 0, &[10])]), "NoMemory");
    }
}
