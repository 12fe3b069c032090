//! What hwloc finds: NUMA nodes with their memory, and CPUs.
//!
//! hwloc2 2.2 wraps hwloc 2 only in part, and some of it wrongly, so this is what is used of it and
//! what is not:
//! - `objects_with_type(NUMANode)` panics: it takes the nodes' virtual depth -3 for an ordinary one.
//!   In hwloc 2 nodes are *memory children*, beside the tree of CPUs, and hwloc2 has no way at all
//!   to them. [`memory_children`] reads the C struct for that, the only unsafe code here.
//! - `name()` frees a string that hwloc owns; `Display` of an object writes past its buffer, that
//!   of a bitmap leaks. None is called.
//! - `==` of object types calls into C and says that types without order are greater; patterns are
//!   matched instead.
//! - The topology's own pointer is private and distances are not wrapped, so hwloc's distances can't
//!   be had.
//! - `is_thissystem` is not wrapped either. But hwloc reports that threads can be bound if and only
//!   if the topology is this system's ("not thissystem: don't report set/get_cpubind as supported",
//!   its bind.c), and that is wrapped.

use std::ffi::{c_char, c_int, c_uint, c_void};

use hwloc2::{ObjectType, TopologyObject};

use crate::{Nid, TopologyError};

/// A machine as hwloc describes it.
pub(crate) struct Found {
    /// The nodes whose memory this process may use, with that memory in bytes; in no set order.
    pub(crate) nodes: Vec<(Nid, u64)>,
    /// The CPUs this process may use, each with the node hwloc has it on; in no set order.
    pub(crate) cpus: Vec<(u32, Option<Nid>)>,
    /// Whether this is the machine we run on.
    pub(crate) this_machine: bool,
}

/// Asks hwloc, which heeds `HWLOC_SYNTHETIC`, `HWLOC_XMLFILE` and its other variables by itself.
pub(crate) fn find() -> Result<Found, TopologyError> {
    let topology = hwloc2::Topology::new().ok_or(TopologyError::Hwloc)?;
    let (mut nodes, mut cpus) = (Vec::new(), Vec::new());
    walk(topology.object_at_root(), &mut nodes, &mut cpus);
    Ok(Found {
        nodes: nodes.iter().map(|node| (Nid(node.os_index()), node.total_memory())).collect(),
        cpus: cpus.iter().map(|cpu| (cpu.os_index(), node_of(cpu, &nodes))).collect(),
        this_machine: topology.support().cpu().set_current_thread(),
    })
}

/// Collects the NUMA nodes and processing units at and below an object. As deep as a machine is
/// nested, 10 levels or so.
fn walk<'a>(
    object: &'a TopologyObject,
    nodes: &mut Vec<&'a TopologyObject>,
    cpus: &mut Vec<&'a TopologyObject>,
) {
    match object.object_type() {
        ObjectType::NUMANode => nodes.push(object),
        ObjectType::PU => cpus.push(object),
        _ => {}
    }
    // Below memory children too: a memory-side cache has its node there.
    for child in object.children().into_iter().chain(memory_children(object)) {
        walk(child, nodes, cpus);
    }
}

/// The node a CPU is on. hwloc says of every node which CPUs are near, and several may claim one:
/// a package's DRAM and its HBM, or CXL memory of the whole machine. The CPU is then on the node
/// that claims the fewest, of equals on the lowest; the kernel numbers DRAM first.
///
/// Without a claim, since the process may not use its node's memory, on the lowest that the whole
/// machine has there.
fn node_of(cpu: &TopologyObject, nodes: &[&TopologyObject]) -> Option<Nid> {
    let claims = nodes.iter().filter_map(|node| {
        let near = node.cpuset()?;
        near.is_set(cpu.os_index()).then(|| (near.weight(), Nid(node.os_index())))
    });
    let forbidden = || u32::try_from(cpu.complete_nodeset()?.first()).ok().map(Nid);
    claims.min().map(|(_, nid)| nid).or_else(forbidden)
}

/// `struct hwloc_obj` of hwloc 2's `<hwloc.h>`, up to the field that hwloc2 does not show. The
/// struct is the same in all of hwloc 2, whose library name (libhwloc.so.15) stands for that.
#[repr(C)]
struct ObjectHead {
    object_type: c_int,
    subtype: *const c_char,
    os_index: c_uint,
    name: *const c_char,
    total_memory: u64,
    attr: *const c_void,
    depth: c_int,
    logical_index: c_uint,
    next_cousin: *const c_void,
    prev_cousin: *const c_void,
    parent: *const c_void,
    sibling_rank: c_uint,
    next_sibling: *const c_void,
    prev_sibling: *const c_void,
    arity: c_uint,
    children: *const c_void,
    first_child: *const c_void,
    last_child: *const c_void,
    symmetric_subtree: c_int,
    memory_arity: c_uint,
    memory_first_child: *const TopologyObject,
}

// hwloc2 forgot `symmetric_subtree`. Where pointers have 8 bytes the padding makes up for it and all
// its fields that follow are right; elsewhere they are not.
const _: () = assert!(size_of::<usize>() == 8 && size_of::<ObjectHead>() == 152);
const _: () = assert!(size_of::<TopologyObject>() >= size_of::<ObjectHead>());

/// The NUMA nodes and memory-side caches attached to an object.
fn memory_children(object: &TopologyObject) -> impl Iterator<Item = &TopologyObject> {
    let head = std::ptr::from_ref(object).cast::<ObjectHead>();
    // SAFETY: needed because hwloc2 has no accessor for the field. Every `TopologyObject` is hwloc's
    // own `struct hwloc_obj`, which hwloc2 only makes references to, and `ObjectHead` is the
    // beginning of that struct and no larger than what the reference covers. Nobody writes to a
    // loaded topology.
    let first = unsafe { (*head).memory_first_child };
    // SAFETY: needed to come from hwloc's pointer to the reference that hwloc2 makes of all others.
    // hwloc gives null or an object of the same topology, which lives as long as `object`.
    let first = unsafe { first.as_ref() };
    std::iter::successors(first, |child| child.next_sibling())
}
