//! The index of merged content: the stable tree and what belongs to it.

mod head;
mod ids;
mod pages;
mod record;
pub mod rmap;
mod unstable;
mod buckets;
mod census;
mod dups;
mod figures;
mod forest;
mod list;
mod migrate;
mod node;
mod range;
mod refs;
mod shares;
mod table;
#[cfg(all(test, not(loom)))]
mod testing;
mod tree;
pub mod sync;

pub use ids::{Fingerprint, Kpfn, PageId, TreeId};
pub use pages::{PageTable, Slot, TooManyPages};
pub use record::{PageState, Record, Records, ShortFingerprint};
pub use unstable::UnstableTree;
pub use census::Census;
pub use forest::Forest;
pub use migrate::Queued;
pub use range::Closing;
pub use refs::{EntryRef, Place, Refused, Siblings};
pub use shares::Terms;
pub use sync::epoch::{Guard, Handle};
pub use tree::MAX_SIBLINGS;
