//! Each promise of the `Memory` trait, on real memory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{
    World, all, assert_content, assert_contents, mappings_in, mappings_of, page_of, sub, written_of,
};
use numerge_engine::machine::{Frames, Kind, Memory, MemoryError, Outcome, PAGE_SIZE, Target};
use numerge_linux::{AnonymousRegion, Error};

const PAGES: usize = 64;

fn unique(page: usize) -> u64 {
    page as u64 + 1
}

#[test]
fn s1_1_the_whole_path_keeps_content() {
    let Some(world) = World::new() else { return };
    let region = world.region(PAGES, unique);
    let pages = region.pages();
    assert_eq!(world.written(pages.clone()), [written_of(pages.clone(), Kind::Private)]);
    assert_eq!(world.written(pages.clone()), []);
    let frames = world.frames(&(0..PAGES).map(unique).collect::<Vec<_>>());
    assert!(all(&world.merge_frames(pages.clone(), &frames), Outcome::Merged));
    assert_contents(&region, unique);
    assert_eq!(world.written(pages.clone()), [written_of(pages.clone(), Kind::Frame)]);
    assert_eq!(mappings_of(&region), 1);

    world.memory.unmerge(std::slice::from_ref(&pages)).unwrap();
    world.pools.free(&(0..PAGES as u64).map(|n| frames.start.plus(n)).collect::<Vec<_>>());
    assert_contents(&region, unique);
    assert_eq!(mappings_of(&region), 1);

    // What was unmerged can be merged again.
    let frames = world.frames(&(0..PAGES).map(unique).collect::<Vec<_>>());
    assert!(all(&world.merge_frames(pages.clone(), &frames), Outcome::Merged));
    assert_contents(&region, unique);
    world.memory.unmerge(std::slice::from_ref(&pages)).unwrap();
    world.memory.unregister(pages).unwrap();
}

#[test]
fn s1_1_only_equal_pages_are_merged() {
    let Some(world) = World::new() else { return };
    let region = world.region(PAGES, unique);
    let contents = |page: usize| if page % 5 == 2 { 999 } else { unique(page) };
    let frames = world.frames(&(0..PAGES).map(contents).collect::<Vec<_>>());
    let outcomes = world.merge_frames(region.pages(), &frames);
    for (page, outcome) in outcomes.iter().enumerate() {
        let wanted = if page % 5 == 2 { Outcome::Differs } else { Outcome::Merged };
        assert_eq!(*outcome, wanted, "page {page}");
    }
    assert_contents(&region, unique);
    // Each side is still written to and seen as before.
    world.written(region.pages());
    for page in [2, 3] {
        region.write(page * PAGE_SIZE, &page_of(5000)).unwrap();
        assert_content(&region, page, 5000);
        assert_eq!(
            world.written(region.pages()),
            [written_of(sub(&region, page..page + 1), Kind::Private)]
        );
    }
}

#[test]
fn nothing_equal_leaves_one_mapping() {
    let Some(world) = World::new() else { return };
    let region = world.region(PAGES, unique);
    let frames = world.frames(&[7777; PAGES]);
    for page in 0..PAGES {
        let outcomes = world.merge_frames(sub(&region, page..page + 1), &frames);
        assert_eq!(outcomes, [Outcome::Differs]);
    }
    assert_eq!(mappings_of(&region), 1);
    assert_contents(&region, unique);
}

#[test]
fn adjacent_runs_with_consecutive_frames_are_one_mapping() {
    let Some(world) = World::new() else { return };
    let region = world.region(PAGES, unique);
    let frames = world.frames(&(0..PAGES).map(unique).collect::<Vec<_>>());
    for first in [16, 0, 32, 48, 8, 24, 40, 56] {
        let pages = sub(&region, first..first + 8);
        let frames = frames.start.plus(first as u64)..frames.end;
        assert!(all(&world.merge_frames(pages, &frames), Outcome::Merged));
    }
    assert_eq!(mappings_of(&region), 1);
    assert_contents(&region, unique);
}

