//! What the tests on real memory share.
#![allow(
    dead_code,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::ops::Range;
use std::sync::Arc;

use numerge_engine::Kpfn;
use numerge_engine::machine::{
    Frames, Kind, Memory, Outcome, PAGE_SIZE, Run, Target, Vpn, Written,
};
use numerge_linux::{AnonymousRegion, Error, FramePools, ProcessMemory, check_kernel};
use numerge_topology::{Nid, Topology};

/// This process's memory, merged with pools of its own.
pub struct World {
    pub pools: Arc<FramePools>,
    pub memory: ProcessMemory,
    pub nid: Nid,
}

impl World {
    /// None, with the reason printed, if this machine does not allow it.
    pub fn new() -> Option<Self> {
        match check_kernel() {
            Ok(()) => {}
            Err(error @ (Error::NotPermitted { .. } | Error::KernelTooOld { .. })) => {
                println!("SKIPPED: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        }
        let topology = Arc::new(Topology::discover().unwrap());
        let nid = topology.nodes().iter().find(|node| node.memory_bytes > 0).unwrap().nid;
        let pools = Arc::new(FramePools::new(topology).unwrap());
        let memory = ProcessMemory::new(pools.clone()).unwrap();
        Some(Self { pools, memory, nid })
    }

    /// Registers a new region, each page filled with what `content` gives for it.
    pub fn region(&self, pages: usize, content: impl Fn(usize) -> u64) -> AnonymousRegion {
        let region = AnonymousRegion::new(pages * PAGE_SIZE).unwrap();
        for page in 0..pages {
            region.write(page * PAGE_SIZE, &page_of(content(page))).unwrap();
        }
        self.memory.register(region.pages()).unwrap();
        region
    }

    /// Frames with these contents, in one piece.
    pub fn frames(&self, contents: &[u64]) -> Range<Kpfn> {
        let frames = self.pools.allocate(self.nid, contents.len() as u64).unwrap();
        assert_eq!(frames.end.0 - frames.start.0, contents.len() as u64);
        for (n, content) in contents.iter().enumerate() {
            self.pools.write(frames.start.plus(n as u64), &page_of(*content));
        }
        frames
    }

    pub fn merge(&self, pages: Range<Vpn>, target: Target) -> Vec<Outcome> {
        let mut out = Vec::new();
        self.memory.merge(&[Run { pages, target }], &mut out);
        out
    }

    pub fn merge_frames(&self, pages: Range<Vpn>, frames: &Range<Kpfn>) -> Vec<Outcome> {
        self.merge(pages, Target::Frames(frames.start))
    }

    pub fn written(&self, pages: Range<Vpn>) -> Vec<Written> {
        let mut out = Vec::new();
        let end = self.memory.written(pages.clone(), u64::MAX, &mut out).unwrap();
        assert_eq!(end, pages.end);
        out
    }
}

/// A page with this content all over; 0 is a page of zeros.
pub fn page_of(content: u64) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    if content != 0 {
        for (n, word) in page.chunks_exact_mut(8).enumerate() {
            let mixed = content.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ n as u64;
            word.copy_from_slice(&mixed.to_ne_bytes());
        }
    }
    page
}

/// Pages of a region, by their places in it.
pub fn sub(region: &AnonymousRegion, range: Range<usize>) -> Range<Vpn> {
    let start = region.pages().start;
    start.plus(range.start as u64)..start.plus(range.end as u64)
}

pub fn assert_content(region: &AnonymousRegion, page: usize, content: u64) {
    let mut found = [0; PAGE_SIZE];
    region.read(page * PAGE_SIZE, &mut found).unwrap();
    assert!(found == page_of(content), "page {page} has changed");
}

pub fn assert_contents(region: &AnonymousRegion, content: impl Fn(usize) -> u64) {
    for page in 0..region.len() / PAGE_SIZE {
        assert_content(region, page, content(page));
    }
}

/// How many mappings the kernel has for a region.
pub fn mappings_of(region: &AnonymousRegion) -> usize {
    mappings_in(region, 0..region.len() / PAGE_SIZE)
}

/// How many mappings the kernel has for pages of a region.
pub fn mappings_in(region: &AnonymousRegion, pages: Range<usize>) -> usize {
    let first = region.as_ptr().addr();
    let (start, end) = (first + pages.start * PAGE_SIZE, first + pages.end * PAGE_SIZE);
    std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .filter(|line| {
            let (from, rest) = line.split_once('-').unwrap();
            let (to, _) = rest.split_once(' ').unwrap();
            usize::from_str_radix(from, 16).unwrap() < end
                && usize::from_str_radix(to, 16).unwrap() > start
        })
        .count()
}

pub fn all(outcomes: &[Outcome], wanted: Outcome) -> bool {
    outcomes.iter().all(|outcome| *outcome == wanted)
}

pub fn written_of(pages: Range<Vpn>, kind: Kind) -> Written {
    Written { pages, kind }
}

/// Random numbers, good enough to mix things up (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }
}
