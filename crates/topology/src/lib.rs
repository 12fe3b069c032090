//! NUMA nodes of a machine: their CPUs, memory and distances; putting threads and memory on them.
//!
//! A [`Topology`] is a plain, immutable value. It comes from [`Topology::discover`], which asks
//! hwloc and libnuma, or from [`Topology::new`], which takes any machine a test can think of.
//! hwloc can also be told to describe another machine (`HWLOC_SYNTHETIC`, `HWLOC_XMLFILE`); such a
//! topology can be looked at, but [`Topology::is_this_machine`] is false and nothing can be bound
//! to its nodes.
//!
//! Node numbers may have gaps, a node may have no CPUs or no memory; offline nodes and CPUs do not
//! appear. So a node's number is never its position in [`Topology::nodes`].
//!
//! This crate knows hardware and nothing of pages' contents, processes or merging.

mod affinity;
mod discover;
mod display;
mod error;
mod hwloc;
mod libnuma;
mod lookup;
mod mempolicy;
mod node;
mod online;
mod pages;
mod topology;
mod turns;

pub use affinity::AllowedCpus;
pub use error::TopologyError;
pub use node::{Nid, Node};
pub use online::{allowed_memory_nodes, online_nodes};
pub use pages::{move_pages, nodes_of_pages, nodes_of_process_pages};
pub use topology::Topology;
pub use turns::{take_first_turns, take_ordinary_turns, take_short_turns};
