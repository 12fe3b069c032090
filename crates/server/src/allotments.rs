//! How many pages engines keep records of, for each user and for all of them.
//!
//! A client can register what it does not have, and a page's records take memory whether there is a page or not.
//! What one client may have says little where a user may have many clients.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::options::Quotas;

/// What is taken, and what there is.
pub(crate) struct Allotments {
    most_of_user: u64,
    most: u64,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// Users with any.
    by_user: BTreeMap<u32, u64>,
    all: u64,
}

/// Why a user can't have more pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Exhausted {
    #[error("its user has {taken} pages, of {most}")]
    User { taken: u64, most: u64 },
    #[error("all users have {taken} pages, of {most}")]
    All { taken: u64, most: u64 },
}

/// A client's part, given up when it is dropped.
pub(crate) struct Allotment<'a> {
    all: &'a Allotments,
    user: u32,
    pages: u64,
}

impl Allotments {
    pub(crate) fn new(quotas: &Quotas) -> Self {
        let (most_of_user, most) = (quotas.pages_of_user, quotas.pages_of_all);
        Self { most_of_user, most, taken: Mutex::default() }
    }

    /// A part without pages, for a client of a user.
    pub(crate) const fn empty(&self, user: u32) -> Allotment<'_> {
        Allotment { all: self, user, pages: 0 }
    }
}

impl Allotment<'_> {
    /// Takes more pages.
    pub(crate) fn grow(&mut self, by: u64) -> Result<(), Exhausted> {
        let taken = &mut *self.all.taken.lock();
        let of_user = taken.by_user.get(&self.user).copied().unwrap_or(0);
        let (most_of_user, most) = (self.all.most_of_user, self.all.most);
        if by > most_of_user.saturating_sub(of_user) {
            return Err(Exhausted::User { taken: of_user, most: most_of_user });
        }
        if by > most.saturating_sub(taken.all) {
            return Err(Exhausted::All { taken: taken.all, most });
        }
        taken.by_user.insert(self.user, of_user + by);
        taken.all += by;
        self.pages += by;
        Ok(())
    }

    /// Gives up all but so many.
    pub(crate) fn shrink_to(&mut self, pages: u64) {
        let less = self.pages.saturating_sub(pages);
        if less == 0 {
            return;
        }
        self.pages -= less;
        let taken = &mut *self.all.taken.lock();
        taken.all -= less;
        if let Some(of_user) = taken.by_user.get_mut(&self.user) {
            *of_user -= less;
            if *of_user == 0 {
                taken.by_user.remove(&self.user);
            }
        }
    }
}

impl Drop for Allotment<'_> {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s6_a_user_has_its_part_and_all_have_theirs() {
        let quotas = Quotas { pages_of_user: 100, pages_of_all: 150, ..Quotas::default() };
        let all = Allotments::new(&quotas);
        let (mut one, mut two, mut other) = (all.empty(7), all.empty(7), all.empty(8));
        assert_eq!(one.grow(60), Ok(()));
        assert_eq!(two.grow(41), Err(Exhausted::User { taken: 60, most: 100 }));
        assert_eq!(two.grow(40), Ok(()));
        assert_eq!(other.grow(51), Err(Exhausted::All { taken: 100, most: 150 }));
        assert_eq!(other.grow(u64::MAX), Err(Exhausted::User { taken: 0, most: 100 }));
        assert_eq!(other.grow(50), Ok(()));
        one.shrink_to(70);
        assert_eq!(two.grow(1), Err(Exhausted::User { taken: 100, most: 100 }));
        one.shrink_to(50);
        assert_eq!(two.grow(10), Ok(()));
        drop((one, two));
        assert_eq!(other.grow(50), Ok(()));
        drop(other);
        assert!(all.taken.lock().by_user.is_empty());
        assert_eq!(all.taken.lock().all, 0);
    }
}
