//! What merging, unmerging and looking for writes cost here: `cargo run --release -p numerge-linux
//! --example measure`. Takes 5 GiB.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss, reason = "a measurement")]

use std::sync::Arc;
use std::time::Instant;

use numerge_engine::machine::{Frames, Memory, Outcome, PAGE_SIZE, Run, Target, Vpn};
use numerge_linux::{AnonymousRegion, FramePools, ProcessMemory};
use numerge_topology::{Nid, Topology};

const PAGES: usize = 16384;

fn content(page: usize) -> [u8; PAGE_SIZE] {
    let mut content = [0x5A; PAGE_SIZE];
    content[..8].copy_from_slice(&(page as u64 + 1).to_ne_bytes());
    content
}

fn micros_a_page(began: Instant, pages: usize) -> f64 {
    began.elapsed().as_secs_f64() * 1e6 / pages as f64
}

fn sub(region: &AnonymousRegion, first: usize, len: usize) -> std::ops::Range<Vpn> {
    let start = region.pages().start.plus(first as u64);
    start..start.plus(len as u64)
}

fn runs(pools: &FramePools, memory: &ProcessMemory, nid: Nid, len: usize) {
    let region = AnonymousRegion::new(PAGES * PAGE_SIZE).unwrap();
    for page in 0..PAGES {
        region.write(page * PAGE_SIZE, &content(page)).unwrap();
    }
    memory.register(region.pages()).unwrap();
    let frames = pools.allocate(nid, PAGES as u64).unwrap();
    for page in 0..PAGES {
        pools.write(frames.start.plus(page as u64), &content(page));
    }
    let before = memory.mappings().unwrap().used;
    // Every other run, so that each stays a mapping of its own.
    let firsts: Vec<_> = (0..PAGES).step_by(2 * len).collect();
    let pages = firsts.len() * len;
    let plan: Vec<_> = firsts
        .iter()
        .map(|&first| Run {
            pages: sub(&region, first, len),
            target: Target::Frames(frames.start.plus(first as u64)),
        })
        .collect();
    let mut out = Vec::new();
    let began = Instant::now();
    memory.merge(&plan, &mut out);
    let merge = micros_a_page(began, pages);
    assert!(out.iter().all(|outcome| *outcome == Outcome::Merged));
    let merged = memory.mappings().unwrap().used;
    for &first in &firsts {
        for page in first..first + len {
            region.write(page * PAGE_SIZE, &content(page)).unwrap();
        }
    }
    out.clear();
    let began = Instant::now();
    memory.merge(&plan, &mut out);
    let again = micros_a_page(began, pages);
    assert!(out.iter().all(|outcome| *outcome == Outcome::Merged));
    let began = Instant::now();
    memory.unmerge(&[region.pages()]).unwrap();
    let unmerge = micros_a_page(began, pages);
    let after = memory.mappings().unwrap().used;
    for page in 0..PAGES {
        let mut found = [0; PAGE_SIZE];
        region.read(page * PAGE_SIZE, &mut found).unwrap();
        assert!(found == content(page));
    }
    let plan: Vec<_> = firsts
        .iter()
        .map(|&first| Run { pages: sub(&region, first, len), target: Target::Zero })
        .collect();
    for &first in &firsts {
        for page in first..first + len {
            region.write(page * PAGE_SIZE, &[0; PAGE_SIZE]).unwrap();
        }
    }
    out.clear();
    let began = Instant::now();
    memory.merge(&plan, &mut out);
    let zero = micros_a_page(began, pages);
    assert!(out.iter().all(|outcome| *outcome == Outcome::Merged));
    println!(
        "runs of {len:3}: merge {merge:6.2} us a page, again {again:6.2}, unmerge {unmerge:6.2}, \
         zero {zero:6.2}; \
         mappings {before} -> {merged} -> {after}"
    );
    memory.unregister(region.pages()).unwrap();
    pools.free(&(0..PAGES as u64).map(|n| frames.start.plus(n)).collect::<Vec<_>>());
}

fn looking(memory: &ProcessMemory) {
    let region = AnonymousRegion::new(4 << 30).unwrap();
    for page in 0..region.len() / PAGE_SIZE {
        region.write(page * PAGE_SIZE, &[1]).unwrap();
    }
    memory.register(region.pages()).unwrap();
    for what in ["all written, first look", "nothing written", "nothing written"] {
        let mut out = Vec::new();
        let began = Instant::now();
        memory.written(region.pages(), u64::MAX, &mut out).unwrap();
        println!("written, 4 GiB, {what}: {:?}, {} runs", began.elapsed(), out.len());
    }
    for page in 0..region.len() / PAGE_SIZE {
        region.write(page * PAGE_SIZE, &[2]).unwrap();
    }
    let mut out = Vec::new();
    let began = Instant::now();
    memory.written(region.pages(), u64::MAX, &mut out).unwrap();
    println!("written, 4 GiB, all written again: {:?}", began.elapsed());
    for page in (0..region.len() / PAGE_SIZE).step_by(2) {
        region.write(page * PAGE_SIZE, &[3]).unwrap();
    }
    out.clear();
    let began = Instant::now();
    memory.written(region.pages(), u64::MAX, &mut out).unwrap();
    println!("written, 4 GiB, every other page: {:?}, {} runs", began.elapsed(), out.len());
    memory.unregister(region.pages()).unwrap();
}

fn main() {
    let topology = Arc::new(Topology::discover().unwrap());
    let nid = topology.nodes()[0].nid;
    let pools = Arc::new(FramePools::new(topology).unwrap());
    let memory = ProcessMemory::new(pools.clone()).unwrap();
    for len in [1, 4, 16, 64, 256] {
        runs(&pools, &memory, nid, len);
    }
    let frames = 65536;
    let began = Instant::now();
    let run = pools.allocate(nid, frames).unwrap();
    println!(
        "allocate {frames} frames: {:.2} us each",
        began.elapsed().as_secs_f64() * 1e6 / frames as f64
    );
    let began = Instant::now();
    for n in 0..frames {
        pools.write(run.start.plus(n), &content(1));
    }
    println!("write: {:.2} us each", began.elapsed().as_secs_f64() * 1e6 / frames as f64);
    let began = Instant::now();
    pools.free(&(0..frames).map(|n| run.start.plus(n)).collect::<Vec<_>>());
    println!("free: {:.2} us each", began.elapsed().as_secs_f64() * 1e6 / frames as f64);
    looking(&memory);
}
