//! Numbers that must not be taken for one another.

use serde::{Deserialize, Serialize};

/// Virtual page number: an address of the client divided by the page size.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Vpn(pub u64);

/// The number of a frame: `file number * 2^18 + page in the file`.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Kpfn(pub u64);

/// The client's number of a region.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct RegionId(pub u64);

/// The engine's number of a question, which the answer repeats.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Sequence(pub u64);

/// The number of an error, as in errno(3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Errno(pub u16);

/// Adjacent pages of the client.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Span {
    /// The first page.
    pub start: Vpn,
    /// How many there are, at least one.
    pub pages: u64,
}
