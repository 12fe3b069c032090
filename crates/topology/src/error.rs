//! What can go wrong, and what to do about it.

use std::io;

use crate::Nid;

/// Why a topology, or something asked of one, can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// hwloc could not load a topology at all.
    #[error("hwloc can't read this machine's topology; check that /sys and /proc are mounted")]
    Hwloc,
    /// `HWLOC_SYNTHETIC` or `HWLOC_XMLFILE` is set, and what hwloc gave is not what it describes.
    #[error(
        "hwloc did not take {variable}={value:?}: correct the value (for a file: is it there, and \
         written by `lstopo --of xml`?) or unset it; HWLOC_THISSYSTEM must not be set with it"
    )]
    NotUnderstood {
        /// The environment variable.
        variable: &'static str,
        /// Its value, with anything that is not UTF-8 replaced.
        value: String,
    },
    /// Both `HWLOC_SYNTHETIC` and `HWLOC_XMLFILE` are set, and hwloc would drop one without a word.
    #[error("HWLOC_SYNTHETIC and HWLOC_XMLFILE each describe a machine: unset one")]
    DescribedTwice,
    /// A CPU that belongs to no node.
    #[error("CPU {cpu} is on no node; check /sys/devices/system/node or the described machine")]
    CpuWithoutNode {
        /// The CPU.
        cpu: u32,
    },
    /// A machine without nodes.
    #[error("a machine has at least one node: give one")]
    NoNodes,
    /// Nodes that are not in strictly ascending order.
    #[error(
        "node {nid} comes after one with the same or a higher number: sort the nodes, once each"
    )]
    NodesNotAscending {
        /// The node that comes too late.
        nid: Nid,
    },
    /// A node with too many or too few distances.
    #[error("node {nid} has {found} distances: give one for each of the {nodes} nodes")]
    DistanceCount {
        /// The node.
        nid: Nid,
        /// How many it has.
        found: usize,
        /// How many nodes there are.
        nodes: usize,
    },
    /// A distance that SLIT does not allow.
    #[error(
        "distance {found} from node {from} to {to}: 10 is a node to itself, others are 10 or more"
    )]
    Distance {
        /// From this node.
        from: Nid,
        /// To this node.
        to: Nid,
        /// The distance given.
        found: u32,
    },
    /// CPUs of a node that are not in strictly ascending order.
    #[error("the CPUs of node {nid} are not ascending: sort them, once each")]
    CpusNotAscending {
        /// The node.
        nid: Nid,
    },
    /// A CPU given to two nodes.
    #[error("CPU {cpu} is on node {first} and on node {second}: leave it on one")]
    CpuOnTwoNodes {
        /// The CPU.
        cpu: u32,
        /// The node that has it first.
        first: Nid,
        /// The node that has it again.
        second: Nid,
    },
    /// A machine where nothing can run.
    #[error("no node has CPUs: give CPUs to at least one")]
    NoCpus,
    /// A machine where nothing can be stored.
    #[error("no node has memory: give memory to at least one")]
    NoMemory,
    /// A node that is not in the topology.
    #[error("there is no node {nid}: `numerge topology` lists those there are")]
    UnknownNode {
        /// The node.
        nid: Nid,
    },
    /// Binding was asked of a machine that is only described.
    #[error(
        "this topology is not this machine's, so nothing can be bound to its nodes: unset \
         HWLOC_SYNTHETIC, HWLOC_XMLFILE and other HWLOC_ variables to use the real nodes"
    )]
    NotThisMachine,
    /// The thread may use none of the CPUs it should be pinned to.
    #[error(
        "the thread may not run on any CPU of node {nid}: widen its CPU mask (taskset, cpuset), or \
         leave that node's work to others"
    )]
    NoAllowedCpus {
        /// The node whose CPUs were wanted.
        nid: Nid,
    },
    /// sched_getaffinity(2) or sched_setaffinity(2) failed.
    #[error(
        "the thread's CPU mask can't be read or set ({0}): is there a seccomp filter against it?"
    )]
    Affinity(#[source] io::Error),
    /// mbind(2) failed.
    #[error(
        "{bytes} bytes at {address:#x} can't be bound to node {nid} ({source}): the address must be \
         the start of a page and all of it mapped, the node allowed (cpuset.mems), and mbind \
         allowed (seccomp, CONFIG_NUMA)"
    )]
    BindMemory {
        /// Start of the range.
        address: usize,
        /// Its length in bytes.
        bytes: usize,
        /// The node it should have been bound to.
        nid: Nid,
        /// What the kernel said.
        source: io::Error,
    },
    /// get_mempolicy(2) or set_mempolicy(2) failed.
    #[error(
        "the thread's memory can't be made to come from node {nid} ({source}): the node must have \
         memory online and be allowed (cpuset.mems), and set_mempolicy allowed (seccomp, CONFIG_NUMA)"
    )]
    ThreadPolicy {
        /// The node it should have come from.
        nid: Nid,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel's list of nodes could not be read.
    #[error("can't tell which nodes are online ({0}): is /sys mounted?")]
    OnlineNodes(#[source] io::Error),
    /// move_pages(2) failed.
    #[error(
        "process {pid} (0: this one) can't be asked where its pages are, or to move them ({source}): it must exist \
         and be yours, or CAP_SYS_PTRACE is needed; and move_pages allowed (seccomp, CONFIG_NUMA)"
    )]
    QueryPages {
        /// The process; 0 is the calling one.
        pid: libc::pid_t,
        /// What the kernel said.
        source: io::Error,
    },
}
