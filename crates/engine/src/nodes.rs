//! What happens on each node, and where memory lies: a view for operators, made when it is asked
//! for.

use std::collections::BTreeMap;
use std::sync::Arc;

use numerge_stable_tree::{Fingerprint, Handle, Kpfn, PageId, PageState, Record, TreeId, rmap};
use numerge_topology::Nid;

use crate::core::Core;
use crate::machine::{MemoryError, PAGE_SIZE};
use crate::region::Region;
use crate::shard::Shard;
use crate::world::World;

/// Contents walked, and pages and frames whose nodes are asked for, at once.
const WALKED: usize = 1024;

/// One node in numbers.
///
/// Frames, their sharers and chains count where the frames' memory is now, whatever tree they are in;
/// looks, where the page is (if that can't be told or doesn't matter, at its home); what pages are that
/// are mapped to no frame, where they are at home: the node whose shard scans their segment. At rest each of
/// these adds up over the nodes to the engine's [`Counters`](crate::Counters), but for frames on nodes
/// that came after the engine was built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeReport {
    /// The node.
    pub nid: Nid,
    /// Whether its shard is at work.
    pub online: bool,
    /// Pages of all regions that its shard scans.
    pub pages_home: u64,
    /// Looks at pages of this node.
    pub pages_scanned: u64,
    /// Those of them by threads of other nodes.
    pub pages_scanned_remote: u64,
    /// Looks at pages of this node that were left out (`smart_scan`).
    pub pages_skipped: u64,
    /// Times every registered page was visited, this node's among them: a full scan is one of all nodes.
    pub full_scans: u64,
    /// Frames in use on it.
    pub pages_shared: u64,
    /// Pages mapped to frames on it beyond the first of each.
    pub pages_sharing: u64,
    /// Candidates without a partner, of those that its shard scans.
    pub pages_unshared: u64,
    /// Pages that change, or could not be merged, of those that its shard scans.
    pub pages_volatile: u64,
    /// Pages merged with the machine's page of zeros, of those that its shard scans.
    pub ksm_zero_pages: u64,
    /// Merged pages that its shard scans, found written to since, in all.
    pub pages_broken: u64,
    /// Contents with several frames, the fullest of which is on it.
    pub stable_node_chains: u64,
    /// Frames of such contents on it.
    pub stable_node_dups: u64,
    /// Stable nodes taken out of its tree to the migrate queue, in all.
    pub stable_nodes_left: u64,
    /// Stable nodes put in its tree out of the migrate queue, in all.
    pub stable_nodes_replaced: u64,
    /// Pages mapped to frames on it whose home is another node.
    pub sharers_remote: u64,
    /// Bytes of page records and candidates' tables meant for this node that are on it.
    pub metadata_bytes: u64,
    /// The same that are elsewhere.
    pub metadata_bytes_remote: u64,
}

/// How many pages of something are on each node.
pub type PagesByNode = BTreeMap<Nid, u64>;

/// One node's frame pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolReport {
    /// The node it was made for.
    pub nid: Nid,
    /// Where its frames in use are now.
    pub frames: PagesByNode,
}

/// All nodes, in order.
pub(crate) fn report(core: &Core, reader: &Handle) -> Vec<NodeReport> {
    // Before all else: what is counted after it is not older.
    let full_scans = core.tally.full_scans.get();
    let of_shard = |shard| NodeReport { full_scans, ..of_shard(shard) };
    let mut reports: Vec<NodeReport> = core.shards.iter().map(of_shard).collect();
    for tree in (0..core.node_count()).map(TreeId) {
        each_content(core, reader, tree, |contents| count_frames(core, contents, &mut reports));
    }
    let regions: Vec<Arc<Region>> = core.world().regions().map(Arc::clone).collect();
    for region in regions {
        for segment in region.segments() {
            // For one segment at a time, or who wants to change the world would wait for all (S5.2).
            let world = core.world();
            if !world.holds(&region) {
                break;
            }
            let report = &mut reports[usize::from(region.home(segment))];
            let pages = region.segment(segment);
            report.pages_home += pages.end - pages.start;
            let here = core.nodes.places(world.record_bytes(&region, segment)).unwrap_or_default();
            count_metadata(report, &here);
            if core.shards.len() > 1 {
                count_unmerged(report, world.segment_records(&region, segment));
            }
        }
    }
    if let [report] = &mut reports[..] {
        // All that there is, so that nothing has to be looked through for it.
        let all = core.counters();
        report.pages_unshared = all.pages_unshared;
        report.pages_volatile = all.pages_volatile;
        report.ksm_zero_pages = all.ksm_zero_pages;
    }
    if core.has_tree_per_node() {
        let world = core.world();
        for (node, report) in (0..).zip(&mut reports) {
            let bytes = world.unstable(TreeId(node)).bytes();
            count_metadata(report, &core.nodes.places(bytes).unwrap_or_default());
        }
    }
    reports
}

