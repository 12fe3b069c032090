//! Counters as JSON, under the names that all commands give them.

use serde_json::{Map, Value, json};

use crate::Counters;

/// An object with a field for each counter.
#[must_use]
pub fn counters(c: &Counters) -> Map<String, Value> {
    let all = json!({
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
    });
    match all {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
