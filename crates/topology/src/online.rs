//! Which nodes have something online now: the kernel's lists in sysfs.
//!
//! Not its list of nodes online: a node stays on that after its memory and CPUs have been taken
//! offline, until its devices are taken out of the machine.

use std::collections::BTreeSet;
use std::{fs, io};

use crate::{Nid, TopologyError};

const LISTS: [&str; 2] =
    ["/sys/devices/system/node/has_memory", "/sys/devices/system/node/has_cpu"];

/// The nodes of this machine that have memory or CPUs online now, in ascending order. A machine
/// without NUMA support has node 0.
///
/// # Errors
///
/// [`TopologyError::OnlineNodes`] if the kernel's lists can't be read or understood.
pub fn online_nodes() -> Result<Vec<Nid>, TopologyError> {
    let mut nids = BTreeSet::new();
    for file in LISTS {
        match fs::read_to_string(file) {
            Ok(list) => nids.extend(parse(list.trim()).ok_or_else(|| {
                let message = format!("{file} says {list:?}");
                TopologyError::OnlineNodes(io::Error::new(io::ErrorKind::InvalidData, message))
            })?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                nids.insert(Nid(0));
            }
            Err(error) => return Err(TopologyError::OnlineNodes(error)),
        }
    }
    Ok(nids.into_iter().collect())
}

/// The nodes that have memory and that the calling thread may have memory from (its cpuset's), in ascending
/// order. A machine without NUMA support has node 0.
///
/// # Errors
///
/// [`TopologyError::OnlineNodes`] if the kernel's lists can't be read or understood.
pub fn allowed_memory_nodes() -> Result<Vec<Nid>, TopologyError> {
    let strange = |what: &str| {
        TopologyError::OnlineNodes(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()))
    };
    let there = match fs::read_to_string(LISTS[0]) {
        Ok(list) => parse(list.trim()).ok_or_else(|| strange(&list))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![Nid(0)]),
        Err(error) => return Err(TopologyError::OnlineNodes(error)),
    };
    let status =
        fs::read_to_string("/proc/thread-self/status").map_err(TopologyError::OnlineNodes)?;
    let mut lines = status.lines();
    let list = lines.find_map(|line| line.strip_prefix("Mems_allowed_list:"));
    // A kernel without cpusets allows all.
    let Some(list) = list else { return Ok(there) };
    let allowed = parse(list.trim()).ok_or_else(|| strange(list))?;
    Ok(there.into_iter().filter(|nid| allowed.contains(nid)).collect())
}

/// Numbers and ranges, separated by commas, such as `0-1,3`; or nothing.
fn parse(list: &str) -> Option<Vec<Nid>> {
    let mut nids = Vec::new();
    for part in list.split(',').filter(|_| !list.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // The most nodes Linux can have, so that a strange list does not fill the memory.
        if last < first || last >= 1024 {
            return None;
        }
        nids.extend((first..=last).map(Nid));
    }
    Some(nids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s4_6_lists_with_gaps_are_understood() {
        let nids = |list| parse(list).map(|nids| nids.iter().map(|nid| nid.0).collect::<Vec<_>>());
        assert_eq!(nids(""), Some(vec![]));
        assert_eq!(nids("0"), Some(vec![0]));
        assert_eq!(nids("0-1,3,8-9"), Some(vec![0, 1, 3, 8, 9]));
        for strange in ["a", "1-", "3-1", "0-4000000000", "0,,1"] {
            assert_eq!(nids(strange), None, "{strange:?}");
        }
    }

    #[test]
    fn this_machine_has_a_node_online() {
        let online = online_nodes().expect("sysfs");
        let memory = allowed_memory_nodes().expect("sysfs and proc");
        assert!(!memory.is_empty());
        assert!(memory.iter().all(|nid| online.contains(nid)));
    }
}
