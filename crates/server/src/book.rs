//! What is known of a client's pages, and what it was asked and has not answered.
//!
//! No system calls and no waiting here: `memory` does that around it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use numerge_engine::machine::{Outcome, Run, Target, Vpn};
use numerge_linux::Ranges;
use numerge_protocol::{Answer, OutcomeRun, Sequence, Unmerged};

mod fresh;

use crate::book::fresh::Fresh;
use crate::pages::{count, gaps_in, overlap, parts_in};
use crate::stalls::Stalls;

/// Questions that may be unanswered at one time.
const QUESTIONS: usize = 8;

/// How long a client may be silent that was asked something, before nobody waits for it any more.
const PATIENCE: Duration = Duration::from_millis(100);
/// What that becomes for one that keeps others waiting more often than it answers.
const LEAST_PATIENCE: Duration = Duration::from_millis(5);

/// Most ranges that are kept track of. A program has a mapping for each, of which it has fewer.
const RANGES: usize = 1 << 18;

/// An answer that can't be true.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Lie {
    #[error("an answer to question {0}, which was not asked or is answered already")]
    Unasked(u64),
    #[error("an answer to question {0} that is none to what was asked")]
    OtherKind(u64),
    #[error("an answer to question {sequence} for {found} pages, where {asked} were asked about")]
    Length { sequence: u64, found: u64, asked: u64 },
    #[error("pages in more pieces than any program has mappings")]
    Pieces,
}

/// A question.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Asked {
    Merge(Vec<Run>),
    /// Whether somebody waits to hear what became of it.
    Unmerge(Vec<Range<Vpn>>, bool),
}

impl Asked {
    fn is_about(&self, pages: &Range<Vpn>) -> bool {
        match self {
            Self::Merge(runs) => runs.iter().any(|run| overlap(&run.pages, pages)),
            Self::Unmerge(ranges, _) => ranges.iter().any(|range| overlap(range, pages)),
        }
    }
}

/// What is known of a client.
pub(crate) struct Book {
    /// Pages that are there, as far as it has told.
    live: Ranges<()>,
    /// Of these, pages that the engine has not looked at. It can't go by what was written: pages that
    /// came in the place of others may have been armed before their client got round to tell of them.
    fresh: Fresh,
    /// Pages mapped to frames, or written to since they were. No page is missing here that the engine
    /// takes for merged; there may be others.
    in_file: Ranges<()>,
    /// Pages that were merged after they were gone: their client had not got round to the question
    /// before, and to something new at that place afterwards.
    strays: Ranges<()>,
    /// Pages that were unmerged when nobody waited for it any more, for who asks again.
    returned: Ranges<()>,
    /// The last unmerging that failed when nobody waited for it any more, for who asks again.
    failed: Option<(Vec<Range<Vpn>>, Unmerged)>,
    /// What is gone and the engine has not been told of, in order.
    gone: VecDeque<Range<Vpn>>,
    /// By number, and when each was asked.
    asked: BTreeMap<u64, (Asked, Instant)>,
    next_number: u64,
    /// Of merges, not told to the engine yet.
    outcomes: BTreeMap<Vpn, Outcome>,
    /// Of unmerges for whose end somebody waits.
    unmerged: BTreeMap<u64, Unmerged>,
    heard: Instant,
    patience: Duration,
    /// Those that are over.
    stalls: Stalls,
    /// Nothing more is to be asked.
    is_leaving: bool,
    /// There is no connection any more, and nobody but the engine to be told.
    is_over: bool,
}

impl Book {
    pub(crate) fn new() -> Self {
        Self {
            live: Ranges::new(),
            fresh: Fresh::default(),
            in_file: Ranges::new(),
            strays: Ranges::new(),
            returned: Ranges::new(),
            failed: None,
            gone: VecDeque::new(),
            asked: BTreeMap::new(),
            next_number: 0,
            outcomes: BTreeMap::new(),
            unmerged: BTreeMap::new(),
            heard: Instant::now(),
            patience: PATIENCE,
            stalls: Stalls::default(),
            is_leaving: false,
            is_over: false,
        }
    }

    // What is there.

    /// The client registered pages, and the engine knows: they are there, but for those that are gone
    /// again by now.
    pub(crate) fn enliven(&mut self, pages: &Range<Vpn>) -> Result<(), Lie> {
        self.live.insert(pages.clone(), ());
        self.fresh.insert(pages.clone());
        for gone in &self.gone {
            self.live.remove(gone);
        }
        self.check_pieces()
    }

    /// The engine knows nothing of pages any more, but that those that are there are.
    pub(crate) fn look_anew(&mut self, ranges: &[Range<Vpn>]) {
        self.fresh.insert_few(ranges);
    }