fn of_shard(shard: &Shard) -> NodeReport {
    let pages_scanned_remote = shard.scanned_elsewhere.get();
    NodeReport {
        online: shard.is_online(),
        pages_scanned: shard.scanned_here.get() + pages_scanned_remote,
        pages_scanned_remote,
        pages_skipped: shard.skipped.get(),
        pages_broken: shard.broken.get(),
        stable_nodes_left: shard.queued.get(),
        stable_nodes_replaced: shard.replaced.get(),
        ..NodeReport::nothing_on(shard.nid)
    }
}

impl NodeReport {
    /// A node that is online, with nothing on it.
    #[must_use]
    pub const fn nothing_on(nid: Nid) -> Self {
        Self {
            nid,
            online: true,
            pages_home: 0,
            pages_scanned: 0,
            pages_scanned_remote: 0,
            pages_skipped: 0,
            full_scans: 0,
            pages_shared: 0,
            pages_sharing: 0,
            pages_unshared: 0,
            pages_volatile: 0,
            ksm_zero_pages: 0,
            pages_broken: 0,
            stable_node_chains: 0,
            stable_node_dups: 0,
            stable_nodes_left: 0,
            stable_nodes_replaced: 0,
            sharers_remote: 0,
            metadata_bytes: 0,
            metadata_bytes_remote: 0,
        }
    }

    /// Bytes that the node's frames and pages of zeros save, metadata not subtracted.
    #[must_use]
    pub const fn bytes_saved(&self) -> u64 {
        (self.pages_sharing + self.ksm_zero_pages) * PAGE_SIZE as u64
    }

    /// Bytes saved less the bytes of metadata meant for this node, wherever they are. What the engine needs
    /// beside that is no node's.
    #[must_use]
    pub const fn general_profit(&self) -> i64 {
        let metadata = self.metadata_bytes + self.metadata_bytes_remote;
        self.bytes_saved().cast_signed() - metadata.cast_signed()
    }

    /// Adds what another engine has on the same node. `full_scans` stays: of several engines, only who has
    /// them all can say when one is over.
    pub const fn add(&mut self, other: &Self) {
        self.online &= other.online;
        self.pages_home += other.pages_home;
        self.pages_scanned += other.pages_scanned;
        self.pages_scanned_remote += other.pages_scanned_remote;
        self.pages_skipped += other.pages_skipped;
        self.pages_shared += other.pages_shared;
        self.pages_sharing += other.pages_sharing;
        self.pages_unshared += other.pages_unshared;
        self.pages_volatile += other.pages_volatile;
        self.ksm_zero_pages += other.ksm_zero_pages;
        self.pages_broken += other.pages_broken;
        self.stable_node_chains += other.stable_node_chains;
        self.stable_node_dups += other.stable_node_dups;
        self.stable_nodes_left += other.stable_nodes_left;
        self.stable_nodes_replaced += other.stable_nodes_replaced;
        self.sharers_remote += other.sharers_remote;
        self.metadata_bytes += other.metadata_bytes;
        self.metadata_bytes_remote += other.metadata_bytes_remote;
    }
}

fn count_metadata(report: &mut NodeReport, places: &[(Nid, u64)]) {
    for (nid, pages) in places {
        let bytes = pages * PAGE_SIZE as u64;
        if *nid == report.nid {
            report.metadata_bytes += bytes;
        } else {
            report.metadata_bytes_remote += bytes;
        }
    }
}

/// Counts what pages are that are mapped to no frame, as [`Core::counters`] does for all.
fn count_unmerged(report: &mut NodeReport, records: &[Record]) {
    for record in records {
        match record.state() {
            PageState::Untouched | PageState::Merged(_) => {}
            PageState::Unshared(_) => report.pages_unshared += 1,
            PageState::Zero => report.ksm_zero_pages += 1,
            PageState::Unread
            | PageState::Seen(_)
            | PageState::Busy
            | PageState::Held(_)
            | PageState::OverBudget(_) => report.pages_volatile += 1,
        }
    }
}

/// The frames of one content, and whether they are dups under a chain.
type Content = (Vec<Kpfn>, bool);

