//! Out of mappings. One test a process: it takes nearly all the mappings there are.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{World, assert_contents, page_of, sub};
use numerge_engine::machine::{Memory, Outcome, PAGE_SIZE};

/// Takes all mappings but `spare`, by protecting every other page of a large one.
fn use_up(world: &World, spare: u64) -> (*mut libc::c_void, usize) {
    let mappings = world.memory.mappings().unwrap();
    let len = 2 * PAGE_SIZE * usize::try_from(mappings.limit).unwrap();
    // SAFETY: a mapping of our own, never accessed.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(base, libc::MAP_FAILED);
    let mut page = base.cast::<u8>();
    let splits = (mappings.limit - mappings.used - 1 - spare) / 2;
    for _ in 0..splits {
        page = page.wrapping_add(2 * PAGE_SIZE);
        // SAFETY: within the mapping above.
        if unsafe { libc::mprotect(page.cast(), PAGE_SIZE, libc::PROT_READ) } != 0 {
            break;
        }
    }
    (base, len)
}

#[test]
fn s6_out_of_mappings_everything_is_intact() {
    let Some(world) = World::new() else { return };
    const PAGES: usize = 64;
    let region = world.region(PAGES, |page| page as u64 + 1);
    let contents: Vec<_> = (0..PAGES).map(|page| page as u64 + 1).collect();
    let frames = world.frames(&contents);
    for page in [8, 10, 12, 14, 16] {
        let frames = frames.start.plus(page as u64)..frames.end;
        assert_eq!(world.merge_frames(sub(&region, page..page + 1), &frames), [Outcome::Merged]);
    }
    let mut exhausted = 0;
    for spare in [0, 1, 2, 3, 4, 5, 6, 8] {
        let (base, len) = use_up(&world, spare);
        for page in (21..PAGES - 1).step_by(2) {
            let frames = frames.start.plus(page as u64)..frames.end;
            let outcome = world.merge_frames(sub(&region, page..page + 1), &frames);
            exhausted += usize::from(outcome == [Outcome::Exhausted]);
            assert!(outcome == [Outcome::Exhausted] || outcome == [Outcome::Merged], "{outcome:?}");
        }
        assert_contents(&region, |page| page as u64 + 1);
        // Unmerging needs mappings too; without them it copies in place.
        world.memory.unmerge(&[sub(&region, 8..9)]).unwrap();
        world.memory.unmerge(&[sub(&region, 9..PAGES)]).unwrap();
        assert_contents(&region, |page| page as u64 + 1);
        let left = world.memory.pages_left_in_file_mapping();
        println!("spare {spare}: {exhausted} exhausted so far, {left} left");
        // SAFETY: the mapping that use_up made.
        unsafe { libc::munmap(base, len) };
        world.memory.unmerge(&[region.pages()]).unwrap();
        assert_eq!(world.memory.pages_left_in_file_mapping(), 0);
        world.written(region.pages());
        region.write(30 * PAGE_SIZE, &page_of(31)).unwrap();
        assert_eq!(world.written(region.pages()).len(), 1);
    }
    assert!(exhausted > 0);
    assert_eq!(world.memory.pages_untracked(), 0);
    assert!(common::mappings_of(&region) < 8);
    let frames = world.frames(&contents);
    assert!(common::all(&world.merge_frames(region.pages(), &frames), Outcome::Merged));
    assert_contents(&region, |page| page as u64 + 1);
}
