//! Everything at once.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::engine::Engine;
use common::{can_merge, output, program, with_agent};

#[test]
fn s1_1_torture() {
    if !can_merge() {
        return;
    }
    let engine = Engine::new();
    let program = program("torture");
    let said = output(with_agent(&program, &engine.socket()).arg("5000"));
    let counts = engine.counts();
    println!("{said}{counts:?}");
    assert!(counts.merged > 0 && counts.gone > 0, "{counts:?}");
    assert_eq!(counts.lies, 0, "{counts:?}");
    engine.unmerge_too();
    println!("{}", output(with_agent(&program, &engine.socket()).arg("5000")));
    println!("{:?}", engine.counts());
}
