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
    use std::io::Write;

    use parking_lot::Mutex;

    use super::*;

    /// What a log has got.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The lines that are logged meanwhile.
    fn logged(say: impl FnOnce()) -> Vec<String> {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .without_time()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, say);
        let bytes = log.0.lock();
        String::from_utf8_lossy(&bytes).lines().map(|line| line.trim().into()).collect()
    }

    /// What has been done after so many steps: of each kind another amount.
    fn done(steps: u64) -> Work {
        Work {
            merged: 7 * steps,
            broken: 2 * steps,
            unmerged: 3 * steps,
            pruned: 5 * steps,
            made_regular: steps,
            queued: 13 * steps,
            replaced: 11 * steps,
            frames_refused: 17 * steps,
        }
    }

    #[test]
    fn each_kind_of_work_has_its_line_and_its_level() {
        let domain = DomainId::Named("web".into());
        let now = Instant::now();
        let say = |work| logged(|| Lines::default().say(&domain, work, now));
        let place = "numerge_server::journal:";
        let merging = format!("DEBUG {place} pages merged domain=web merged=7 broken=2 unmerged=3");
        let pruning = format!("DEBUG {place} chains pruned domain=web pruned=5 made_regular=1");
        let moving =
            format!("INFO {place} frames moved to other nodes domain=web queued=13 replaced=11");
        let refusing = format!("WARN {place} no memory for new frames domain=web times=17");
        assert_eq!(say(done(0)), [""; 0]);
        assert_eq!(say(done(1)), [&*merging, &pruning, &moving, &refusing]);
        let Work { merged, broken, unmerged, pruned, made_regular, .. } = done(1);
        let Work { queued, replaced, frames_refused, .. } = done(1);
        let none = Work::default();
        for (work, lines) in [
            (Work { merged, broken, unmerged, ..none }, [&merging]),
            (Work { pruned, made_regular, ..none }, [&pruning]),
            (Work { queued, replaced, ..none }, [&moving]),
            (Work { frames_refused, ..none }, [&refusing]),
        ] {
            assert_eq!(say(work), lines.map(String::as_str));
        }
        // Any of them is worth a line.
        for work in [
            Work { merged, ..none },
            Work { broken, ..none },
            Work { unmerged, ..none },
            Work { queued, ..none },
            Work { replaced, ..none },
        ] {
            assert_eq!(say(work).len(), 1, "{work:?}");
        }
    }

    #[test]
    fn lines_come_rarely_and_add_up() {
        let domain = DomainId::Named("web".into());
        let (mut lines, began) = (Lines::default(), Instant::now());
        let step = Duration::from_millis(100);
        let steps = 600;
        let mut said: Vec<(Duration, String)> = Vec::new();
        let mut say = |work, at| {
            let new = logged(|| lines.say(&domain, work, began + at));
            said.extend(new.into_iter().map(|line| (at, line)));
        };
        for (at, steps) in (0..).map(|n| step * n).zip(1..=steps) {
            say(done(steps), at);
        }
        say(done(steps), step * 600 + RARELY);

        let all = done(steps);
        for (words, every, sums) in [
            ("pages merged", OFTEN, &[("merged", all.merged), ("broken", all.broken)][..]),
            ("pages merged", OFTEN, &[("unmerged", all.unmerged)]),
            ("chains pruned", OFTEN, &[("pruned", all.pruned)]),
            ("chains pruned", OFTEN, &[("made_regular", all.made_regular)]),
            ("frames moved", RARELY, &[("queued", all.queued), ("replaced", all.replaced)]),
            ("no memory for new frames", RARELY, &[("times", all.frames_refused)]),
        ] {
            let of_kind: Vec<_> = said.iter().filter(|(_, line)| line.contains(words)).collect();
            assert!(of_kind.is_sorted_by(|(a, _), (b, _)| *a + every <= *b), "{of_kind:?}");
            // As often as it may come, it comes.
            let most = (60_000 / every.as_millis()).try_into().unwrap_or(usize::MAX);
            assert!((most..=most + 1).contains(&of_kind.len()), "{of_kind:?}");
            for (name, sum) in sums {
                let numbers = of_kind.iter().filter_map(|(_, line)| {
                    let after = line.split_once(&format!(" {name}="))?.1;
                    after.split_whitespace().next()?.parse::<u64>().ok()
                });
                assert_eq!(numbers.sum::<u64>(), *sum, "{name}");
            }
        }
    }

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
