//! Counters of nodes, beside those of all.

use numerge_engine::{Counters, NodeReport};

/// What is counted by node is what is counted of all (S5.5). Only at rest.
pub(crate) fn nodes_add_up(c: &Counters, nodes: &[NodeReport]) {
    let sum = |of: fn(&NodeReport) -> u64| nodes.iter().map(of).sum::<u64>();
    for (name, all, by_node) in [
        ("pages_shared", c.pages_shared, sum(|node| node.pages_shared)),
        ("pages_sharing", c.pages_sharing, sum(|node| node.pages_sharing)),
        ("pages_unshared", c.pages_unshared, sum(|node| node.pages_unshared)),
        ("pages_volatile", c.pages_volatile, sum(|node| node.pages_volatile)),
        ("ksm_zero_pages", c.ksm_zero_pages, sum(|node| node.ksm_zero_pages)),
        ("pages_scanned", c.pages_scanned, sum(|node| node.pages_scanned)),
        ("pages_skipped", c.pages_skipped, sum(|node| node.pages_skipped)),
        ("pages_broken", c.pages_broken, sum(|node| node.pages_broken)),
        ("stable_node_chains", c.stable_node_chains, sum(|node| node.stable_node_chains)),
        ("stable_node_dups", c.stable_node_dups, sum(|node| node.stable_node_dups)),
        ("stable_nodes_replaced", c.stable_nodes_replaced, sum(|node| node.stable_nodes_replaced)),
        ("pages_home", c.pages_registered, sum(|node| node.pages_home)),
        ("bytes_saved", c.bytes_saved(), sum(NodeReport::bytes_saved)),
    ] {
        assert_eq!(all, by_node, "{name}: {c:?} {nodes:?}");
    }
    for node in nodes {
        assert_eq!(node.full_scans, c.full_scans, "{node:?}");
        assert!(node.pages_scanned_remote <= node.pages_scanned, "{node:?}");
        let metadata = node.metadata_bytes + node.metadata_bytes_remote;
        let profit = i128::from(node.bytes_saved()) - i128::from(metadata);
        assert_eq!(i128::from(node.general_profit()), profit, "{node:?}");
    }
}