#[test]
fn runs_longer_than_the_staging_area() {
    let Some(world) = World::new() else { return };
    let region = world.region(1000, unique);
    let frames = world.frames(&(0..1000).map(unique).collect::<Vec<_>>());
    assert!(all(&world.merge_frames(region.pages(), &frames), Outcome::Merged));
    assert_eq!(mappings_of(&region), 1);
    assert_contents(&region, unique);
    world.memory.unmerge(&[region.pages()]).unwrap();
    assert_eq!(mappings_of(&region), 1);
    assert_contents(&region, unique);
}

#[test]
fn s3_6_a_write_to_a_merged_page_gives_it_its_own_copy() {
    let Some(world) = World::new() else { return };
    let region = world.region(PAGES, |_| 7);
    let frames = world.frames(&[7; PAGES]);
    world.merge_frames(region.pages(), &frames);
    assert_contents(&region, |_| 7);
    world.written(region.pages());
    region.write(5 * PAGE_SIZE, &page_of(8)).unwrap();
    assert_eq!(world.written(region.pages()), [written_of(sub(&region, 5..6), Kind::Private)]);
    let mut frame = [0; PAGE_SIZE];
    world.pools.read(frames.start.plus(5), &mut frame);
    assert!(frame == page_of(7), "the frame must not change");
    assert_content(&region, 5, 8);
    // And is a candidate again like any other.
    let other = world.frames(&[8]);
    assert_eq!(world.merge_frames(sub(&region, 5..6), &other), [Outcome::Merged]);
    assert_eq!(world.memory.pages_made_mergeable(), 1);
    assert_contents(&region, |page| if page == 5 { 8 } else { 7 });
}

#[test]
fn s3_6_a_write_never_read_before_is_seen_too() {
    let Some(world) = World::new() else { return };
    let region = world.region(PAGES, |_| 7);
    let frames = world.frames(&[7; PAGES]);
    world.written(region.pages());
    world.merge_frames(region.pages(), &frames);
    region.write(9 * PAGE_SIZE, &page_of(8)).unwrap();
    let written = world.written(region.pages());
    assert_eq!(written, [written_of(sub(&region, 9..10), Kind::Private)]);
}

#[test]
fn s3_2_zero_pages() {
    let Some(world) = World::new() else { return };
    let region = world.region(PAGES, |page| u64::from(page == 40));
    let outcomes = world.merge(region.pages(), Target::Zero);
    for (page, outcome) in outcomes.iter().enumerate() {
        let wanted = if page == 40 { Outcome::Differs } else { Outcome::Merged };
        assert_eq!(*outcome, wanted, "page {page}");
    }
    assert_eq!(mappings_of(&region), 1);
    assert_contents(&region, |page| u64::from(page == 40));
    assert_eq!(
        world.written(region.pages()),
        [
            written_of(sub(&region, 0..40), Kind::Zero),
            written_of(sub(&region, 40..41), Kind::Private),
            written_of(sub(&region, 41..64), Kind::Zero),
        ]
    );
    region.write(PAGE_SIZE, &page_of(3)).unwrap();
    assert_eq!(world.written(region.pages()), [written_of(sub(&region, 1..2), Kind::Private)]);
    world.memory.unmerge(&[region.pages()]).unwrap();
    assert_eq!(
        world.written(region.pages()),
        [
            written_of(sub(&region, 0..1), Kind::Private),
            written_of(sub(&region, 2..40), Kind::Private),
            written_of(sub(&region, 41..64), Kind::Private),
        ]
    );
    assert_contents(&region, |page| match page {
        1 => 3,
        40 => 1,
        _ => 0,
    });
}

#[test]
fn a_page_of_zeros_can_be_merged_with_a_frame() {
    let Some(world) = World::new() else { return };
    let region = world.region(PAGES, |_| 0);
    world.merge(region.pages(), Target::Zero);
    let frames = world.frames(&[0; PAGES]);
    assert!(all(&world.merge_frames(region.pages(), &frames), Outcome::Merged));
    assert_contents(&region, |_| 0);
}

