//! Connections between real sockets, with real descriptors.

#[path = "../common/mod.rs"]
mod common;
mod listening;
mod messages;
mod peers;
