//! Which shard scans what: memory at home on a node is scanned by that node's shard (S4.2).
//!
//! A region is cut into segments, and a segment's home is the node that most of it is on, by a
//! sample. Its pages that are elsewhere are still read by threads of the node they are on (`judge`);
//! their home only keeps their records and carries out what is decided. At the beginning of each of
//! its passes a shard looks at its segments again, and gives those away whose memory was moved or
//! came to another node: it has no batch under way then, and after that leaves them alone. A segment
//! of which it has looks to carry out from the pass before stays until the next: two shards must
//! not look at one page at a time.

use std::sync::Arc;

use numerge_stable_tree::{PageState, Record};

use crate::core::Core;
use crate::machine::Vpn;
use crate::region::Region;
use crate::scan::Cursor;
use crate::shard::Shard;
use crate::world::World;

/// Pages of a segment that are asked for: some ten microseconds for a GiB.
const SAMPLE: u64 = 64;

/// Gives away the segments of a shard that are at home elsewhere, and says which.
pub(crate) fn give_away(
    core: &Core,
    world: &World,
    shard: &Shard,
    cursor: &Cursor,
) -> Vec<(Arc<Region>, usize)> {
    let mut given = Vec::new();
    if core.nids.len() == 1 {
        return given;
    }
    for region in world.regions().filter(|region| !region.is_closing()) {
        let mine = |n: &usize| region.home(*n) == shard.node() && !cursor.has_aside(region, *n);
        for segment in region.segments().filter(mine) {
            let home = home_of(core, world, region, segment);
            if home != shard.node() {
                move_home(core, region, segment, home);
                given.push((Arc::clone(region), segment));
            }
        }
    }
    given
}

/// Finds the first homes of a new region, which no shard knows yet.
pub(crate) fn find_homes(core: &Core, world: &World, region: &Region) {
    for segment in region.segments().filter(|_| core.nids.len() > 1) {
        region.set_home(segment, home_of(core, world, region, segment));
    }
}

/// Makes `home` scan a segment from its next pass on, and before the full scan that is under way is
/// over (S3.4). The caller is the segment's home, or keeps all batches out.
pub(crate) fn move_home(core: &Core, region: &Region, segment: usize, home: u16) {
    region.set_home(segment, home);
    core.scan_again(home);
}

/// Puts the records of segments on their homes' nodes, one at a time: the machine may have to move
/// 4 MiB for each.
pub(crate) fn place_records(core: &Core, segments: &[(Arc<Region>, usize)]) {
    for (region, segment) in segments.iter().filter(|_| core.nids.len() > 1) {
        let world = core.world();
        if world.holds(region) {
            let nid = core.nids[usize::from(region.home(*segment))];
            // Where that can't be done they are read from afar.
            let _ = core.nodes.place(world.record_bytes(region, *segment), nid);
        }
    }
}

/// The node that most of a segment's own memory is on, as far as a sample tells; of frames nothing
/// is to be learnt, for they may be anywhere. Where it is a draw, it stays where it is.
fn home_of(core: &Core, world: &World, region: &Region, segment: usize) -> u16 {
    let pages = region.segment(segment);
    let step = ((pages.end - pages.start) / SAMPLE).max(1);
    let records = world.pages.records(region.slot);
    let runs: Vec<_> = (pages.start..pages.end)
        .step_by(usize::try_from(step).expect("smaller than a segment"))
        // Not at even distances, for memory may be interleaved.
        .map(|index| index + (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % step)
        .filter(|index| *index < pages.end)
        .filter(|index| is_own(records, *index))
        .map(|index| region.vpn(index)..Vpn(region.vpn(index).0 + 1))
        .collect();
    let mut nids = Vec::with_capacity(runs.len());
    // Where nobody can say, it stays where it is.
    let _ = region.program.memory.nodes_of(&runs, &mut nids);
    let mut count = vec![0_u32; core.nids.len()];
    for node in (0..nids.len()).filter_map(|at| core.node_of(&nids, at)) {
        count[usize::from(core.shard_for(node))] += 1;
    }
    let now = core.shard_for(region.home(segment));
    let most = (0..core.node_count()).max_by_key(|node| (count[usize::from(*node)], *node == now));
    most.unwrap_or(now)
}

fn is_own(records: &[Record], index: u64) -> bool {
    let record = &records[usize::try_from(index).expect("a page of the region")];
    !matches!(record.state(), PageState::Merged(_) | PageState::Zero)
}
