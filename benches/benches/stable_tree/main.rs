//! Lookups and inserts of the stable tree, against other indexes that could have been it.
//!
//! - `numerge`: the stable tree; a lookup gives the frame to compare with.
//! - `pages`: the kernel's way, a tree ordered by the pages' content. Pages differ in their first 16
//!   bytes, which is the cheapest case for it; only at its end a hit compares a page to the end.
//!   It needs the pages themselves in memory, so sizes that don't fit are left out, and said.
//! - `skiplist`: crossbeam-skiplist, `papaya`: papaya's hash map; both keyed by fingerprint.
//!
//! Whoever looks up by fingerprint has to make it first: `fingerprint` is what that costs, once for
//! each page that changed. Lookups pick keys at random among all, so that large indexes miss caches
//! as they would. `hit_2_threads` is the time of one lookup while another thread does the same.
//!
//! `cargo bench -p numerge-benches --bench stable_tree [-- FILTER]` takes about 5 minutes. Entries are
//! 10^4, 10^5 and 10^6; `NUMERGE_BENCH_ENTRIES=10000000` asks for others, separated by commas. 10^7
//! take 5 GiB and 10 minutes.

mod index;

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use numerge_benches::{Random, unique_page};
use numerge_engine::machine::PAGE_SIZE;
use papaya::HashMap;
use twox_hash::xxhash3_128::{DEFAULT_SECRET_LENGTH, Hasher};

use index::{Index, Pages, SkipList, StableTree, Uniform};

const ENTRIES: [u64; 3] = [10_000, 100_000, 1_000_000];
/// Keys that are never inserted but by the insert bench, numbered from here.
const ABSENT: u64 = 1 << 40;

/// The sizes asked for.
fn sizes() -> Vec<u64> {
    let Ok(list) = std::env::var("NUMERGE_BENCH_ENTRIES") else { return ENTRIES.to_vec() };
    let sizes: Result<Vec<u64>, _> = list.split(',').map(|size| size.trim().parse()).collect();
    match sizes {
        Ok(sizes) if sizes.iter().all(|size| (1..1 << 32).contains(size)) => sizes,
        _ => panic!(
            "NUMERGE_BENCH_ENTRIES is numbers from 1 to 2^32 separated by commas, not {list}"
        ),
    }
}

/// Looks up `count` keys out of `entries` from `first` on, picked at random.
fn look_up<I: Index>(index: &I, first: u64, entries: u64, count: u64, seed: u64) -> u64 {
    let mut random = Random::new(seed);
    index.hits(count, || first + random.below(entries))
}

/// The time of `count` lookups that all find their key.
fn hits<I: Index>(index: &I, entries: u64, count: u64) -> Duration {
    let began = Instant::now();
    let hits = look_up(index, 0, entries, count, 1);
    let elapsed = began.elapsed();
    assert_eq!(hits, count, "every key is in the index");
    elapsed
}

fn misses<I: Index>(index: &I, entries: u64, count: u64) -> Duration {
    let began = Instant::now();
    let hits = look_up(index, ABSENT, entries, count, 2);
    let elapsed = began.elapsed();
    assert_eq!(hits, 0, "no key is in the index");
    elapsed
}

/// The time until two threads have each looked up `count` keys.
fn hits_2_threads<I: Index>(index: &I, entries: u64, count: u64) -> Duration {
    let start = Barrier::new(2);
    let other = || {
        start.wait();
        black_box(look_up(index, 0, entries, count, 3))
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(other);
        start.wait();
        let began = Instant::now();
        black_box(look_up(index, 0, entries, count, 4));
        assert_eq!(thread.join().ok(), Some(count), "every key is in the index");
        began.elapsed()
    })
}

/// The time of `count` inserts into an index of `entries`, which has as many after.
fn inserts<I: Index>(index: &mut I, entries: u64, count: u64) -> Duration {
    // So few at a time that the size stays about the same.
    let batch = (entries / 16).clamp(1, 10_000);
    let mut elapsed = Duration::ZERO;
    let mut done = 0;
    while done < count {
        let keys = ABSENT..ABSENT + batch.min(count - done);
        elapsed += index.insert(keys.clone());
        done += keys.end - keys.start;
        index.remove(keys);
    }
    elapsed
}

fn all_of<I: Index>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, entries: u64) {
    if let Err(reason) = I::fits(entries) {
        println!("stable_tree/*/{name}/{entries}: left out, {reason}");
        return;
    }
    // Filled by the first bench that the filter lets through.
    let mut filled: Option<I> = None;
    let fill = || {
        let mut index = I::default();
        index.insert(0..entries);
        index
    };
    group.bench_function(BenchmarkId::new(format!("hit/{name}"), entries), |bencher| {
        let index = filled.get_or_insert_with(fill);
        bencher.iter_custom(|count| hits(index, entries, count));
    });
    group.bench_function(BenchmarkId::new(format!("hit_2_threads/{name}"), entries), |bencher| {
        let index = filled.get_or_insert_with(fill);
        bencher.iter_custom(|count| hits_2_threads(index, entries, count));
    });
    group.bench_function(BenchmarkId::new(format!("miss/{name}"), entries), |bencher| {
        let index = filled.get_or_insert_with(fill);
        bencher.iter_custom(|count| misses(index, entries, count));
    });
    group.bench_function(BenchmarkId::new(format!("insert/{name}"), entries), |bencher| {
        let index = filled.get_or_insert_with(fill);
        bencher.iter_custom(|count| inserts(index, entries, count));
    });
}

fn stable_tree(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stable_tree");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group.sample_size(20);
    for entries in sizes() {
        all_of::<StableTree>(&mut group, "numerge", entries);
        all_of::<Pages>(&mut group, "pages", entries);
        all_of::<SkipList>(&mut group, "skiplist", entries);
        all_of::<HashMap<u128, u64, Uniform>>(&mut group, "papaya", entries);
    }
    group.finish();
}

fn fingerprint(criterion: &mut Criterion) {
    const PAGES: usize = 4096;
    let secret = [0x5a; DEFAULT_SECRET_LENGTH];
    let pages: Vec<_> = (0..PAGES as u64).map(unique_page).collect();
    let mut next = 0;
    criterion.bench_function("fingerprint", |bencher| {
        bencher.iter(|| {
            next = (next + 1) % PAGES;
            let page: &[u8; PAGE_SIZE] = &pages[next];
            Hasher::oneshot_with_secret(&secret, page).is_ok_and(|hash| hash == 0)
        });
    });
}

criterion_group!(benches, stable_tree, fingerprint);
criterion_main!(benches);