#[test]
fn never_touched_pages_are_not_reported_and_stay_untouched() {
    let Some(world) = World::new() else { return };
    let region = AnonymousRegion::new(4096 * PAGE_SIZE).unwrap();
    world.memory.register(region.pages()).unwrap();
    let tables = |()| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmPTE:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = tables(());
    assert_eq!(world.written(region.pages()), []);
    assert!(tables(()) <= before + 64, "page tables were allocated for nothing");
    region.write(100 * PAGE_SIZE, &page_of(3)).unwrap();
    assert_eq!(world.written(region.pages()), [written_of(sub(&region, 100..101), Kind::Private)]);
    // Holes in a run are told, and what is between them is merged.
    region.write(102 * PAGE_SIZE, &page_of(3)).unwrap();
    let frames = world.frames(&[3; 8]);
    let outcomes = world.merge_frames(sub(&region, 98..106), &frames);
    let wanted = |page| if page == 2 || page == 4 { Outcome::Merged } else { Outcome::Gone };
    assert_eq!(outcomes, (0..8).map(wanted).collect::<Vec<_>>());
    assert_content(&region, 100, 3);
    assert_content(&region, 99, 0);
    assert_content(&region, 102, 3);
    let resident = world.written(region.pages()).len();
    assert!(resident <= 3, "{resident}");
}

#[test]
fn written_stops_at_the_limit_and_goes_on() {
    let Some(world) = World::new() else { return };
    let region = world.region(PAGES, unique);
    let mut out = Vec::new();
    let pages = region.pages();
    let end = world.memory.written(pages.clone(), 10, &mut out).unwrap();
    assert_eq!(out, [written_of(sub(&region, 0..10), Kind::Private)]);
    assert_eq!(end, sub(&region, 10..11).start);
    let end = world.memory.written(end..pages.end, u64::MAX, &mut out).unwrap();
    assert_eq!(end, pages.end);
    assert_eq!(out.iter().map(|w| w.pages.end.0 - w.pages.start.0).sum::<u64>(), 64);
    assert_eq!(world.written(pages), []);
}

#[test]
fn read_passes_on_runs_one_after_the_other() {
    let Some(world) = World::new() else { return };
    let region = world.region(PAGES, unique);
    let mut read = Vec::new();
    let scattered = [sub(&region, 9..10), sub(&region, 2..4)];
    world.memory.read(&scattered, &mut |content| read.push(*content)).unwrap();
    assert!(read == [9, 2, 3].map(|page| page_of(unique(page))));
}

#[test]
fn s1_1_transparent_huge_pages() {
    let Some(world) = World::new() else { return };
    let region = AnonymousRegion::new(8 << 20).unwrap();
    // SAFETY: advice on memory that this test owns.
    let advised =
        unsafe { libc::madvise(region.as_ptr().cast(), region.len(), libc::MADV_HUGEPAGE) };
    assert_eq!(advised, 0);
    let content = |page: usize| (page / 3) as u64 + 1;
    for page in 0..2048 {
        region.write(page * PAGE_SIZE, &page_of(content(page))).unwrap();
    }
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    if !smaps.lines().any(|line| line.starts_with("AnonHugePages:") && !line.contains(" 0 kB")) {
        println!("SKIPPED: the machine gave no huge pages");
        return;
    }
    world.memory.register(region.pages()).unwrap();
    world.written(region.pages());
    let frames = world.frames(&(0..2048).map(content).collect::<Vec<_>>());
    for first in [700, 3, 1500, 1501, 1024] {
        let frames = frames.start.plus(first as u64)..frames.end;
        let outcomes = world.merge_frames(sub(&region, first..first + 1), &frames);
        assert_eq!(outcomes, [Outcome::Merged]);
    }
    assert_contents(&region, content);
    assert!(all(&world.merge_frames(region.pages(), &frames), Outcome::Merged));
    assert_contents(&region, content);
    assert_eq!(mappings_of(&region), 1);
    world.memory.unmerge(&[region.pages()]).unwrap();
    assert_contents(&region, content);
    assert_eq!(mappings_of(&region), 1);
    assert!(all(&world.merge_frames(region.pages(), &frames), Outcome::Merged));
}

