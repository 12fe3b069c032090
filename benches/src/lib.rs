//! What the benches, `cold` and `make_images` share: numbers that look random and are the same
//! every time.

use numerge_engine::machine::PAGE_SIZE;

/// 2^64 / φ, odd: the step of splitmix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Scatters a number over 64 bits, one to one (the finalizer of splitmix64).
#[must_use]
pub const fn scatter(n: u64) -> u64 {
    let z = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Random numbers, the same for the same seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers of their own for each seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(scatter(seed))
    }

    /// Any number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        scatter(self.0)
    }

    /// A number below `limit`, which must not be 0 nor near 2^64.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Puts items in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = usize::try_from(self.below(last as u64 + 1)).unwrap_or(0);
            items.swap(last, other);
        }
    }
}

/// A page whose content no other `n` has, and that is not zeros.
///
/// Pages differ in their first bytes already, as in the cheapest case for an index that compares
/// pages.
#[must_use]
pub fn unique_page(n: u64) -> [u8; PAGE_SIZE] {
    let mut random = Random::new(n);
    let mut page = [0; PAGE_SIZE];
    for word in page.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_ne_bytes());
    }
    // The numbers above are different for different `n` but for chance; this makes it certain.
    page[..8].copy_from_slice(&scatter(n.wrapping_add(STEP)).to_ne_bytes());
    page
}

/// The middle one of the values, or the mean of the two in the middle; None if there are none.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn shuffles_keep_every_item() {
        let mut items: Vec<u32> = (0..1000).collect();
        Random::new(1).shuffle(&mut items);
        assert!(!items.is_sorted());
        items.sort_unstable();
        assert!(items.into_iter().eq(0..1000));
    }

    #[test]
    fn pages_differ() {
        assert_ne!(unique_page(1), unique_page(2));
        assert_eq!(unique_page(7), unique_page(7));
    }
}
