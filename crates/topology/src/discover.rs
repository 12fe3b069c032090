//! The machine we run on, or the one that hwloc is told to describe.

use std::collections::BTreeMap;
use std::env;

use crate::libnuma::Libnuma;
use crate::topology::{LOCAL_DISTANCE, REMOTE_DISTANCE};
use crate::{Nid, Node, Topology, TopologyError, hwloc};

/// The variables by which hwloc describes a machine other than this one.
const DESCRIPTIONS: [&str; 2] = ["HWLOC_SYNTHETIC", "HWLOC_XMLFILE"];

impl Topology {
    /// The machine we run on, or the one in `HWLOC_SYNTHETIC` (a description such as
    /// `pack:2 [numa(memory=8GB)] core:2 pu:1`) or `HWLOC_XMLFILE` (a file that `lstopo --of xml`
    /// wrote). A variable that is empty counts as unset.
    ///
    /// - CPUs are those online and in the process's cpuset; a CPU mask (taskset) does not narrow
    ///   them, but [`pin_current_thread`](Self::pin_current_thread) heeds it.
    /// - Memory is what the process may use: a node outside its cpuset.mems has 0 bytes, and does
    ///   not appear unless it has CPUs.
    /// - All of it is as it was at this moment: memory and CPUs that come later are not seen.
    /// - A CPU is on the node that the kernel has it on. On a described machine, or where libnuma
    ///   is not available, on the nearest by hwloc.
    /// - Distances are the firmware's. On a described machine, and where they are unknown, 10 to
    ///   itself and 20 to others, as the kernel has it without a SLIT table.
    ///
    /// # Errors
    ///
    /// [`TopologyError::NotUnderstood`] if a variable is set and hwloc did not take it (hwloc itself
    /// would go on with the real machine), [`TopologyError::DescribedTwice`] if both are,
    /// [`TopologyError::Hwloc`] or [`TopologyError::CpuWithoutNode`] if hwloc does not know the
    /// machine, and those of [`new`](Self::new), such as for a described machine without memory.
    pub fn discover() -> Result<Self, TopologyError> {
        let description = description()?;
        let found = hwloc::find();
        // When it can't take a description, hwloc falls back to the real machine, without a word, or, where it
        // is without libxml2, gives up.
        if let Some((variable, value)) = description
            && found.as_ref().map_or(true, |found| found.this_machine)
        {
            return Err(TopologyError::NotUnderstood { variable, value });
        }
        let found = found?;
        let libnuma = if found.this_machine { Libnuma::open() } else { None };
        assemble(
            found,
            |cpu| libnuma.as_ref()?.node_of_cpu(cpu),
            |from, to| libnuma.as_ref()?.distance(from, to),
        )
    }
}

/// Variable and value of a description, if there is one.
fn description() -> Result<Option<(&'static str, String)>, TopologyError> {
    let mut set = DESCRIPTIONS.into_iter().filter_map(|variable| {
        let value = env::var_os(variable).filter(|value| !value.is_empty())?;
        Some((variable, value.to_string_lossy().into_owned()))
    });
    let first = set.next();
    if set.next().is_some() { Err(TopologyError::DescribedTwice) } else { Ok(first) }
}

/// Makes a topology of what hwloc found and of what the kernel knows better, as far as it knows.
fn assemble(
    found: hwloc::Found,
    node_of_cpu: impl Fn(u32) -> Option<Nid>,
    distance: impl Fn(Nid, Nid) -> Option<u32>,
) -> Result<Topology, TopologyError> {
    let this_machine = found.this_machine;
    let mut parts: BTreeMap<Nid, (u64, Vec<u32>)> =
        found.nodes.into_iter().map(|(nid, memory_bytes)| (nid, (memory_bytes, vec![]))).collect();
    for (cpu, near) in found.cpus {
        let nid = node_of_cpu(cpu).or(near).ok_or(TopologyError::CpuWithoutNode { cpu })?;
        // Made here if need be: hwloc leaves out nodes whose memory the process may not use.
        parts.entry(nid).or_default().1.push(cpu);
    }
    let default = |from, to| if from == to { LOCAL_DISTANCE } else { REMOTE_DISTANCE };
    let nids: Vec<Nid> = parts.keys().copied().collect();
    let nodes = parts.into_iter().map(|(nid, (memory_bytes, mut cpus))| {
        cpus.sort_unstable();
        let far = |&to: &Nid| distance(nid, to).unwrap_or_else(|| default(nid, to));
        Node { nid, cpus, memory_bytes, distances: nids.iter().map(far).collect() }
    });
    Topology::checked(nodes.collect(), this_machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(nodes: &[(u32, u64)], cpus: &[(u32, Option<u32>)]) -> hwloc::Found {
        hwloc::Found {
            nodes: nodes.iter().map(|&(nid, memory_bytes)| (Nid(nid), memory_bytes)).collect(),
            cpus: cpus.iter().map(|&(cpu, near)| (cpu, near.map(Nid))).collect(),
            this_machine: true,
        }
    }

    #[test]
    fn s4_6_nodes_without_cpus_or_usable_memory_are_kept() {
        // Node 2 is CXL memory; the memory of node 1 is outside cpuset.mems, so hwloc hides it.
        let found = found(&[(2, 64), (0, 16)], &[(3, None), (1, Some(0)), (2, Some(0))]);
        let machine = assemble(found, |cpu| (cpu == 3).then_some(Nid(1)), |_, _| None).unwrap();
        let seen: Vec<_> =
            machine.nodes().iter().map(|n| (n.nid.0, n.cpus.clone(), n.memory_bytes)).collect();
        assert_eq!(seen, [(0, vec![1, 2], 16), (1, vec![3], 0), (2, vec![], 64)]);
        assert!(machine.is_this_machine());
    }

    #[test]
    fn the_kernel_knows_better_than_hwloc() {
        let found = found(&[(0, 1), (5, 1)], &[(0, Some(0)), (1, Some(0))]);
        let distance = |from: Nid, to: Nid| Some(if from == to { 10 } else { 30 + from.0 });
        let machine = assemble(found, |cpu| (cpu == 1).then_some(Nid(5)), distance).unwrap();
        assert_eq!(machine.node_of_cpu(1).unwrap().nid, Nid(5));
        assert_eq!(machine.distance(Nid(0), Nid(5)), Some(30));
        assert_eq!(machine.distance(Nid(5), Nid(0)), Some(35));
    }

    #[test]
    fn distances_default_to_10_and_20() {
        let found = found(&[(0, 1), (1, 1)], &[(0, Some(0)), (1, Some(1))]);
        let machine = assemble(found, |_| None, |_, _| None).unwrap();
        assert_eq!(machine.nodes()[0].distances, [10, 20]);
        assert_eq!(machine.nodes()[1].distances, [20, 10]);
    }

    #[test]
    fn a_cpu_on_no_node_is_an_error() {
        let error = assemble(found(&[(0, 1)], &[(7, None)]), |_| None, |_, _| None).unwrap_err();
        assert!(error.to_string().starts_with("CPU 7 is on no node"), "{error}");
    }
}
