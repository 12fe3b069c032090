//! The index of merged content: the stable tree and what belongs to it.

mod buckets;
mod census;
mod dups;
mod figures;
mod forest;
mod head;
mod ids;
mod list;
mod migrate;
mod node;
mod pages;
mod range;
mod record;
mod refs;
pub mod rmap;
mod shares;
pub mod sync;
mod table;
#[cfg(all(test, not(loom)))]
mod testing;
mod tree;
mod unstable;

pub use census::Census;
pub use forest::Forest;
pub use ids::{Fingerprint, Kpfn, PageId, TreeId};
pub use migrate::Queued;
pub use pages::{PageTable, Slot, TooManyPages};
pub use range::Closing;
pub use record::{PageState, Record, Records, ShortFingerprint};
pub use refs::{EntryRef, Place, Refused, Siblings};
pub use shares::Terms;
pub use sync::epoch::{Guard, Handle};
pub use tree::MAX_SIBLINGS;
pub use unstable::UnstableTree;
