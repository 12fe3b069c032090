//! A client's memory, as the engine wants it: looked at from here, and changed by asking the client.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use numerge_engine::machine::{
    Kind, Mappings, Memory, MemoryError, Outcome, PAGE_SIZE, Run, Target, Vpn, Written,
};
use numerge_engine::{Fingerprint, Fingerprinter};
use numerge_linux::{FramePools, FrameSource, RemoteProcess, in_pieces, mappings_limit};
use numerge_protocol::limits::{FILE_PAGES, MERGE_RUNS, UNMERGE_PAGES, UNMERGE_RANGES};
use numerge_protocol::{self as protocol, Errno, SendError, Sequence, ToClient, Unmerged};
use numerge_topology::Nid;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::answers::Answers;
use crate::book::Book;
use crate::link::Link;
use crate::pages::{count, span};

/// Pages of one merge. Single pages take a client some 10 us each, so that there is an answer soon.
pub(crate) const QUESTION_PAGES: u64 = 2048;
/// Runs of one merge; where the client's pages have holes, there can be more.
const QUESTION_RUNS: usize = 256;

/// How long a merge waits for the client to answer one of the questions before.
const SLOT_WAIT: Duration = Duration::from_millis(10);
/// How long all questions of a merge wait together.
const MERGE_WAIT: Duration = Duration::from_millis(250);
/// How long an unmerge waits, while everything else in the engine does (S5.2). What is answered later
/// is known to who asks again.
const UNMERGE_WAIT: Duration = Duration::from_millis(8);
/// How long a client may be silent, where nobody else waits, and how long it may say other things.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The memory of a client.
pub(crate) struct RemoteMemory {
    process: RemoteProcess,
    pools: Arc<FramePools>,
    link: Link,
    /// Whoever looks at the process may ask it too.
    book: Arc<Mutex<Book>>,
    /// Pages that the client was not asked to merge since it was silent.
    unasked: AtomicU64,
    /// The client has said something, or there is no connection any more.
    heard: Condvar,
}

impl RemoteMemory {
    pub(crate) fn new(process: RemoteProcess, pools: Arc<FramePools>, link: Link) -> Self {
        let book = Arc::new(Mutex::new(Book::new()));
        Self { process, pools, link, book, unasked: AtomicU64::new(0), heard: Condvar::new() }
    }

    pub(crate) const fn process(&self) -> &RemoteProcess {
        &self.process
    }

    pub(crate) const fn link(&self) -> &Link {
        &self.link
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock()
    }

