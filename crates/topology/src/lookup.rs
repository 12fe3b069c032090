//! Questions to a topology: which node is this, which is near.

use crate::{Nid, Node, Topology};

impl Topology {
    /// The node with this number.
    #[must_use]
    pub fn node(&self, nid: Nid) -> Option<&Node> {
        self.position(nid).map(|at| &self.nodes()[at])
    }

    /// How far `to` is from `from`: 10 is a node to itself, 20 twice as far. None if either is not
    /// in the topology. Not always the same in the other direction.
    #[must_use]
    pub fn distance(&self, from: Nid, to: Nid) -> Option<u32> {
        Some(self.node(from)?.distances[self.position(to)?])
    }

    /// The node a CPU is on.
    #[must_use]
    pub fn node_of_cpu(&self, cpu: u32) -> Option<&Node> {
        self.nodes().iter().find(|node| node.cpus.binary_search(&cpu).is_ok())
    }

    /// Where the work of this node is done: the node itself if it has CPUs, else the nearest that
    /// has, of equally near ones the lowest. None only for a node not in the topology.
    #[must_use]
    pub fn nearest_with_cpus(&self, nid: Nid) -> Option<&Node> {
        self.nearest(nid, |node| !node.cpus.is_empty())
    }

    /// Where the memory for this node comes from: the node itself if it has memory, else the
    /// nearest that has, of equally near ones the lowest. None only for a node not in the topology.
    #[must_use]
    pub fn nearest_with_memory(&self, nid: Nid) -> Option<&Node> {
        self.nearest(nid, |node| node.memory_bytes > 0)
    }

    fn nearest(&self, nid: Nid, suits: impl Fn(&Node) -> bool) -> Option<&Node> {
        let from = self.node(nid)?;
        let others = self.nodes().iter().zip(&from.distances).filter(|(node, _)| suits(node));
        // The node itself goes first even where another is 10 away too (numa=fake); `min_by_key`
        // gives the first of equals, and the nodes ascend.
        others.min_by_key(|(node, distance)| (node.nid != nid, **distance)).map(|(node, _)| node)
    }

    fn position(&self, nid: Nid) -> Option<usize> {
        self.nodes().binary_search_by_key(&nid, |node| node.nid).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Node 2 has both, 3 no CPUs, 7 no memory, 8 both.
    fn machine() -> Topology {
        let node = |nid, cpus: &[u32], memory_bytes, distances: [u32; 4]| Node {
            nid: Nid(nid),
            cpus: cpus.into(),
            memory_bytes,
            distances: distances.into(),
        };
        Topology::new(vec![
            node(2, &[0, 1, 8], 1 << 33, [10, 15, 21, 30]),
            node(3, &[], 1 << 30, [25, 10, 17, 17]),
            node(7, &[2, 3], 0, [22, 17, 10, 11]),
            node(8, &[4], 1 << 33, [30, 17, 10, 10]),
        ])
        .unwrap()
    }

    #[test]
    fn nodes_are_found_by_number_and_not_by_position() {
        let machine = machine();
        assert_eq!(machine.node(Nid(7)).unwrap().cpus, [2, 3]);
        assert_eq!(machine.node(Nid(0)), None);
        assert_eq!(machine.node(Nid(4)), None);
    }

    #[test]
    fn distances_have_a_direction() {
        let machine = machine();
        assert_eq!(machine.distance(Nid(2), Nid(3)), Some(15));
        assert_eq!(machine.distance(Nid(3), Nid(2)), Some(25));
        assert_eq!(machine.distance(Nid(8), Nid(8)), Some(10));
        assert_eq!(machine.distance(Nid(2), Nid(5)), None);
        assert_eq!(machine.distance(Nid(5), Nid(2)), None);
    }

    #[test]
    fn a_cpu_is_on_one_node() {
        let machine = machine();
        assert_eq!(machine.node_of_cpu(8).unwrap().nid, Nid(2));
        assert_eq!(machine.node_of_cpu(4).unwrap().nid, Nid(8));
        assert_eq!(machine.node_of_cpu(5), None);
    }

    #[test]
    fn s4_6_a_node_without_cpus_is_served_by_the_nearest() {
        let machine = machine();
        let nearest = |nid| machine.nearest_with_cpus(Nid(nid)).map(|node| node.nid);
        assert_eq!(nearest(2), Some(Nid(2)));
        assert_eq!(nearest(3), Some(Nid(7)), "7 and 8 are equally near: the lowest");
        assert_eq!(nearest(8), Some(Nid(8)), "itself, though 7 is 10 away too");
        assert_eq!(nearest(1), None);
    }

    #[test]
    fn s4_6_a_node_without_memory_gets_it_from_the_nearest() {
        let machine = machine();
        let nearest = |nid| machine.nearest_with_memory(Nid(nid)).map(|node| node.nid);
        assert_eq!(nearest(3), Some(Nid(3)));
        assert_eq!(nearest(7), Some(Nid(8)));
        assert_eq!(nearest(99), None);
    }
}