#[test]
fn unmerging_scattered_pages_gives_the_mappings_back() {
    let Some(world) = World::new() else { return };
    let region = world.region(1000, |_| 7);
    let frames = world.frames(&[7]);
    for page in (0..1000).step_by(2) {
        assert_eq!(world.merge_frames(sub(&region, page..page + 1), &frames), [Outcome::Merged]);
    }
    assert!(mappings_of(&region) >= 1000);
    for page in (0..1000).step_by(4) {
        region.write(page * PAGE_SIZE, &page_of(page as u64 + 10)).unwrap();
    }
    world.memory.unmerge(&[region.pages()]).unwrap();
    world.pools.free(&[frames.start]);
    assert!(mappings_of(&region) <= 4, "{}", mappings_of(&region));
    assert_contents(&region, |page| if page % 4 == 0 { page as u64 + 10 } else { 7 });
    assert_eq!(world.memory.pages_left_in_file_mapping(), 0);
}

#[test]
fn register_refuses_what_it_can_not_keep() {
    let Some(world) = World::new() else { return };
    let region = AnonymousRegion::new(16 * PAGE_SIZE).unwrap();
    let advise = |advice| {
        // SAFETY: advice on memory that this test owns and does not use.
        let result = unsafe { libc::madvise(region.as_ptr().cast(), region.len(), advice) };
        assert_eq!(result, 0);
    };
    for (set, unset, name) in [
        (libc::MADV_SEQUENTIAL, libc::MADV_NORMAL, "VmFlags sr"),
        (libc::MADV_WIPEONFORK, libc::MADV_KEEPONFORK, "MADV_WIPEONFORK"),
    ] {
        advise(set);
        let message = world.memory.register_range(region.pages()).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
        advise(unset);
    }
    // SAFETY: locks memory that this test owns.
    let locked = unsafe { libc::mlock(region.as_ptr().cast(), PAGE_SIZE) };
    if locked == 0 {
        let message = world.memory.register_range(region.pages()).unwrap_err().to_string();
        assert!(message.contains("mlock"), "{message}");
        // SAFETY: unlocks it.
        unsafe { libc::munlock(region.as_ptr().cast(), PAGE_SIZE) };
    }
    world.memory.register_range(region.pages()).unwrap();
}

#[test]
fn register_takes_only_private_anonymous_memory() {
    let Some(world) = World::new() else { return };
    let region = AnonymousRegion::new(16 * PAGE_SIZE).unwrap();
    let mut beyond = region.pages();
    beyond.end = beyond.end.plus(1);
    assert!(matches!(world.memory.register(beyond), Err(MemoryError::NotMergeable(_))));
    world.memory.register(region.pages()).unwrap();
    assert!(matches!(
        world.memory.register_range(sub(&region, 3..4)),
        Err(Error::NotAnonymous { .. })
    ));
    world.memory.unregister(region.pages()).unwrap();
    world.memory.register(region.pages()).unwrap();
}

#[test]
fn pages_not_registered_are_left_alone() {
    let Some(world) = World::new() else { return };
    let region = AnonymousRegion::new(16 * PAGE_SIZE).unwrap();
    region.write(0, &page_of(3)).unwrap();
    let frames = world.frames(&[3]);
    assert_eq!(world.merge_frames(sub(&region, 0..1), &frames), [Outcome::Gone]);
    assert_content(&region, 0, 3);
}

#[test]
fn mappings_are_counted() {
    let Some(world) = World::new() else { return };
    let mappings = world.memory.mappings().unwrap();
    assert!(mappings.used > 10);
    assert!(mappings.limit > mappings.used);
}

