//! Counters as JSON, under the names that all commands give them.

use serde_json::{Map, Value, json};

use crate::{Counters, NodeReport};

/// An object with a field for each counter.
#[must_use]
pub fn counters(c: &Counters) -> Map<String, Value> {
    fields(json!({
        "pages_shared": c.pages_shared,
        "pages_sharing": c.pages_sharing,
        "pages_unshared": c.pages_unshared,
        "pages_volatile": c.pages_volatile,
        "pages_scanned": c.pages_scanned,
        "pages_skipped": c.pages_skipped,
        "full_scans": c.full_scans,
        "stable_node_chains": c.stable_node_chains,
        "stable_node_dups": c.stable_node_dups,
        "stable_nodes_queued": c.stable_nodes_queued,
        "stable_nodes_replaced": c.stable_nodes_replaced,
        "ksm_zero_pages": c.ksm_zero_pages,
        "general_profit": c.general_profit(),
        "pages_registered": c.pages_registered,
        "pages_untouched": c.pages_untouched,
        "pages_held": c.pages_held,
        "pages_over_budget": c.pages_over_budget,
        "pages_broken": c.pages_broken,
        "frames_refused": c.frames_refused,
        "epoch_lag": c.epoch_lag,
        "bytes_saved": c.bytes_saved(),
        "metadata_bytes": c.metadata_bytes,
    }))
}

/// An object with a field for each counter of a node.
#[must_use]
pub fn node(n: &NodeReport) -> Map<String, Value> {
    fields(json!({
        "nid": n.nid.0,
        "online": n.online,
        "pages_home": n.pages_home,
        "pages_shared": n.pages_shared,
        "pages_sharing": n.pages_sharing,
        "pages_unshared": n.pages_unshared,
        "pages_volatile": n.pages_volatile,
        "pages_scanned": n.pages_scanned,
        "pages_scanned_remote": n.pages_scanned_remote,
        "pages_skipped": n.pages_skipped,
        "full_scans": n.full_scans,
        "stable_node_chains": n.stable_node_chains,
        "stable_node_dups": n.stable_node_dups,
        "stable_nodes_left": n.stable_nodes_left,
        "stable_nodes_replaced": n.stable_nodes_replaced,
        "ksm_zero_pages": n.ksm_zero_pages,
        "general_profit": n.general_profit(),
        "pages_broken": n.pages_broken,
        "sharers_remote": n.sharers_remote,
        "bytes_saved": n.bytes_saved(),
        "metadata_bytes": n.metadata_bytes,
        "metadata_bytes_remote": n.metadata_bytes_remote,
    }))
}

fn fields(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
