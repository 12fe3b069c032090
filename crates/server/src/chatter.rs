//! How much clients can make the server say in its log: a user some lines at once, and then one now and
//! then. What is not said is counted, and the number goes with the next line.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines that a user's clients can cause at once.
const AT_ONCE: u32 = 20;
/// Time until they can cause another.
const BETWEEN: Duration = Duration::from_secs(2);
/// Users that are kept apart; those after them are one.
const USERS: usize = 1024;

/// What is left to a user.
struct Left {
    lines: u32,
    /// When `lines` was right.
    at: Instant,
    unsaid: u64,
}

impl Left {
    const fn new(now: Instant) -> Self {
        Self { lines: AT_ONCE, at: now, unsaid: 0 }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        let more = u32::try_from(passed.as_nanos() / BETWEEN.as_nanos()).unwrap_or(u32::MAX);
        self.lines = self.lines.saturating_add(more).min(AT_ONCE);
        if self.lines == AT_ONCE {
            self.at = now;
        } else {
            self.at += BETWEEN * more;
        }
    }
}

/// What is left to all users.
#[derive(Default)]
pub(crate) struct Chatter {
    /// By user; None: all for whom there was no room.
    users: Mutex<BTreeMap<Option<u32>, Left>>,
}

impl Chatter {
    /// Whether something may be said that a user's client has caused; if so, how much was not said
    /// since the last time.
    pub(crate) fn may_say(&self, user: u32) -> Option<u64> {
        self.may_say_at(user, Instant::now())
    }

    fn may_say_at(&self, user: u32, now: Instant) -> Option<u64> {
        let mut users = self.users.lock();
        if users.len() >= USERS && !users.contains_key(&Some(user)) {
            // Of who could say everything nothing needs to be known.
            users.retain(|_, left| {
                left.refill(now);
                left.lines < AT_ONCE || left.unsaid > 0
            });
        }
        let user =
            Some(user).filter(|user| users.len() < USERS || users.contains_key(&Some(*user)));
        let left = users.entry(user).or_insert_with(|| Left::new(now));
        left.refill(now);
        if left.lines == 0 {
            left.unsaid += 1;
            return None;
        }
        left.lines -= 1;
        Some(std::mem::take(&mut left.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_says_some_lines_at_once_and_then_one_now_and_then() {
        let (chatter, now) = (Chatter::default(), Instant::now());
        for _ in 0..AT_ONCE {
            assert_eq!(chatter.may_say_at(7, now), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(chatter.may_say_at(7, now), None);
        }
        assert_eq!(chatter.may_say_at(8, now), Some(0), "another user");
        assert_eq!(chatter.may_say_at(7, now + BETWEEN / 2), None);
        assert_eq!(chatter.may_say_at(7, now + BETWEEN), Some(1001));
        assert_eq!(chatter.may_say_at(7, now + BETWEEN), None);
        let later = now + BETWEEN * (AT_ONCE * 10);
        let said = (0..2 * AT_ONCE).filter(|_| chatter.may_say_at(7, later).is_some());
        assert_eq!(said.count(), usize::try_from(AT_ONCE).unwrap_or(0));
    }

    #[test]
    fn more_users_than_can_be_kept_apart_are_one() {
        let (chatter, now) = (Chatter::default(), Instant::now());
        let users = u32::try_from(USERS).unwrap_or(0);
        let said = (0..10 * users).filter(|user| chatter.may_say_at(*user, now).is_some()).count();
        assert!(said < USERS + 2 * usize::try_from(AT_ONCE).unwrap_or(0), "{said}");
        assert!(chatter.users.lock().len() <= USERS + 1);
        // Once they have been quiet, there is room again.
        assert_eq!(chatter.may_say_at(20 * users, now + BETWEEN), Some(0));
        assert!(chatter.users.lock().len() < USERS);
    }
}
