//! The sharers of a frame: a doubly linked list through the page records.
//!
//! From the frame to every page mapped to it in O(rmap length) (S2.7), which is what taking the
//! frame's memory away needs; and a page leaves in O(1), which is what a page that was written to
//! needs. The head, with its lock, is a field of the stable node.

use crate::head;
use crate::record::{Link, PageState, Records};
use crate::sync::AtomicU64;
use crate::{Kpfn, PageId};

/// Makes `page` an rmap item of `kpfn`, whose stable node's list head is `word`. True if it is the
/// first.
pub fn link(word: &AtomicU64, records: &(impl Records + ?Sized), kpfn: Kpfn, page: PageId) -> bool {
    let mut list = head::lock(word);
    let next = list.first;
    if let Some(next) = next {
        let record = records.record(next);
        record.set_merged(kpfn, Some(page), record.sharers().1);
    }
    records.record(page).set_merged(kpfn, None, next);
    list.first = Some(page);
    next.is_none()
}

/// Takes `page` out of the list it is in; its state is then `left`. True if it was the last.
pub fn unlink(
    word: &AtomicU64,
    records: &(impl Records + ?Sized),
    kpfn: Kpfn,
    page: PageId,
    left: PageState,
) -> bool {
    let mut list = head::lock(word);
    let record = records.record(page);
    debug_assert_eq!(record.state(), PageState::Merged(kpfn), "not an rmap item of this frame");
    let (previous, next) = record.sharers();
    match previous {
        Some(previous) => {
            let record = records.record(previous);
            record.set_merged(kpfn, record.sharers().0, next);
        }
        None => list.first = next,
    }
    if let Some(next) = next {
        let record = records.record(next);
        record.set_merged(kpfn, previous, record.sharers().1);
    }
    record.set(left);
    list.first.is_none()
}

/// Appends the pages mapped to a frame to `out`, until that has `most`.
pub fn sharers(
    word: &AtomicU64,
    records: &(impl Records + ?Sized),
    most: usize,
    out: &mut Vec<PageId>,
) {
    let list = head::lock(word);
    let mut next: Link = list.first;
    while let Some(page) = next.filter(|_| out.len() < most) {
        out.push(page);
        next = records.record(page).sharers().1;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Record;
    use crate::head::EMPTY;

    #[test]
    fn s2_7_sharers_are_walked_in_the_length_of_their_list_and_leave_one_by_one() {
        let records: Vec<Record> = (0..5).map(|_| Record::default()).collect();
        let (head, kpfn) = (AtomicU64::new(EMPTY), Kpfn(9));
        let walk = || {
            let mut pages = Vec::new();
            sharers(&head, &*records, usize::MAX, &mut pages);
            pages.iter().map(|page| page.0).collect::<Vec<_>>()
        };
        for n in 0..5 {
            assert_eq!(link(&head, &*records, kpfn, PageId(n)), n == 0);
        }
        assert_eq!(walk(), [4, 3, 2, 1, 0]);
        for (gone, left) in
            [(2, vec![4, 3, 1, 0]), (4, vec![3, 1, 0]), (0, vec![3, 1]), (3, vec![1])]
        {
            assert!(!unlink(&head, &*records, kpfn, PageId(gone), PageState::Unread));
            assert_eq!(records[usize::try_from(gone).unwrap()].state(), PageState::Unread);
            assert_eq!(walk(), left);
        }
        assert!(unlink(&head, &*records, kpfn, PageId(1), PageState::Zero));
        assert!(walk().is_empty());
    }
}