    /// Changes what is known by what the client has said, and wakes who waits for that.
    pub(crate) fn hear<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let mut book = self.book();
        book.hear(Instant::now());
        let result = change(&mut book);
        drop(book);
        self.heard.notify_all();
        result
    }

    /// Waits, however long it takes, until something holds of what is known. False if the connection
    /// ended first. For the client's own worker.
    pub(crate) fn wait_until(&self, holds: impl Fn(&Book) -> bool) -> bool {
        let mut book = self.book();
        self.heard.wait_while(&mut book, |book| !book.is_over() && !holds(book));
        !book.is_over()
    }

    /// How far it is with what it was asked, for who has waited since then.
    pub(crate) fn answers(&self, since: Instant) -> Answers {
        let book = self.book();
        if !book.owes_since(since) || book.is_over() {
            return Answers::All;
        }
        let deadline = (book.heard().max(since) + ANSWER_WAIT).min(since + LONGEST_WAIT);
        if Instant::now() < deadline { Answers::Owed } else { Answers::Silence }
    }

    /// Pages that the client was not asked to merge since it was silent, in all. They are tried again
    /// when all that could not be merged are.
    pub(crate) fn unasked(&self) -> u64 {
        // Relaxed: as where it is counted.
        self.unasked.load(Ordering::Relaxed)
    }

    /// There is no connection any more: nobody waits for the client.
    pub(crate) fn end(&self) {
        self.book().end();
        self.heard.notify_all();
    }

    /// Has pages that the engine does not know unmerged, however long it takes. False if that failed or
    /// the connection ended. For the client's own worker.
    pub(crate) fn unmerge_strays(&self, ranges: &[Range<Vpn>]) -> bool {
        ranges.chunks(UNMERGE_RANGES).all(|some| {
            let mut book = self.book();
            let Ok(sequence) = self.send_unmerge(&mut book, some.to_vec()) else { return false };
            loop {
                if let Some(result) = book.take_unmerged(sequence) {
                    return result == Unmerged::Done;
                }
                if book.is_over() {
                    return false;
                }
                self.heard.wait(&mut book);
            }
        })
    }

    /// Asks for one question's worth of runs, and appends an outcome a page.
    fn ask_merge(&self, runs: &[Run], until: Instant, out: &mut Vec<Outcome>) {
        let refuse = |out: &mut Vec<Outcome>, outcome| {
            out.extend(
                runs.iter().flat_map(|run| run.pages.start.0..run.pages.end.0).map(|_| outcome),
            );
        };
        if self.link.send_files(&self.pools, &files_of(runs)).is_err() {
            return refuse(out, Outcome::Pinned);
        }
        let mut book = self.book();
        let before = out.len();
        loop {
            let now = Instant::now();
            if book.is_over() {
                return refuse(out, Outcome::Gone);
            }
            if book.is_silent(now) {
                let pages = runs.iter().map(|run| count(&run.pages)).sum();
                // Relaxed: a counter, nothing is ordered by it.
                self.unasked.fetch_add(pages, Ordering::Relaxed);
                return refuse(out, Outcome::Pinned);
            }
            if book.is_leaving() {
                return refuse(out, Outcome::Pinned);
            }
            let askable = book.askable(runs, out);
            if askable.is_empty() {
                return;
            }
            if askable.len() <= MERGE_RUNS && book.has_room() {
                let runs = askable.iter().map(to_client).collect();
                let sequence = book.next_number();
                match self.link.send(&ToClient::Merge { sequence, runs }) {
                    Ok(()) => return book.asked_merge(askable),
                    Err(SendError::WouldBlock) => {}
                    Err(_) => {
                        out.truncate(before);
                        return refuse(out, Outcome::Pinned);
                    }
                }
            }
            out.truncate(before);
            // Only while it has something to answer is there something to wait for.
            if !book.is_asked_anything() {
                return refuse(out, Outcome::Pinned);
            }
            let deadline = until.min(now + SLOT_WAIT);
            if self.heard.wait_until(&mut book, deadline).timed_out() {
                return refuse(out, Outcome::Deferred);
            }
        }
    }

    /// Asks for one question's worth of ranges, and waits for the answer a bounded time.
    fn ask_unmerge(&self, ranges: &[Range<Vpn>], until: Instant) -> Result<(), MemoryError> {
        let mut book = self.book();
        if let Some(result) = book.take_failed(ranges) {
            return unmerged(result);
        }
        let since = Instant::now();
        let mut sequence = None;
        loop {
            // What is gone is mapped to nothing.
            let live = book.not_returned(ranges);
            if book.is_over() || live.is_empty() {
                sequence.inspect(|sequence| book.abandon(*sequence));
                book.forget_returned(ranges);
                return Ok(());
            }
            let now = Instant::now();
            let patience = if book.is_silent(now) { now } else { book.patient_until(since) };
            let deadline = patience.min(until);
            match sequence {
                Some(sequence) => {
                    if let Some(result) = book.take_unmerged(sequence) {
                        if result == Unmerged::Done {
                            book.forget_returned(ranges);
                        }
                        return unmerged(result);
                    }
                }
                None if now < deadline && !live.iter().any(|range| book.is_asked_about(range)) => {
                    match self.send_unmerge(&mut book, live) {
                        Ok(asked) => sequence = Some(asked),
                        Err(SendError::WouldBlock) => {}
                        Err(_) => return Err(MemoryError::NoAnswer),
                    }
                }
                None => {}
            }
            if now >= deadline {
                sequence.inspect(|sequence| book.abandon(*sequence));
                if now >= patience {
                    book.lose_patience();
                }
                return Err(MemoryError::NoAnswer);
            }
            self.heard.wait_until(&mut book, deadline);
        }
    }

    /// The pages before the first that is gone.
    fn readable(&self, runs: &[Range<Vpn>]) -> Vec<Range<Vpn>> {
        let live = self.book().live_in(runs);
        if live.iter().map(count).sum::<u64>() < runs.iter().map(count).sum() {
            up_to_the_first_gap(runs, live)
        } else {
            live
        }
    }

    /// What was to be read is reported anew.
    fn not_read(&self, runs: &[Range<Vpn>], error: io::Error) -> MemoryError {
        self.book().look_anew(runs);
        system("read a client's memory")(error)
    }

    fn send_unmerge(
        &self,
        book: &mut Book,
        ranges: Vec<Range<Vpn>>,
    ) -> Result<Sequence, SendError> {
        let sequence = book.next_number();
        let spans = ranges.iter().map(span).collect();
        self.link.send(&ToClient::Unmerge { sequence, ranges: spans })?;
        book.asked_unmerge(ranges);
        Ok(sequence)
    }
}

