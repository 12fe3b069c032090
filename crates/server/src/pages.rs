//! Page ranges, as the protocol and as the engine have them.

use std::ops::Range;

use numerge_engine::machine::Vpn;
use numerge_linux::Ranges;
use numerge_protocol::{self as protocol, Span};

/// A range that was checked when it was received.
pub(crate) const fn range(span: Span) -> Range<Vpn> {
    Vpn(span.start.0)..Vpn(span.start.0 + span.pages)
}

pub(crate) const fn span(pages: &Range<Vpn>) -> Span {
    Span { start: protocol::Vpn(pages.start.0), pages: count(pages) }
}

pub(crate) const fn count(pages: &Range<Vpn>) -> u64 {
    pages.end.0.saturating_sub(pages.start.0)
}

pub(crate) fn overlap(a: &Range<Vpn>, b: &Range<Vpn>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The parts of `pages` that have a value, in order.
pub(crate) fn parts_in<'a, T: Copy + PartialEq>(
    ranges: &'a Ranges<T>,
    pages: &Range<Vpn>,
) -> impl Iterator<Item = (Range<Vpn>, T)> + use<'a, T> {
    let Range { start: mut at, end } = *pages;
    std::iter::from_fn(move || {
        let found = ranges.next_in(&(at..end))?;
        at = found.0.end;
        Some(found)
    })
}

/// The parts of `pages` that have none, in order.
pub(crate) fn gaps_in<T: Copy + PartialEq>(
    ranges: &Ranges<T>,
    pages: &Range<Vpn>,
) -> Vec<Range<Vpn>> {
    let (mut gaps, mut at) = (Vec::new(), pages.start);
    for (part, _) in parts_in(ranges, pages) {
        gaps.push(at..part.start);
        at = part.end;
    }
    gaps.push(at..pages.end);
    gaps.retain(|gap| gap.start < gap.end);
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_gaps_make_up_the_whole() {
        let mut ranges = Ranges::new();
        ranges.insert(Vpn(2)..Vpn(4), 'a');
        ranges.insert(Vpn(4)..Vpn(6), 'b');
        ranges.insert(Vpn(8)..Vpn(20), 'a');
        let all = Vpn(3)..Vpn(10);
        let parts: Vec<_> = parts_in(&ranges, &all).collect();
        let wanted = [(Vpn(3)..Vpn(4), 'a'), (Vpn(4)..Vpn(6), 'b'), (Vpn(8)..Vpn(10), 'a')];
        assert_eq!(parts, wanted);
        assert_eq!(gaps_in(&ranges, &all), [Vpn(6)..Vpn(8)]);
        assert_eq!(gaps_in(&ranges, &(Vpn(0)..Vpn(3))), [Vpn(0)..Vpn(2)]);
        assert_eq!(gaps_in(&Ranges::<()>::new(), &all), [all]);
    }
}
