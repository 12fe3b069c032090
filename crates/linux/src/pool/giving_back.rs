//! Which frames' memory can be given back, and when.

use std::io;
use std::ops::Range;
use std::sync::PoisonError;

use numerge_engine::Kpfn;

use super::{FramePools, kpfns};
use crate::quarantine::{self, Quarantine};
use crate::sharers::{self, Exempt, FileId, ProcessId, Shared};

impl FramePools {
    /// Gives back the memory of what waits and nobody else maps, where that is quickly told.
    pub(super) fn release(&self, waiting: &mut Quarantine) {
        if waiting.is_empty() || self.was_anybody_served() {
            return;
        }
        if waiting.nobody_else_is_left() {
            waiting.retain(|run| self.punch(run).is_err());
        } else if waiting.look_is_due() {
            let exempt = Exempt { since_ticks: self.made_ticks, ..Exempt::default() };
            if let Some(shared) = sharers::others(&self.file_ids(), &exempt) {
                let runs = waiting.take();
                let taken = quarantine::count(&runs);
                waiting.put_back(taken, self.punch_unless(runs, shared));
            }
        }
    }

    /// The same where anybody may map what waits. Nobody else waits meanwhile, for it takes long.
    pub(super) fn settle_among_all(&self) -> u64 {
        // What comes after the look began may be mapped by who has been looked at.
        let runs = self.waiting().take();
        let taken = quarantine::count(&runs);
        let kept = if runs.is_empty() {
            runs
        } else {
            let mut served = self.served();
            served.ever.retain(ProcessId::lives);
            let exempt = Exempt {
                since_ticks: self.made_ticks,
                known: served.known.values().copied().collect(),
                viewers: served.now.values().copied().collect(),
                given: served.ever.iter().copied().collect(),
                users: Some(served.users.clone()),
            };
            drop(served);
            match sharers::others_unheld(self.file_ids(), &exempt, &self.unanswered) {
                Some(shared) => self.punch_unless(runs, shared),
                None => runs,
            }
        };
        let mut waiting = self.waiting();
        waiting.put_back(taken, kept);
        waiting.frames()
    }

    /// Gives back the memory of what is not shared. Gives the rest.
    pub(super) fn punch_unless(
        &self,
        runs: Vec<Range<Kpfn>>,
        shared: Vec<Shared>,
    ) -> Vec<Range<Kpfn>> {
        let shared = joined(shared.iter().map(mapped).collect());
        let mut kept = Vec::new();
        for run in runs {
            let first = shared.partition_point(|range| range.end <= run.start);
            let mut at = run.start;
            for range in shared[first..].iter().take_while(|range| range.start < run.end) {
                let (start, end) = (range.start.max(at), range.end.min(run.end));
                kept.extend(self.punch_or_keep(at..start));
                kept.push(start..end);
                at = end;
            }
            kept.extend(self.punch_or_keep(at..run.end));
        }
        kept
    }

    /// Gives back the frames' memory, or the frames if that fails.
    fn punch_or_keep(&self, run: Range<Kpfn>) -> Option<Range<Kpfn>> {
        (run.start < run.end && self.punch(&run).is_err()).then_some(run)
    }

    pub(super) fn file_ids(&self) -> Vec<FileId> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.iter().map(|file| file.id().clone()).collect()
    }

    /// Gives frames' memory back.
    pub(super) fn punch(&self, run: &Range<Kpfn>) -> io::Result<()> {
        self.place(run.start)
            .map_or(Ok(()), |(file, frame)| file.punch(&(frame..frame + (run.end.0 - run.start.0))))
    }
}

/// Frames that another process maps.
fn mapped(shared: &Shared) -> Range<Kpfn> {
    kpfns(shared.file, &shared.frames)
}

/// Sorts ranges and joins those that overlap.
fn joined(mut ranges: Vec<Range<Kpfn>>) -> Vec<Range<Kpfn>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<Kpfn>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
