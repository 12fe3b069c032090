//! The control files of each node.

use std::fs;
use std::sync::Arc;

use numerge::{Counters, Knob, KnobError, Nid, NodeReport};
use numerge_control_fs::{ControlFs, Source};

use crate::bed::Bed;

/// The kernel's counters that add up.
const COUNTERS: [&str; 9] = [
    "ksm_zero_pages",
    "pages_scanned",
    "pages_shared",
    "pages_sharing",
    "pages_skipped",
    "pages_unshared",
    "pages_volatile",
    "stable_node_chains",
    "stable_node_dups",
];

struct Shown(Arc<Bed>);

impl Source for Shown {
    fn knob(&self, knob: Knob) -> u64 {
        self.0.merger.knob(knob)
    }

    fn set(&self, knob: Knob, value: u64) -> Result<(), KnobError> {
        self.0.merger.set(knob, value)
    }

    /// Nobody unmerges by these files.
    fn interrupt(&self) {}

    fn counters(&self) -> Counters {
        self.0.merger.counters()
    }

    fn nids(&self) -> Vec<Nid> {
        self.0.topology.nodes().iter().map(|node| node.nid).collect()
    }

    fn nodes(&self) -> Vec<NodeReport> {
        self.0.merger.nodes()
    }
}

#[test]
#[ignore = "needs nodes: run by tools/numa"]
fn s5_5_files_of_all_nodes_add_up_to_the_machines() {
    let bed = Arc::new(Bed::by_hand());
    let nodes = bed.memory_nodes();
    // On each node more than on the one before, and beyond what one frame may have.
    let guests: Vec<_> = nodes
        .iter()
        .zip(1..)
        .flat_map(|(nid, more)| {
            let alone = bed.guest(*nid, 10 * more, |page| (1000 * more + page) as u64);
            [alone, bed.equal(*nid, 300 * more, 7)]
        })
        .collect();
    bed.settle();
    let place = tempfile::tempdir().unwrap();
    let files = ControlFs::mount(place.path(), Arc::new(Shown(Arc::clone(&bed)))).unwrap();
    let number = |name: &str| -> i64 {
        let text = fs::read_to_string(place.path().join(name)).unwrap();
        text.trim_end().parse().unwrap()
    };
    for counter in COUNTERS {
        let of_nodes = bed.topology.nodes().iter().map(|node| node.nid);
        let sum: i64 = of_nodes.map(|nid| number(&format!("nodes/{nid}/{counter}"))).sum();
        assert_eq!(sum, number(counter), "{counter}");
    }
    for (nid, more) in nodes.iter().zip(1..) {
        let of_node = |name: &str| number(&format!("nodes/{nid}/{name}"));
        assert_eq!((of_node("pages_unshared"), of_node("pages_home")), (10 * more, 310 * more));
        assert_eq!(of_node("pages_sharing") + of_node("pages_shared"), 300 * more);
        assert_eq!(of_node("full_scans"), number("full_scans"));
        let metadata = of_node("metadata_bytes") + of_node("metadata_bytes_remote");
        assert_eq!(of_node("general_profit"), 4096 * of_node("pages_sharing") - metadata);
    }
    drop(files);
    bed.unmerge(&guests.iter().collect::<Vec<_>>());
}
