//! The table that `numerge topology` prints.
//!
//! ```text
//! node  cpus     memory  to 0  to 4
//!    0  0-3,8   7.5 GiB    10    20
//!    4  -       512 MiB    20    10
//! ```

use std::fmt;

use crate::Topology;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The one column that is aligned to the left: lists of CPUs.
const CPUS: usize = 1;

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = rows(self);
        let widths: Vec<usize> = (0..rows[0].len())
            .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
            .collect();
        for row in &rows {
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                if column == CPUS {
                    write!(f, "{gap}{cell:<width$}")?;
                } else {
                    write!(f, "{gap}{cell:>width$}")?;
                }
            }
            writeln!(f)?;
        }
        if !self.is_this_machine() {
            writeln!(f, "(described, not this machine)")?;
        }
        Ok(())
    }
}

/// The heading and a row a node, all equally long.
fn rows(topology: &Topology) -> Vec<Vec<String>> {
    let mut heading: Vec<String> = ["node", "cpus", "memory"].map(String::from).into();
    heading.extend(topology.nodes().iter().map(|node| format!("to {}", node.nid)));
    let mut rows = vec![heading];
    for node in topology.nodes() {
        let mut row = vec![node.nid.to_string(), ranges(&node.cpus), size(node.memory_bytes)];
        row.extend(node.distances.iter().map(u32::to_string));
        rows.push(row);
    }
    rows
}

/// Ascending CPUs in the kernel's list format: `0-3,8`; `-` for none.
fn ranges(cpus: &[u32]) -> String {
    if cpus.is_empty() {
        return "-".to_owned();
    }
    let runs = cpus.chunk_by(|a, b| a + 1 == *b).map(|run| {
        let (first, last) = (run[0], run[run.len() - 1]);
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    });
    runs.collect::<Vec<_>>().join(",")
}

/// Bytes in GiB to one place, or in MiB below one GiB, rounded down; `-` for none.
fn size(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        1..GIB => format!("{} MiB", bytes / MIB),
        GIB.. => {
            let tenths = (bytes / MIB) * 10 / (GIB / MIB);
            format!("{}.{} GiB", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Nid, Node};

    fn machine() -> Topology {
        Topology::new(vec![
            Node {
                nid: Nid(0),
                cpus: vec![0, 1, 2, 3, 8],
                memory_bytes: 8_053_063_680,
                distances: vec![10, 20],
            },
            Node { nid: Nid(12), cpus: vec![], memory_bytes: 512 * MIB, distances: vec![120, 10] },
        ])
        .unwrap()
    }

    #[test]
    fn a_topology_prints_as_a_table() {
        let expected = "\
node  cpus    memory  to 0  to 12
   0  0-3,8  7.5 GiB    10     20
  12  -      512 MiB   120     10
(described, not this machine)
";
        assert_eq!(machine().to_string(), expected);
    }

    #[test]
    fn a_topology_serializes_with_names_and_units() {
        let expected = r#"{"nodes":[{"nid":0,"cpus":[0,1,2,3,8],"memory_bytes":8053063680,"distances":[10,20]},{"nid":12,"cpus":[],"memory_bytes":536870912,"distances":[120,10]}],"this_machine":false}"#;
        assert_eq!(serde_json::to_string(&machine()).unwrap(), expected);
    }

    #[test]
    fn cpus_print_as_the_kernel_prints_lists() {
        assert_eq!(ranges(&[]), "-");
        assert_eq!(ranges(&[5]), "5");
        assert_eq!(ranges(&[0, 1]), "0-1");
        assert_eq!(ranges(&[0, 2, 3, 4, 9]), "0,2-4,9");
    }

    #[test]
    fn sizes_print_in_the_unit_that_fits() {
        assert_eq!(size(0), "-");
        assert_eq!(size(MIB), "1 MiB");
        assert_eq!(size(GIB - 1), "1023 MiB");
        assert_eq!(size(GIB), "1.0 GiB");
        assert_eq!(size(u64::MAX), "17179869183.9 GiB");
    }
}
