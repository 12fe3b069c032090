//! The merging engine.

pub mod machine;
