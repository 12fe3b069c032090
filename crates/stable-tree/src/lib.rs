//! The index of merged content: the stable tree and what belongs to it.

mod ids;

pub use ids::{Fingerprint, Kpfn, PageId, TreeId};
