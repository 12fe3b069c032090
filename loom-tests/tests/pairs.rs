//! Every operation against every operation, and against itself, on a regular node and on a chain.
#![cfg(loom)]

use numerge_loom_tests::check;
use numerge_loom_tests::ops::{ALL, Op, run};
use numerge_loom_tests::world::Start;

/// Switches away from a thread that could have gone on.
const PREEMPTIONS: usize = 3;

fn against_all_from_itself_on(op: Op) {
    let first = ALL.iter().position(|&other| other == op).expect("all are there");
    for &other in &ALL[first..] {
        for start in [Start::Regular, Start::Chain, Start::Full] {
            let name = format!("{op:?} and {other:?}, {start:?}");
            check(&name, Some(PREEMPTIONS), move || run(start, &[op, other]));
        }
    }
}

macro_rules! pairs {
    ($($name:ident: $op:ident,)*) => {
        $(
            #[test]
            fn $name() {
                against_all_from_itself_on(Op::$op);
            }
        )*
    };
}

pairs! {
    hit: Hit,
    miss: Miss,
    take: Take,
    insert: Insert,
    insert_sibling: InsertSibling,
    add_dup: AddDup,
    give_up: GiveUp,
    prune: Prune,
    to_queue: ToQueue,
    place: Place,
    place_there: PlaceThere,
    collect: Collect,
    grow: Grow,
    first_use: FirstUse,
    visit: Visit,
    brief: Brief,
    reuse: Reuse,
}
