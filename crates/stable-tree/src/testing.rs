//! What the tests of several modules use.

use crate::{Fingerprint, Forest, Guard, Kpfn, Siblings, Terms, TreeId};

pub(crate) const T0: TreeId = TreeId(0);
pub(crate) const T1: TreeId = TreeId(1);

/// The fingerprint of content `n`; different contents are scattered as real ones are.
pub(crate) fn fp(n: u64) -> Fingerprint {
    // MurmurHash3's finaliser is a bijection.
    let mut x = n;
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^= x >> 33;
    Fingerprint::new(u128::from(x) << 56)
}

pub(crate) fn look<'g>(forest: &Forest, guard: &'g Guard<'_>, content: u64) -> Siblings<'g> {
    forest.siblings(T0, fp(content), guard)
}

/// Puts frames with so many sharers each in the first tree, all of one content. The frames'
/// numbers are the next that are free.
pub(crate) fn chain_of(forest: &Forest, guard: &Guard<'_>, content: u64, shares: &[u32]) {
    let first = (0..).map(Kpfn).find(|&kpfn| forest.sharers(kpfn) == 0).expect("a free number");
    for (kpfn, &shares) in (first.0..).map(Kpfn).zip(shares) {
        forest.create(kpfn, shares);
        let seen = look(forest, guard, content);
        let entered = match seen.iter().next() {
            None => forest.insert(guard, &seen, kpfn),
            Some(entry) => forest.add_dup(guard, entry, kpfn),
        };
        assert_eq!(entered, Ok(()));
    }
}

pub(crate) fn terms(limit: u32, now_ms: u32, prune_ms: u32) -> Terms {
    Terms { limit, now_ms, prune_ms }
}
