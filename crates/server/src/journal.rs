//! What engines do, said in the log: for each domain a line of each kind now and then, with what was
//! done since the last. Engines count and say nothing themselves, so that this costs them nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numerge_engine::Work;

use crate::domain::{Domain, DomainId};

/// Least time between two lines of a kind: of those for who looks closely, and of the others.
const OFTEN: Duration = Duration::from_secs(1);
const RARELY: Duration = Duration::from_secs(10);

/// What was said of each domain.
#[derive(Default)]
pub(crate) struct Journal(BTreeMap<DomainId, Lines>);

/// By kind.
#[derive(Default)]
struct Lines {
    merging: Line,
    pruning: Line,
    moving: Line,
    refusing: Line,
}

/// The last line of a kind.
#[derive(Default)]
struct Line {
    /// What had been done by then.
    before: Work,
    said: Option<Instant>,
}

impl Line {
    /// What was done since the last line, if there is a line to be said of it.
    fn news(
        &mut self,
        work: Work,
        now: Instant,
        every: Duration,
        is_news: impl Fn(&Work) -> bool,
    ) -> Option<Work> {
        let since = work.since(&self.before);
        if self.said.is_some_and(|said| now < said + every) || !is_news(&since) {
            return None;
        }
        *self = Self { before: work, said: Some(now) };
        Some(since)
    }
}

impl Journal {
    /// Says what is new. Forgets domains that are no more.
    pub(crate) fn say(&mut self, domains: &[Arc<Domain>]) {
        self.0.retain(|id, _| domains.iter().any(|domain| domain.id() == id));
        let now = Instant::now();
        for domain in domains {
            let lines = self.0.entry(domain.id().clone()).or_default();
            lines.say(domain.id(), domain.engine().work(), now);
        }
    }
}

impl Lines {
    fn say(&mut self, domain: &DomainId, work: Work, now: Instant) {
        let is_news = |w: &Work| w.merged + w.broken + w.unmerged > 0;
        if let Some(Work { merged, broken, unmerged, .. }) =
            self.merging.news(work, now, OFTEN, is_news)
        {
            tracing::debug!(%domain, merged, broken, unmerged, "pages merged");
        }
        if let Some(Work { pruned, made_regular, .. }) =
            self.pruning.news(work, now, OFTEN, |w| w.pruned > 0)
        {
            tracing::debug!(%domain, pruned, made_regular, "chains pruned");
        }
        if let Some(Work { queued, replaced, .. }) =
            self.moving.news(work, now, RARELY, |w| w.queued + w.replaced > 0)
        {
            tracing::info!(%domain, queued, replaced, "frames moved to other nodes");
        }
        if let Some(Work { frames_refused, .. }) =
            self.refusing.news(work, now, RARELY, |w| w.frames_refused > 0)
        {
            tracing::warn!(%domain, times = frames_refused, "no memory for new frames");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_was_done_since_the_last_and_comes_rarely() {
        let (mut line, now) = (Line::default(), Instant::now());
        let merged = |merged| Work { merged, ..Work::default() };
        let mut news = |n, after| {
            let news = line.news(merged(n), now + after, OFTEN, |work| work.merged > 0);
            news.map(|work| work.merged)
        };
        assert_eq!(news(0, Duration::ZERO), None);
        assert_eq!(news(7, Duration::ZERO), Some(7));
        assert_eq!(news(8, OFTEN / 2), None, "too soon");
        assert_eq!(news(10, OFTEN), Some(3));
        assert_eq!(news(10, 5 * OFTEN), None, "nothing new");
        assert_eq!(news(11, 6 * OFTEN), Some(1));
    }
}