#[test]
fn s1_1_a_frame_nobody_has_looked_at_is_still_a_frame() {
    let Some(world) = World::new() else { return };
    let region = AnonymousRegion::new(8 * PAGE_SIZE).unwrap();
    world.memory.register(region.pages()).unwrap();
    for page in 0..6 {
        region.write(page * PAGE_SIZE, &page_of(if page == 5 { 0 } else { 7 })).unwrap();
    }
    let frames = world.frames(&[7; 4]);
    assert!(all(&world.merge_frames(sub(&region, 0..4), &frames), Outcome::Merged));
    assert!(all(&world.merge(sub(&region, 5..6), Target::Zero), Outcome::Merged));
    let kinds = || {
        let mut out = Vec::new();
        world.memory.kinds(&[region.pages()], &mut out).unwrap();
        out
    };
    let (frame, private, zero) = (Some(Kind::Frame), Some(Kind::Private), Some(Kind::Zero));
    assert_eq!(kinds(), [frame, frame, frame, frame, private, zero, None, None]);
    assert_content(&region, 1, 7);
    region.write(2 * PAGE_SIZE, &page_of(8)).unwrap();
    assert_eq!(kinds(), [frame, frame, private, frame, private, zero, None, None]);
    // The kernel's way to take an unused page out of a program's view.
    // SAFETY: advice on memory that this test owns; changes no content.
    unsafe { libc::madvise(region.as_ptr().cast(), 4 * PAGE_SIZE, libc::MADV_PAGEOUT) };
    assert_eq!(kinds(), [frame, frame, private, frame, private, zero, None, None]);
    world.written(region.pages());
    // SAFETY: as above.
    unsafe { libc::madvise(region.as_ptr().cast(), 4 * PAGE_SIZE, libc::MADV_PAGEOUT) };
    assert_eq!(kinds(), [frame, frame, private, frame, private, zero, None, None]);
    assert_eq!(world.written(region.pages()), []);
    assert_content(&region, 1, 7);
    assert_content(&region, 2, 8);
}

#[test]
fn islands_are_joined_again() {
    let Some(world) = World::new() else { return };
    let region = world.region(1000, unique);
    let frames = world.frames(&(0..1000).map(unique).collect::<Vec<_>>());
    assert!(all(&world.merge_frames(region.pages(), &frames), Outcome::Merged));
    for page in (1..999).step_by(2) {
        world.memory.unmerge(&[sub(&region, page..page + 1)]).unwrap();
    }
    assert!(mappings_of(&region) > 900);
    world.memory.unmerge(&[region.pages()]).unwrap();
    assert!(mappings_of(&region) <= 2, "{}", mappings_of(&region));
    assert_contents(&region, unique);
    assert!(all(&world.merge_frames(region.pages(), &frames), Outcome::Merged));
}

#[test]
fn s3_6_ranges_mostly_written_to_become_anonymous_again() {
    let Some(world) = World::new() else { return };
    let region = world.region(1000, unique);
    // Cut into small mappings, as pages merged at different times are: no frames side by side.
    let frames = world.frames(&(0..1000).map(|n| unique(n * 7 % 1000)).collect::<Vec<_>>());
    let merge_again = |page: usize| {
        let frame = frames.start.plus((page * 143 % 1000) as u64);
        world.merge(sub(&region, page..page + 1), Target::Frames(frame)) == [Outcome::Merged]
    };
    assert!((0..1000).all(merge_again));
    assert_eq!(mappings_of(&region), 1000);
    world.written(region.pages());
    // Four in five of the first half, one in five of the second.
    let is_broken = |page: usize| (page < 500) != page.is_multiple_of(5);
    let content =
        |page: usize| if is_broken(page) { 1_000_000 + unique(page) } else { unique(page) };
    (0..1000).filter(|page| is_broken(*page)).for_each(|page| {
        region.write(page * PAGE_SIZE, &page_of(content(page))).unwrap();
    });
    assert_contents(&region, content);

    // Wherever it is cut into pieces to be judged: this lies in pieces of the first half that are long enough to have
    // three in four broken, that in pieces of the second.
    let (mended, kept) = (20..240, 760..1000);
    let are = |pages: std::ops::Range<usize>, wanted: Kind| {
        let mut kinds = Vec::new();
        world.memory.kinds(&[sub(&region, pages)], &mut kinds).unwrap();
        kinds.iter().filter(|kind| **kind == Some(wanted)).count()
    };
    while are(mended.clone(), Kind::Frame) > 0 {
        world.memory.mend_if_due();
        std::thread::yield_now();
    }
    assert_contents(&region, content);
    assert_eq!(are(kept.clone(), Kind::Frame), kept.filter(|page| !is_broken(*page)).count());
    let written: u64 = world
        .written(sub(&region, mended.clone()))
        .iter()
        .map(|found| found.pages.end.0 - found.pages.start.0)
        .sum();
    assert_eq!(written, 220, "the engine has to hear of each");
    assert_eq!(mappings_in(&region, mended.clone()), 1);
    mended.clone().for_each(|page| region.write(page * PAGE_SIZE, &page_of(unique(page))).unwrap());
    assert!(mended.into_iter().all(merge_again));
}
