//! Keyed fingerprints of pages.
//!
//! XXH3 with 128 bits and a secret of random bytes that is the domain's own (S1.3): which contents
//! collide can't be worked out without it. A fingerprint is a filter all the same; what it lets
//! through is compared byte for byte before anything is merged.

use numerge_stable_tree::Fingerprint;
use twox_hash::xxhash3_128::{DEFAULT_SECRET_LENGTH, Hasher};

use crate::machine::PAGE_SIZE;

/// Hashes pages with one domain's secret.
pub struct Fingerprinter {
    secret: [u8; DEFAULT_SECRET_LENGTH],
    /// Of a page of zeros.
    pub(crate) zero: Fingerprint,
    /// How many bits of the hash are used: all, but for tests of collisions.
    mask: u128,
}

impl Fingerprinter {
    /// A new secret from the system.
    pub(crate) fn new(bits: u32) -> Result<Self, getrandom::Error> {
        let mut secret = [0; DEFAULT_SECRET_LENGTH];
        getrandom::fill(&mut secret)?;
        let bits = bits.min(Fingerprint::BITS);
        let mask = ((1 << bits) - 1) << (Fingerprint::BITS - bits);
        let mut new = Self { secret, zero: Fingerprint::new(0), mask };
        new.zero = new.of(&[0; PAGE_SIZE]);
        Ok(new)
    }

    /// The fingerprint of a page's content.
    #[must_use]
    pub fn of(&self, content: &[u8; PAGE_SIZE]) -> Fingerprint {
        // The secret has the length the function asks for, so that it can't refuse it; were it to,
        // all pages would get one fingerprint, which merges nothing and harms nothing.
        let hash = Hasher::oneshot_with_secret(&self.secret, content).unwrap_or(0);
        Fingerprint::new(hash & self.mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s1_3_every_domain_has_its_own_fingerprints() {
        let (a, b) = (Fingerprinter::new(120).unwrap(), Fingerprinter::new(120).unwrap());
        let page = [7; PAGE_SIZE];
        assert_eq!(a.of(&page), a.of(&page));
        assert_ne!(a.of(&page), b.of(&page));
        assert_ne!(a.zero, b.zero);
        assert_ne!(a.of(&page), a.zero);
    }

    #[test]
    fn every_byte_counts() {
        let hasher = Fingerprinter::new(120).unwrap();
        let mut page = [0; PAGE_SIZE];
        for byte in 0..PAGE_SIZE {
            page[byte] = 1;
            assert_ne!(hasher.of(&page), hasher.zero, "byte {byte}");
            page[byte] = 0;
        }
    }
}
