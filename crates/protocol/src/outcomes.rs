//! What became of each page of a merge, run-length encoded.

use serde::{Deserialize, Serialize};

/// What became of one page of a merge.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// It had the target's content while nothing could change it, and is mapped to the target.
    Merged,
    /// Its content is not the target's. Nothing was changed.
    Differs,
    /// The kernel would not let go of it now. Nothing was changed; worth another try later.
    Pinned,
    /// It can't be merged as it is. Nothing was changed; no use before the next write to it.
    Refused,
    /// There is no page, or it is in no region any more. Nothing was changed.
    Gone,
    /// The program ran out of something (memory, mappings). Nothing was changed.
    Exhausted,
}

/// Adjacent pages of a merge with one outcome. Adjacent in the order of the merge's runs, so one
/// may go from a run on into the next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct OutcomeRun {
    /// What became of each.
    pub outcome: Outcome,
    /// How many pages, at least one.
    pub pages: u32,
}

impl OutcomeRun {
    /// Appends the outcome of the next page. Allocates only when `runs` has no room left.
    pub fn push(runs: &mut Vec<Self>, outcome: Outcome) {
        match runs.last_mut() {
            Some(last) if last.outcome == outcome && last.pages < u32::MAX => last.pages += 1,
            _ => runs.push(Self { outcome, pages: 1 }),
        }
    }

    /// How many pages the runs tell of; must be as many as the merge had.
    #[must_use]
    pub fn pages(runs: &[Self]) -> u64 {
        runs.iter().map(|run| u64::from(run.pages)).fold(0, u64::saturating_add)
    }

    /// The outcomes, one a page.
    pub fn each(runs: &[Self]) -> impl Iterator<Item = Outcome> + '_ {
        runs.iter().flat_map(|run| (0..run.pages).map(|_| run.outcome))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_joined_and_given_back_a_page_each() {
        let outcomes = [Outcome::Merged, Outcome::Merged, Outcome::Gone, Outcome::Merged];
        let mut runs = Vec::new();
        for outcome in outcomes {
            OutcomeRun::push(&mut runs, outcome);
        }
        assert_eq!(runs.len(), 3);
        assert_eq!(OutcomeRun::pages(&runs), 4);
        assert_eq!(OutcomeRun::each(&runs).collect::<Vec<_>>(), outcomes);
    }
}
