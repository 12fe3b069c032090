//! A page and a frame with its content that come at a time.
#![cfg(loom)]

use numerge_loom_tests::check;
use numerge_loom_tests::meet::run;
use numerge_loom_tests::world::Start;
use numerge_stable_tree::Kpfn;

#[test]
fn a_page_meets_the_first_frame_of_its_content() {
    check("a page and the first frame", None, || run(Start::Regular, Kpfn(4)));
}

#[test]
fn a_page_meets_a_frame_where_all_others_are_full() {
    check("a page and one more frame", Some(4), || run(Start::Full, Kpfn(7)));
}