    /// The first of these pages that are there, as far as they are all fresh or none is, and whether
    /// they are. Of fresh ones at most `most`, which count as looked at from now on.
    pub(crate) fn next_to_look_at(
        &mut self,
        pages: &Range<Vpn>,
        most: u64,
    ) -> Option<(Vec<Range<Vpn>>, bool)> {
        self.fresh.take_next(&self.live, pages, most)
    }

    /// The client said that pages are gone, and the engine has not been told yet.
    pub(crate) fn bury(&mut self, pages: Range<Vpn>) -> Result<(), Lie> {
        self.live.remove(&pages);
        self.returned.remove(&pages);
        self.gone.push_back(pages);
        self.check_pieces()
    }

    /// The engine has forgotten the first of what is gone.
    pub(crate) fn forget_buried(&mut self) {
        if let Some(pages) = self.gone.pop_front() {
            self.forget(&pages);
        }
    }

    /// The engine and the client have nothing to do with pages any more.
    pub(crate) fn forget(&mut self, pages: &Range<Vpn>) {
        self.live.remove(pages);
        self.fresh.remove(pages);
        self.in_file.remove(pages);
        self.strays.remove(pages);
        self.returned.remove(pages);
        self.take_failed(std::slice::from_ref(pages));
        let told: Vec<Vpn> = self.outcomes.range(pages.clone()).map(|(page, _)| *page).collect();
        for page in told {
            self.outcomes.remove(&page);
        }
    }

    fn check_pieces(&self) -> Result<(), Lie> {
        let most = self.live.len().max(self.in_file.len()).max(self.returned.len());
        if most > RANGES { Err(Lie::Pieces) } else { Ok(()) }
    }

    /// Of these pages, those that are there.
    pub(crate) fn live_in(&self, ranges: &[Range<Vpn>]) -> Vec<Range<Vpn>> {
        ranges.iter().flat_map(|range| parts_in(&self.live, range)).map(|(part, ())| part).collect()
    }

    /// Whether any of these may be in a file mapping.
    pub(crate) fn any_in_file(&self, pages: &Range<Vpn>) -> bool {
        self.in_file.next_in(pages).is_some()
    }

    /// Of these pages, those that are there and were not unmerged since they were last asked for.
    pub(crate) fn not_returned(&self, ranges: &[Range<Vpn>]) -> Vec<Range<Vpn>> {
        let live = self.live_in(ranges);
        live.iter().flat_map(|part| gaps_in(&self.returned, part)).collect()
    }

    /// The engine knows that these pages are unmerged.
    pub(crate) fn forget_returned(&mut self, ranges: &[Range<Vpn>]) {
        ranges.iter().for_each(|range| self.returned.remove(range));
    }

    /// Those that may be in a file mapping.
    pub(crate) fn in_file(&self, ranges: &[Range<Vpn>]) -> Ranges<()> {
        let mut found = Ranges::new();
        let parts = ranges.iter().flat_map(|pages| parts_in(&self.in_file, pages));
        parts.for_each(|(part, ())| found.insert(part, ()));
        found
    }

    pub(crate) fn strays_in(&self, pages: &Range<Vpn>) -> Vec<Range<Vpn>> {
        parts_in(&self.strays, pages).map(|(part, ())| part).collect()
    }

    pub(crate) fn bytes(&self) -> u64 {
        let outcomes = self.outcomes.len() * size_of::<(Vpn, Outcome)>() * 2;
        let ranges = [&self.live, &self.in_file, &self.returned];
        let ranges = ranges.iter().map(|ranges| ranges.bytes()).sum::<u64>();
        ranges + self.fresh.bytes() + outcomes as u64
    }

    // What it is asked.

    pub(crate) const fn is_over(&self) -> bool {
        self.is_over
    }

    pub(crate) const fn is_leaving(&self) -> bool {
        self.is_leaving
    }

    pub(crate) const fn leave(&mut self) {
        self.is_leaving = true;
    }

    /// There is no connection any more.
    pub(crate) fn end(&mut self) {
        self.is_over = true;
        self.live = Ranges::new();
        self.fresh = Fresh::default();
        self.returned = Ranges::new();
        self.outcomes.clear();
    }

    /// Nothing will be answered any more, nor carried out.
    pub(crate) fn forget_asked(&mut self) {
        self.asked.clear();
    }

    pub(crate) fn has_room(&self) -> bool {
        self.asked.len() < QUESTIONS
    }

