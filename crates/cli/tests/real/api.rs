//! The library as programs use it.

use numerge::{AllocateError, Knob, KnobError};

use crate::bed::{holds, merger, settle, write};

#[test]
fn s5_3_dropping_a_region_or_the_merger_leaves_private_memory() {
    let Some(merger) = merger() else { return };
    let (kept, dropped) =
        (merger.allocate(64 * 4096).unwrap(), merger.allocate(64 * 4096).unwrap());
    (0..64).for_each(|page| write(&kept, page, 5));
    (0..64).for_each(|page| write(&dropped, page, 5));
    merger.set(Knob::Run, 1).unwrap();
    assert_eq!(settle(&merger).pages_sharing, 127);
    drop(dropped);
    let c = settle(&merger);
    assert_eq!((c.pages_sharing, c.pages_registered), (63, 64));
    merger.shut_down().unwrap();
    assert!((0..64).all(|page| holds(&kept, page, 5)));
    write(&kept, 3, 6);
    assert!(holds(&kept, 3, 6) && holds(&kept, 4, 5));
    let private = kept.into_private().map_err(|(_, error)| error).unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let start = format!("{:x}-", private.as_ptr().addr());
    let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
    assert!(!line.contains("memfd"), "{line}");
}

#[test]
fn memory_that_the_program_has_can_be_registered() {
    let Some(merger) = merger() else { return };
    let mut own = memmap2::MmapMut::map_anon(32 * 4096).unwrap();
    own.fill(3);
    let start = own.as_mut_ptr();
    // SAFETY: the mapping outlives the registration and is not changed meanwhile.
    let registration = unsafe { merger.register(start, 32 * 4096) }.unwrap();
    // SAFETY: refused, so that nothing is promised.
    let again = unsafe { merger.register(start.wrapping_add(1), 4096) };
    assert!(matches!(again, Err(AllocateError::Unaligned { .. })));
    merger.set(Knob::Run, 1).unwrap();
    assert_eq!(settle(&merger).pages_sharing, 31);
    drop(registration);
    assert_eq!(merger.counters().pages_registered, 0);
    assert!(own.iter().all(|byte| *byte == 3));
}

#[test]
fn s5_4_knobs_refuse_what_they_must() {
    let Some(merger) = merger() else { return };
    assert!(matches!(merger.set(Knob::Run, 9), Err(KnobError::Invalid { value: 9, .. })));
    let region = merger.allocate(8 * 4096).unwrap();
    (0..8).for_each(|page| write(&region, page, 5));
    merger.set(Knob::Run, 1).unwrap();
    settle(&merger);
    assert!(matches!(merger.set(Knob::MaxPageSharing, 7), Err(KnobError::Busy { .. })));
    assert!(matches!(merger.set(Knob::MergeAcrossNodes, 0), Err(KnobError::Busy { .. })));
    merger.set(Knob::Run, 2).unwrap();
    merger.set(Knob::MaxPageSharing, 7).unwrap();
}

#[test]
fn a_region_too_large_is_an_error() {
    let Some(merger) = merger() else { return };
    let error = merger.allocate(usize::MAX / 2).err().unwrap();
    assert!(matches!(error, AllocateError::Map { .. }), "{error}");
    assert_eq!(merger.counters().pages_registered, 0);
}