fn each_content(core: &Core, reader: &Handle, tree: TreeId, mut each: impl FnMut(&[Content])) {
    let mut next = Some(Fingerprint::new(0));
    while let Some(from) = next {
        let mut contents: Vec<Content> = Vec::new();
        let found = |frames: &mut dyn Iterator<Item = Kpfn>, chain| {
            contents.push((frames.collect(), chain));
        };
        next = core.forest.each_content(&reader.pin(), tree, from, WALKED, found);
        each(&contents);
    }
}

fn count_frames(core: &Core, contents: &[Content], reports: &mut [NodeReport]) {
    let kpfns: Vec<Kpfn> = contents.iter().flat_map(|(frames, _)| frames).copied().collect();
    let mut nids = Vec::with_capacity(kpfns.len());
    core.frames.nodes_of(&kpfns, &mut nids);
    let mut at = 0;
    for (frames, is_chain) in contents {
        let mut fullest = (0, None);
        for kpfn in frames {
            let node = core.node_of(&nids, at).map(usize::from);
            at += 1;
            let (sharers, Some(node)) = (u64::from(core.forest.sharers(*kpfn)), node) else {
                continue;
            };
            if sharers == 0 {
                continue; // on its way out
            }
            let report = &mut reports[node];
            report.pages_shared += 1;
            report.pages_sharing += sharers - 1;
            report.stable_node_dups += u64::from(*is_chain);
            report.sharers_remote += remote_sharers(core, *kpfn, node);
            fullest = fullest.max((sharers, Some(node)));
        }
        if let (true, (_, Some(node))) = (is_chain, fullest) {
            reports[node].stable_node_chains += 1;
        }
    }
}

fn remote_sharers(core: &Core, kpfn: Kpfn, node: usize) -> u64 {
    if core.shards.len() == 1 {
        return 0;
    }
    let world = core.world();
    let mut pages: Vec<PageId> = Vec::new();
    if let Some(head) = core.forest.rmap_head(kpfn) {
        rmap::sharers(head, &world.pages, usize::MAX, &mut pages);
    }
    let home = |page: &PageId| {
        let (region, index) = world.locate(*page);
        usize::from(region.home_of(index))
    };
    pages.iter().filter(|page| home(page) != node).count() as u64
}

/// Where a region's pages are now, merged ones where their frames are.
///
/// The machine does not know a merged page before the program has touched it again: nothing but a
/// mapping of its frame is there.
pub(crate) fn pages_of(core: &Core, region: &Arc<Region>) -> Result<PagesByNode, MemoryError> {
    let (mut pages, mut nids, mut frames) = (PagesByNode::new(), Vec::new(), Vec::new());
    let mut start = 0;
    while start < region.len() {
        let end = (start + WALKED as u64).min(region.len());
        nids.clear();
        frames.clear();
        // Before the world is locked: a program may take its time.
        region.program.memory.nodes_of(&[region.vpn(start)..region.vpn(end)], &mut nids)?;
        {
            // No batch is under way, so that no share is given up and every frame stays in use.
            let world = core.world_mut();
            if world.holds(region) {
                let unknown = (start..end).zip(&nids).filter(|(_, nid)| nid.is_none());
                frames.extend(unknown.filter_map(|(index, _)| frame_of(&world, region, index)));
            }
            core.frames.nodes_of(&frames, &mut nids);
        }
        nids.iter().flatten().for_each(|nid| *pages.entry(*nid).or_default() += 1);
        start = end;
    }
    Ok(pages)
}

fn frame_of(world: &World, region: &Region, index: u64) -> Option<Kpfn> {
    match world.record(region.page(index)).state() {
        PageState::Merged(kpfn) => Some(kpfn),
        _ => None,
    }
}

/// All nodes' pools.
pub(crate) fn pools(core: &Core, reader: &Handle) -> Vec<PoolReport> {
    let mut reports: Vec<_> = core
        .nids
        .iter()
        .map(|&nid| (core.frames.pool(nid), PoolReport { nid, frames: PagesByNode::new() }))
        .collect();
    for tree in (0..core.node_count()).map(TreeId) {
        each_content(core, reader, tree, |contents| {
            let kpfns: Vec<Kpfn> = contents.iter().flat_map(|(all, _)| all).copied().collect();
            let mut nids = Vec::with_capacity(kpfns.len());
            core.frames.nodes_of(&kpfns, &mut nids);
            for (kpfn, nid) in kpfns.iter().zip(nids) {
                let of = |ranges: &[std::ops::Range<Kpfn>]| ranges.iter().any(|r| r.contains(kpfn));
                let pool = reports.iter_mut().find(|(ranges, _)| of(ranges));
                if let (Some((_, pool)), Some(nid)) = (pool, nid) {
                    *pool.frames.entry(nid).or_default() += 1;
                }
            }
        });
    }
    reports.into_iter().map(|(_, report)| report).collect()
}