    pub(crate) fn is_asked_anything(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Whether it owes an answer to anything that it was asked by then.
    pub(crate) fn owes_since(&self, then: Instant) -> bool {
        self.asked.values().any(|(_, asked)| *asked <= then)
    }

    /// Whether it may map frames at any moment.
    pub(crate) fn is_asked_to_merge(&self) -> bool {
        self.asked.values().any(|(asked, _)| matches!(asked, Asked::Merge(_)))
    }

    /// Whether there is an unanswered question about any of these pages.
    pub(crate) fn is_asked_about(&self, pages: &Range<Vpn>) -> bool {
        self.asked.values().any(|(asked, _)| asked.is_about(pages))
    }

    fn is_being_unmerged(&self, pages: &Range<Vpn>) -> bool {
        let mut asked = self.asked.values().map(|(asked, _)| asked);
        asked.any(|asked| matches!(asked, Asked::Unmerge(..)) && asked.is_about(pages))
    }

    /// Cuts from runs what can be asked for now, and appends an outcome for each page: `Late` for
    /// those.
    pub(crate) fn askable(&self, runs: &[Run], out: &mut Vec<Outcome>) -> Vec<Run> {
        let mut askable = Vec::with_capacity(runs.len());
        for run in runs {
            let start = out.len();
            out.extend((0..count(&run.pages)).map(|_| Outcome::Gone));
            let place = |page: Vpn| {
                start + usize::try_from(page.0 - run.pages.start.0).unwrap_or(usize::MAX)
            };
            for part in self.live_in(std::slice::from_ref(&run.pages)) {
                let places = place(part.start)..place(part.end);
                // An unmerging that was given up may still be carried out, and the answers come in
                // any order.
                if self.is_being_unmerged(&part) {
                    out[places].fill(Outcome::Deferred);
                    continue;
                }
                out[places].fill(Outcome::Late);
                let skipped = part.start.0 - run.pages.start.0;
                let target = match run.target {
                    Target::Frames(first) => Target::Frames(first.plus(skipped)),
                    Target::Zero => Target::Zero,
                };
                askable.push(Run { pages: part, target });
            }
        }
        askable
    }

    /// The number of the next question.
    pub(crate) const fn next_number(&self) -> Sequence {
        Sequence(self.next_number)
    }

    /// Takes note that the client was asked to merge.
    pub(crate) fn asked_merge(&mut self, runs: Vec<Run>) {
        runs.iter().for_each(|run| self.returned.remove(&run.pages));
        self.ask(Asked::Merge(runs));
    }

    /// Takes note that the client was asked to unmerge, and somebody waits for the answer.
    pub(crate) fn asked_unmerge(&mut self, ranges: Vec<Range<Vpn>>) {
        self.ask(Asked::Unmerge(ranges, true));
    }

    fn ask(&mut self, asked: Asked) {
        self.asked.insert(self.next_number, (asked, Instant::now()));
        self.next_number += 1;
    }

    /// What became of an unmerging; told once.
    pub(crate) fn take_unmerged(&mut self, sequence: Sequence) -> Option<Unmerged> {
        self.unmerged.remove(&sequence.0)
    }

    /// Why an unmerging of any of these pages failed, if nobody has been told; told once.
    pub(crate) fn take_failed(&mut self, pages: &[Range<Vpn>]) -> Option<Unmerged> {
        let (ranges, _) = self.failed.as_ref()?;
        let is_theirs = ranges.iter().any(|range| pages.iter().any(|part| overlap(range, part)));
        if is_theirs { self.failed.take().map(|(_, result)| result) } else { None }
    }

    /// Nobody needs to know any more what became of an unmerging.
    pub(crate) fn abandon(&mut self, sequence: Sequence) {
        self.unmerged.remove(&sequence.0);
        if let Some((Asked::Unmerge(_, is_waited_for), _)) = self.asked.get_mut(&sequence.0) {
            *is_waited_for = false;
        }
    }

    /// Somebody waited for nothing.
    pub(crate) fn lose_patience(&mut self) {
        self.patience = (self.patience / 2).max(LEAST_PATIENCE);
    }

    /// Until when somebody who began to wait at `since` takes the client for one that answers.
    pub(crate) fn patient_until(&self, since: Instant) -> Instant {
        self.heard.max(since) + self.patience
    }

    /// Whether it was asked something long ago, and has said nothing since.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.silence(now) > self.patience
    }