fn unmerged(result: Unmerged) -> Result<(), MemoryError> {
    match result {
        Unmerged::Done => Ok(()),
        Unmerged::OutOfMemory => Err(MemoryError::OutOfMemory),
        Unmerged::Failed(Errno(errno)) => Err(MemoryError::System {
            call: "unmerging by the client",
            source: io::Error::from_raw_os_error(errno.into()),
        }),
    }
}

fn to_client(run: &Run) -> protocol::Run {
    let target = match run.target {
        Target::Frames(first) => protocol::Target::Frames(protocol::Kpfn(first.0)),
        Target::Zero => protocol::Target::Zero,
    };
    protocol::Run { span: span(&run.pages), target }
}

/// Numbers of the pool files with the targets.
fn files_of(runs: &[Run]) -> BTreeSet<u64> {
    let file = |run: &Run| match run.target {
        Target::Frames(first) => Some(first.0 / FILE_PAGES),
        Target::Zero => None,
    };
    runs.iter().filter_map(file).collect()
}

/// Cuts runs at the ends of pool files, and puts them together to questions.
fn questions(runs: &[Run]) -> Vec<Vec<Run>> {
    let mut questions: Vec<Vec<Run>> = Vec::new();
    let mut room = 0;
    for run in runs {
        let mut rest = run.clone();
        while count(&rest.pages) > 0 {
            if room == 0 || questions.last().is_none_or(|last| last.len() == QUESTION_RUNS) {
                questions.push(Vec::new());
                room = QUESTION_PAGES;
            }
            let mut pages = count(&rest.pages).min(room);
            if let Target::Frames(first) = rest.target {
                pages = pages.min(FILE_PAGES - first.0 % FILE_PAGES);
            }
            let end = rest.pages.start.plus(pages);
            let part = Run { pages: rest.pages.start..end, target: rest.target };
            questions.last_mut().into_iter().for_each(|last| last.push(part.clone()));
            room -= pages;
            rest.pages.start = end;
            if let Target::Frames(first) = rest.target {
                rest.target = Target::Frames(first.plus(pages));
            }
        }
    }
    questions
}

fn system(call: &'static str) -> impl Fn(io::Error) -> MemoryError {
    move |source| match source.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => MemoryError::NoAnswer,
        _ => MemoryError::System { call, source },
    }
}

impl Memory for RemoteMemory {
    /// The client tracks writes itself, before it registers.
    fn register(&self, _pages: Range<Vpn>) -> Result<(), MemoryError> {
        Ok(())
    }

    /// The client ends that itself, when it is told that it may.
    fn unregister(&self, _pages: Range<Vpn>) -> Result<(), MemoryError> {
        Ok(())
    }

    fn written(
        &self,
        pages: Range<Vpn>,
        max_pages: u64,
        out: &mut Vec<Written>,
    ) -> Result<Vpn, MemoryError> {
        let mut left = max_pages.max(1);
        let mut at = pages.start;
        loop {
            let next = self.book().next_to_look_at(&(at..pages.end), left);
            let Some((parts, is_fresh)) = next else { return Ok(pages.end) };
            let end = parts.last().map_or(pages.end, |last| last.end);
            let before = out.len();
            let reached = if is_fresh {
                self.process.first_look(parts.clone(), out).map(|()| None)
            } else {
                let book = Arc::clone(&self.book);
                let in_file = move |pages: &Range<Vpn>| book.lock().any_in_file(pages);
                self.process.written(parts.clone(), left, in_file, out)
            };
            let reached = reached.map_err(|error| {
                if is_fresh || error.kind() != io::ErrorKind::WouldBlock {
                    self.book().look_anew(&parts);
                }
                system("PAGEMAP_SCAN of a client")(error)
            })?;
            left = left.saturating_sub(out[before..].iter().map(|run| count(&run.pages)).sum());
            at = reached.unwrap_or(end);
            if left == 0 {
                return Ok(at);
            }
        }
    }

    fn kinds(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Kind>>) -> Result<(), MemoryError> {
        let (live, in_file) = {
            let book = self.book();
            (book.live_in(runs), book.in_file(runs))
        };
        if live.is_empty() {
            out.extend((0..runs.iter().map(count).sum()).map(|_| None));
            return Ok(());
        }
        let mut found = Vec::new();
        let looked = self.process.kinds(&live, in_file, &mut found);
        looked.map_err(system("PAGEMAP_SCAN of a client"))?;
        let mut found = live.iter().flat_map(|part| part.start.0..part.end.0).zip(found).peekable();
        out.extend(
            runs.iter()
                .flat_map(|run| run.start.0..run.end.0)
                .map(|page| found.next_if(|(at, _)| *at == page).and_then(|(_, kind)| kind)),
        );
        Ok(())
    }

