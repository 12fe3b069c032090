//! What holds on any machine with two nodes or more that have memory.

pub(crate) mod locality;
mod merging;
mod migration;
pub(crate) mod offline;
mod pins;
mod program;
mod shown;
