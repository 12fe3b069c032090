//! The numbers that name things, each a type of its own so that none is taken for another.

use core::fmt;

/// Number of a frame: a page of a frame pool that several pages may be mapped to.
///
/// The kernel calls the page frame number of a KSM page its `kpfn`; here it is the number the frame
/// pools gave it. It has at most [`Kpfn::BITS`] bits, and numbers in use should be dense, for
/// records of frames are reached by index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Kpfn(pub u64);

impl Kpfn {
    /// Width of a frame number in a page record.
    pub const BITS: u32 = 36;

    /// The frame `n` places further on in the same pool.
    #[must_use]
    pub const fn plus(self, n: u64) -> Self {
        Self(self.0 + n)
    }
}

/// Number of a tracked page, unique in an engine while its region is registered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageId(pub u64);

impl PageId {
    /// Width of a page number in a page record: 256 TiB of tracked memory.
    pub const BITS: u32 = 36;
}

/// Which of the engine's stable trees a stable node belongs to: one for each NUMA node, or the
/// first for all of them under `merge_across_nodes=1` (the kernel's `stable_node->nid`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TreeId(pub u16);

/// Keyed hash of a page's content: 120 bits, a filter and never a proof.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u128);

impl Fingerprint {
    /// Bits of a fingerprint. The rest of a 16-byte page record is the page's state.
    pub const BITS: u32 = 120;

    /// Takes the low 120 bits of a hash.
    #[must_use]
    pub const fn new(hash: u128) -> Self {
        Self(hash & ((1 << Self::BITS) - 1))
    }

    /// The fingerprint as a number below 2^120.
    #[must_use]
    pub const fn get(self) -> u128 {
        self.0
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:030x}", self.0)
    }
}