    /// How long it has been asked something, and has said nothing.
    fn silence(&self, now: Instant) -> Duration {
        let oldest = self.asked.values().map(|(_, asked)| *asked).min();
        let since = oldest.map(|oldest| oldest.max(self.heard));
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Its stalls so far, that which is not over included.
    pub(crate) fn stalls(&self, now: Instant) -> Stalls {
        self.stalls.and(self.silence(now))
    }

    /// When it last said something.
    pub(crate) const fn heard(&self) -> Instant {
        self.heard
    }

    // What it says.

    /// The client said something, `now`.
    pub(crate) fn hear(&mut self, now: Instant) {
        self.stalls = self.stalls(now);
        self.heard = now;
    }

    /// Takes in an answer. The question counts as unanswered still if that is a lie.
    pub(crate) fn answer(&mut self, sequence: Sequence, answer: &Answer<'_>) -> Result<(), Lie> {
        let number = sequence.0;
        let (asked, since) = self.asked.remove(&number).ok_or(Lie::Unasked(number))?;
        if let Err(lie) = self.take_in(number, &asked, answer) {
            self.asked.insert(number, (asked, since));
            return Err(lie);
        }
        self.patience = (self.patience * 2).min(PATIENCE);
        self.check_pieces()
    }

    fn take_in(&mut self, number: u64, asked: &Asked, answer: &Answer<'_>) -> Result<(), Lie> {
        match (asked, answer) {
            (Asked::Merge(runs), Answer::Merged(outcomes)) => {
                self.merged(number, runs, outcomes)?
            }
            (Asked::Merge(runs), Answer::Refused(_)) => {
                let pages = runs.iter().flat_map(|run| run.pages.start.0..run.pages.end.0);
                self.outcomes.extend(pages.map(|page| (Vpn(page), Outcome::Pinned)));
                self.drop_outcomes_of_gone(runs);
            }
            (Asked::Unmerge(ranges, is_waited_for), answer) => {
                let result = match answer {
                    Answer::Unmerged(result) => *result,
                    Answer::Refused(errno) => Unmerged::Failed(*errno),
                    _ => return Err(Lie::OtherKind(number)),
                };
                if result == Unmerged::Done {
                    // What failed before has come about.
                    self.take_failed(ranges);
                    for range in ranges {
                        self.in_file.remove(range);
                        if !is_waited_for {
                            parts_in(&self.live, range)
                                .for_each(|(part, ())| self.returned.insert(part, ()));
                        }
                    }
                }
                if *is_waited_for {
                    self.unmerged.insert(number, result);
                } else if result != Unmerged::Done {
                    self.failed = Some((ranges.clone(), result));
                }
            }
            _ => return Err(Lie::OtherKind(number)),
        }
        Ok(())
    }

    fn merged(&mut self, sequence: u64, runs: &[Run], told: &[OutcomeRun]) -> Result<(), Lie> {
        let asked = runs.iter().map(|run| count(&run.pages)).sum();
        let found = OutcomeRun::pages(told);
        if found != asked {
            return Err(Lie::Length { sequence, found, asked });
        }
        let mut told = OutcomeRun::each(told).map(to_engine);
        for run in runs {
            let pages = (run.pages.start.0..run.pages.end.0).map(Vpn);
            let outcomes: Vec<(Vpn, Outcome)> = pages.zip(&mut told).collect();
            if matches!(run.target, Target::Frames(_)) {
                for same in outcomes.chunk_by(|a, b| a.1 == b.1) {
                    if same[0].1 == Outcome::Merged {
                        self.in_file.insert(same[0].0..same[same.len() - 1].0.plus(1), ());
                    }
                }
            }
            self.outcomes.extend(outcomes);
        }
        self.drop_outcomes_of_gone(runs);
        Ok(())
    }

    /// Pages that are gone since they were asked about: the engine is not told of them, for it is told
    /// that they are gone. Those that were merged nevertheless are noted.
    fn drop_outcomes_of_gone(&mut self, runs: &[Run]) {
        for run in runs {
            for gap in gaps_in(&self.live, &run.pages) {
                for (part, ()) in parts_in(&self.in_file, &gap).collect::<Vec<_>>() {
                    self.strays.insert(part, ());
                }
                let told: Vec<Vpn> = self.outcomes.range(gap).map(|(page, _)| *page).collect();
                for page in told {
                    self.outcomes.remove(&page);
                }
            }
        }
    }

    /// Takes out what became of those of `pages` of which it is known.
    pub(crate) fn take_outcomes(&mut self, pages: &[Vpn], out: &mut Vec<(Vpn, Outcome)>) {
        if self.outcomes.is_empty() {
            return;
        }
        for page in pages {
            out.extend(self.outcomes.remove(page).map(|outcome| (*page, outcome)));
        }
    }
}

const fn to_engine(outcome: numerge_protocol::Outcome) -> Outcome {
    match outcome {
        numerge_protocol::Outcome::Merged => Outcome::Merged,
        numerge_protocol::Outcome::Differs => Outcome::Differs,
        numerge_protocol::Outcome::Pinned => Outcome::Pinned,
        numerge_protocol::Outcome::Refused => Outcome::Refused,
        numerge_protocol::Outcome::Gone => Outcome::Gone,
        numerge_protocol::Outcome::Exhausted => Outcome::Exhausted,
    }
}

#[cfg(test)]
mod lies;
#[cfg(test)]
mod tests;
