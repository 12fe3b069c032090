//! numerge.
fn main() {}