    fn read(
        &self,
        runs: &[Range<Vpn>],
        each: &mut dyn FnMut(&[u8; PAGE_SIZE]),
    ) -> Result<(), MemoryError> {
        self.process.read(&self.readable(runs), each).map_err(|error| self.not_read(runs, error))
    }

    fn fingerprints(
        &self,
        runs: &[Range<Vpn>],
        prints: &Arc<Fingerprinter>,
        each: &mut dyn FnMut(Fingerprint),
    ) -> Result<(), MemoryError> {
        let found = self.process.fingerprints(&self.readable(runs), prints, each);
        found.map_err(|error| self.not_read(runs, error))
    }

    fn merge(&self, runs: &[Run], out: &mut Vec<Outcome>) {
        let until = Instant::now() + MERGE_WAIT;
        questions(runs).iter().for_each(|question| self.ask_merge(question, until, out));
    }

    fn late(&self, pages: &[Vpn], out: &mut Vec<(Vpn, Outcome)>) {
        self.book().take_outcomes(pages, out);
    }

    fn unmerge(&self, ranges: &[Range<Vpn>]) -> Result<(), MemoryError> {
        let until = Instant::now() + UNMERGE_WAIT;
        let questions = in_pieces(ranges, QUESTION_PAGES.min(UNMERGE_PAGES), QUESTION_RUNS);
        questions.iter().try_for_each(|question| self.ask_unmerge(question, until))
    }

    fn nodes_of(&self, runs: &[Range<Vpn>], out: &mut Vec<Option<Nid>>) -> Result<(), MemoryError> {
        if let Some(nid) = self.pools.only_node() {
            out.extend(runs.iter().flat_map(|run| run.start.0..run.end.0).map(|_| Some(nid)));
            return Ok(());
        }
        self.process.nodes_of(runs, out).map_err(system("move_pages of a client"))
    }

    fn mappings(&self) -> Result<Mappings, MemoryError> {
        Ok(Mappings {
            used: self.process.mappings().map_err(system("read /proc/PID/maps"))?,
            limit: mappings_limit().map_err(system("read vm.max_map_count"))?,
        })
    }

    fn metadata_bytes(&self) -> u64 {
        self.book().bytes()
    }
}

/// `live` are parts of `runs`, in order. Those before the first page that is in none of them.
fn up_to_the_first_gap(runs: &[Range<Vpn>], live: Vec<Range<Vpn>>) -> Vec<Range<Vpn>> {
    let mut wanted = runs.iter().flat_map(|run| run.start.0..run.end.0);
    let mut before = Vec::new();
    for part in live {
        let there = (part.start.0..part.end.0).take_while(|page| wanted.next() == Some(*page));
        let there = there.count() as u64;
        before.push(part.start..part.start.plus(there));
        if there < count(&part) {
            break;
        }
    }
    before
}

#[cfg(test)]
mod tests {
    use numerge_engine::Kpfn;

    use super::*;

    #[test]
    fn runs_are_cut_into_questions_that_name_one_file_a_run() {
        let first = Kpfn(FILE_PAGES - 10);
        let long = Run { pages: Vpn(100)..Vpn(100 + 3000), target: Target::Frames(first) };
        let cut = questions(std::slice::from_ref(&long));
        let all: Vec<&Run> = cut.iter().flatten().collect();
        assert_eq!(cut.len(), 2);
        assert_eq!(all[0].pages, Vpn(100)..Vpn(110));
        assert_eq!(all[1].target, Target::Frames(Kpfn(FILE_PAGES)));
        assert_eq!(all.iter().map(|run| count(&run.pages)).sum::<u64>(), 3000);
        assert!(all.windows(2).all(|two| two[0].pages.end == two[1].pages.start));
        let short = Run { pages: Vpn(0)..Vpn(1), target: Target::Zero };
        assert_eq!(questions(&vec![short; 600]).len(), 3);
        assert!(questions(&[]).is_empty());
    }

    #[test]
    fn what_is_read_ends_where_pages_are_gone() {
        let runs = [Vpn(0)..Vpn(4), Vpn(8)..Vpn(12)];
        let live = vec![Vpn(0)..Vpn(2), Vpn(2)..Vpn(4), Vpn(8)..Vpn(9), Vpn(10)..Vpn(12)];
        let before = up_to_the_first_gap(&runs, live);
        assert_eq!(before.iter().map(count).sum::<u64>(), 5);
        assert_eq!(before.last(), Some(&(Vpn(10)..Vpn(10))));
    }
}
