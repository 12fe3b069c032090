//! Three operations at once, where two of them can meet in the middle of the third.
//!
//! The number is how many switches away from a thread that could have gone on are explored: 2, or 1
//! where that would take many minutes.
#![cfg(loom)]

use numerge_loom_tests::check;
use numerge_loom_tests::ops::{Op, run};
use numerge_loom_tests::world::Start;

macro_rules! threes {
    ($($name:ident: $start:ident $a:ident $b:ident $c:ident $preemptions:literal,)*) => {
        $(
            #[test]
            fn $name() {
                let ops = [Op::$a, Op::$b, Op::$c];
                let name = format!("{ops:?}, {:?}", Start::$start);
                check(&name, Some($preemptions), move || run(Start::$start, &ops));
            }
        )*
    };
}

threes! {
    // The last share goes while others join, look, or add frames.
    last_share_against_two_takers: Regular GiveUp Take Hit 2,
    last_share_against_a_dup_and_a_lookup: Regular GiveUp AddDup Hit 2,
    last_share_against_two_dups: Regular GiveUp AddDup AddDup 1,
    last_shares_of_two_frames_and_a_dup: Chain GiveUp Visit AddDup 2,
    frames_that_come_and_go: Regular GiveUp Brief Brief 1,
    // An entry is erased while the list changes around it.
    erase_between_two_inserts: Regular GiveUp Insert InsertSibling 2,
    erase_beside_a_new_sibling_s_twins: Regular GiveUp InsertSibling InsertSibling 1,
    erase_while_the_table_doubles: Regular GiveUp Grow FirstUse 2,
    two_doublings_and_a_lookup: Regular Grow Grow FirstUse 2,
    insert_while_the_table_doubles: Regular Insert Grow Miss 2,
    // Chains.
    prune_while_dups_come_and_go: Chain Prune GiveUp AddDup 2,
    prune_twice_and_give_up: Chain Prune Prune GiveUp 2,
    room_comes_back_in_a_full_chain: Full GiveUp Hit Hit 2,
    room_comes_back_twice: Full GiveUp GiveUp Hit 2,
    // The migrate queue.
    queue_against_last_share_and_lookup: Regular ToQueue GiveUp Hit 2,
    queue_against_last_share_and_placing: Regular ToQueue GiveUp PlaceThere 2,
    placing_against_last_share_and_prune: Chain Place GiveUp Prune 2,
    queue_and_placing_of_one_content: Regular ToQueue Place AddDup 1,
    two_migrations_of_one_frame: Regular ToQueue PlaceThere ToQueue 2,
    two_migrations_and_a_lookup: Regular ToQueue ToQueue Hit 2,
    a_migration_against_a_range_and_last_share: Regular ToQueue Collect GiveUp 2,
    placing_against_a_prune_and_a_lookup: Chain PlaceThere Prune Hit 2,
    // Ranges.
    a_range_against_insert_and_erase: Regular Collect Insert GiveUp 2,
    a_range_against_placing_and_dup: Regular Collect Place AddDup 2,
    // A frame is used again while someone may still look at it.
    reuse_against_last_share_and_lookup: Regular Reuse GiveUp Hit 2,
}
