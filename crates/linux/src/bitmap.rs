//! Which frames of one pool file are in use: a bit each, searched from where the last search ended.

use std::ops::Range;

/// A set of numbers below a fixed length, handed out in runs.
#[derive(Debug)]
pub(crate) struct Bitmap {
    words: Box<[u64]>,
    len: usize,
    free: usize,
    cursor: usize,
}

impl Bitmap {
    /// All free.
    pub(crate) fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)].into_boxed_slice(), len, free: len, cursor: 0 }
    }

    /// How many are not in use.
    pub(crate) const fn free(&self) -> usize {
        self.free
    }

    /// Bytes of memory it takes.
    pub(crate) const fn bytes(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }

    /// Takes a run of up to `count` free numbers: of that length if there is one, else the longest
    /// there is. None if all are in use.
    pub(crate) fn take(&mut self, count: usize) -> Option<Range<usize>> {
        if count == 0 || self.free == 0 {
            return None;
        }
        let after = self.longest(self.cursor..self.len, count);
        let best = match after {
            Some(run) if run.len() == count => run,
            // Begin again at 0, and a little beyond the cursor for runs that span it.
            _ => {
                let end = self.cursor.saturating_add(count).min(self.len);
                let before = self.longest(0..end, count);
                [after, before].into_iter().flatten().max_by_key(Range::len)?
            }
        };
        self.set(best.clone(), true);
        self.cursor = best.end % self.len;
        Some(best)
    }

    /// Gives a run back that [`take`](Self::take) handed out.
    pub(crate) fn give_back(&mut self, run: Range<usize>) {
        self.set(run, false);
    }

    /// Whether a number is in use.
    pub(crate) fn contains(&self, number: usize) -> bool {
        self.words.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// The first run of `count` free numbers in `range`, or the longest shorter one.
    fn longest(&self, range: Range<usize>, count: usize) -> Option<Range<usize>> {
        let mut best: Option<Range<usize>> = None;
        let mut at = range.start;
        while let Some(start) = self.next(at, range.end, false) {
            let limit = start.saturating_add(count).min(range.end);
            let end = self.next(start, limit, true).unwrap_or(limit);
            if best.as_ref().is_none_or(|run| run.len() < end - start) {
                best = Some(start..end);
            }
            if end - start == count {
                break;
            }
            at = end;
        }
        best
    }

    /// The first number in `at..end` that is in use, or not.
    fn next(&self, mut at: usize, end: usize, used: bool) -> Option<usize> {
        while at < end {
            let word = self.words[at / 64];
            let wanted = if used { word } else { !word } >> (at % 64);
            if wanted != 0 {
                let found = at + wanted.trailing_zeros() as usize;
                return (found < end).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    fn set(&mut self, run: Range<usize>, used: bool) {
        for number in run {
            let (word, bit) = (number / 64, 1_u64 << (number % 64));
            debug_assert_eq!(self.words[word] & bit == 0, used, "taken or given back twice");
            if used {
                self.words[word] |= bit;
                self.free -= 1;
            } else {
                self.words[word] &= !bit;
                self.free += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_adjacent_runs() {
        let mut map = Bitmap::new(256);
        assert_eq!(map.take(100), Some(0..100));
        assert_eq!(map.take(100), Some(100..200));
        assert_eq!(map.take(100), Some(200..256), "the rest, in one piece");
        assert_eq!(map.take(1), None);
        assert_eq!(map.free(), 0);
        map.give_back(50..60);
        map.give_back(120..150);
        assert_eq!(map.take(30), Some(120..150), "the run that fits");
        assert_eq!(map.take(30), Some(50..60), "the longest there is");
        assert!(map.contains(50));
    }

    #[test]
    fn finds_runs_across_words_and_the_cursor() {
        let mut map = Bitmap::new(192);
        assert_eq!(map.take(192), Some(0..192));
        map.give_back(60..70);
        map.give_back(120..140);
        assert_eq!(map.take(10), Some(60..70));
        assert_eq!(map.take(20), Some(120..140));
        map.give_back(130..150 - 10);
        assert_eq!(map.take(64), Some(130..140));
    }
}
