//! Whatever a client says, and whenever: what any bytes stand for is done to a book and to a model of it,
//! in which each page is by itself.

use std::collections::{BTreeMap, VecDeque};

use numerge_engine::Kpfn;
use numerge_protocol as protocol;
use proptest::prelude::*;

use super::*;

/// The pages that there can be.
const PAGES: u64 = 48;

/// What is known of one page, as the fields of [`Book`] have it.
#[derive(Clone, Copy, Default, Debug)]
struct Page {
    live: bool,
    fresh: bool,
    in_file: bool,
    stray: bool,
    returned: bool,
    outcome: Option<Outcome>,
    /// The worker has it in a region, and refuses to register it once more.
    held: bool,
    /// The engine takes it for mapped to a frame.
    merged: bool,
}

enum Question {
    Merge(Vec<Run>),
    Unmerge { pages: Vec<Range<Vpn>>, is_waited_for: bool },
}

impl Question {
    fn pages(&self) -> Vec<u64> {
        match self {
            Self::Merge(runs) => runs.iter().flat_map(|run| each(&run.pages)).collect(),
            Self::Unmerge { pages, .. } => pages.iter().flat_map(each).collect(),
        }
    }
}

fn each(pages: &Range<Vpn>) -> Range<u64> {
    pages.start.0..pages.end.0
}

/// Steps are read from these; when they are used up, the rest is zeros.
struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        u64::from(self.0.next().copied().unwrap_or(0)) % limit
    }

    fn pages(&mut self) -> Range<Vpn> {
        let start = self.below(PAGES);
        Vpn(start)..Vpn((start + 1 + self.below(12)).min(PAGES))
    }
}

/// A book, the model, and who uses them: the engine, and the client's worker.
struct Bed<'a> {
    bytes: Bytes<'a>,
    began: Instant,
    book: Book,
    pages: Vec<Page>,
    gone: VecDeque<Range<Vpn>>,
    asked: BTreeMap<u64, Question>,
    unmerged: BTreeMap<u64, Unmerged>,
    /// What the engine waits for, and the worker.
    engine_waits: Option<u64>,
    worker_waits: Option<u64>,
    questions: u64,
}

impl<'a> Bed<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes: Bytes(bytes.iter()),
            began: Instant::now(),
            book: Book::new(),
            pages: vec![Page::default(); usize::try_from(PAGES).unwrap()],
            gone: VecDeque::new(),
            asked: BTreeMap::new(),
            unmerged: BTreeMap::new(),
            engine_waits: None,
            worker_waits: None,
            questions: 0,
        }
    }

    fn page(&mut self, page: u64) -> &mut Page {
        &mut self.pages[usize::try_from(page).unwrap()]
    }

    fn change(&mut self, pages: impl IntoIterator<Item = u64>, change: impl Fn(&mut Page)) {
        pages.into_iter().for_each(|page| change(self.page(page)));
    }

    /// Those pages of a range for which something holds, joined where they are adjacent.
    fn parts(&self, pages: &Range<Vpn>, holds: impl Fn(&Page) -> bool) -> Vec<Range<Vpn>> {
        let mut parts: Vec<Range<Vpn>> = Vec::new();
        for page in each(pages).filter(|page| holds(&self.pages[usize::try_from(*page).unwrap()])) {
            match parts.last_mut() {
                Some(last) if last.end == Vpn(page) => last.end = Vpn(page + 1),
                _ => parts.push(Vpn(page)..Vpn(page + 1)),
            }
        }
        parts
    }

    fn is_asked_about(&self, page: u64) -> bool {
        self.asked.values().any(|question| question.pages().contains(&page))
    }

    fn is_being_unmerged(&self, page: u64) -> bool {
        let mut unmerges = self.asked.values().filter(|q| matches!(q, Question::Unmerge { .. }));
        unmerges.any(|question| question.pages().contains(&page))
    }

    fn step(&mut self) {
        match self.bytes.below(14) {
            0 => self.register(),
            1 => self.bury(),
            2 | 3 => self.work(),
            4 | 5 => self.ask_merge(),
            6 => self.ask_unmerge(),
            7 => self.hear_of_unmerge(),
            8 => self.take_outcomes(),
            9 => self.look(),
            // Others wait for the client too.
            10 | 11 => self.book.lose_patience(),
            _ => self.answer(),
        }
    }

    fn register(&mut self) {
        let pages = self.bytes.pages();
        if self.book.is_over() || !self.parts(&pages, |page| page.held).is_empty() {
            return;
        }
        assert_eq!(self.book.enliven(&pages), Ok(()));
        self.change(each(&pages), |page| {
            (page.live, page.fresh, page.held) = (true, true, true);
        });
        let gone: Vec<u64> = self.gone.iter().flat_map(each).collect();
        self.change(gone, |page| page.live = false);
    }

    /// The client says so of anything.
    fn bury(&mut self) {
        let pages = self.bytes.pages();
        assert_eq!(self.book.bury(pages.clone()), Ok(()));
        self.change(each(&pages), |page| (page.live, page.returned) = (false, false));
        self.gone.push_back(pages);
    }

    /// The worker's next step with what is gone; a client that did not unmerge strays is served no more.
    fn work(&mut self) {
        let Some(pages) = self.gone.front().cloned() else { return };
        if let Some(number) = self.worker_waits {
            let result = self.unmerged.remove(&number);
            assert_eq!(self.book.take_unmerged(Sequence(number)), result);
            match result {
                None => return,
                Some(Unmerged::Done) => self.worker_waits = None,
                Some(_) => return self.end(),
            }
        } else {
            let is_asked = each(&pages).any(|page| self.is_asked_about(page));
            assert_eq!(self.book.is_asked_about(&pages), is_asked);
            if is_asked || self.book.is_over() {
                return;
            }
            let strays = self.book.strays_in(&pages);
            assert_eq!(strays, self.parts(&pages, |page| page.stray));
            if !strays.is_empty() {
                self.worker_waits = Some(self.send_unmerge(strays));
                return;
            }
        }
        self.gone.pop_front();
        self.book.forget_buried();
        self.change(each(&pages), |page| *page = Page::default());
    }

    fn end(&mut self) {
        self.book.end();
        self.change(0..PAGES, |page| {
            (page.live, page.fresh, page.returned, page.outcome) = (false, false, false, None);
        });
    }

    fn ask_merge(&mut self) {
        let (first, count) = (self.bytes.below(100), 1 + self.bytes.below(3));
        let mut runs = Vec::new();
        let mut at = Vpn(0);
        for n in 0..count {
            let (pages, is_zero) = (self.bytes.pages(), self.bytes.below(4) == 0);
            let target =
                if is_zero { Target::Zero } else { Target::Frames(Kpfn(1000 * n + first)) };
            // A batch has each page once.
            if pages.start >= at {
                at = pages.end;
                runs.push(Run { pages, target });
            }
        }
        let mut outcomes = Vec::new();
        let askable = self.book.askable(&runs, &mut outcomes);
        let mut told = outcomes.iter();
        let mut wanted = BTreeMap::new();
        for run in &runs {
            for (skipped, page) in (0..).zip(each(&run.pages)) {
                let outcome = told.next().unwrap();
                let is_live = self.page(page).live;
                assert_eq!(*outcome == Outcome::Gone, !is_live, "{page}");
                if *outcome == Outcome::Late {
                    assert!(!self.is_being_unmerged(page), "{page}");
                    let target = match run.target {
                        Target::Frames(first) => Target::Frames(first.plus(skipped)),
                        Target::Zero => Target::Zero,
                    };
                    wanted.insert(page, target);
                } else if is_live {
                    assert_eq!(*outcome, Outcome::Deferred);
                }
            }
        }
        assert_eq!(told.next(), None);
        let asked = askable.iter().flat_map(|run| {
            (0..).zip(each(&run.pages)).map(|(skipped, page)| match run.target {
                Target::Frames(first) => (page, Target::Frames(first.plus(skipped))),
                Target::Zero => (page, Target::Zero),
            })
        });
        assert!(asked.eq(wanted), "{askable:?}");
        // The engine asks of no page again before it knows what became of it.
        let is_known = |page: &u64| {
            self.is_asked_about(*page)
                || self.pages[usize::try_from(*page).unwrap()].outcome.is_some()
        };
        let mut pages = askable.iter().flat_map(|run| each(&run.pages));
        if askable.is_empty() || !self.book.has_room() || pages.any(|page| is_known(&page)) {
            return;
        }
        assert_eq!(self.book.next_number(), Sequence(self.questions));
        self.book.asked_merge(askable.clone());
        let question = Question::Merge(askable);
        self.change(question.pages(), |page| {
            page.returned = false;
            // It asks of one that it takes for merged after a look at what it is now.
            page.merged &= page.in_file;
        });
        self.asked.insert(self.questions, question);
        self.questions += 1;
    }

    fn send_unmerge(&mut self, pages: Vec<Range<Vpn>>) -> u64 {
        self.book.asked_unmerge(pages.clone());
        self.asked.insert(self.questions, Question::Unmerge { pages, is_waited_for: true });
        self.questions += 1;
        self.questions - 1
    }

    fn ask_unmerge(&mut self) {
        let ranges = [self.bytes.pages()];
        let live = self.book.not_returned(&ranges);
        assert_eq!(live, self.parts(&ranges[0], |page| page.live && !page.returned));
        if live.is_empty() {
            // They are, or are gone, and the engine is told so.
            self.book.forget_returned(&ranges);
            self.change(each(&ranges[0]), |page| (page.returned, page.merged) = (false, false));
        } else if self.engine_waits.is_none()
            && !live.iter().flat_map(each).any(|page| self.is_asked_about(page))
        {
            self.engine_waits = Some(self.send_unmerge(live));
        }
    }

    /// The engine waits for one answer at a time, and gives up or not when there is none.
    fn hear_of_unmerge(&mut self) {
        let Some(number) = self.engine_waits else { return };
        let result = self.unmerged.remove(&number);
        assert_eq!(self.book.take_unmerged(Sequence(number)), result);
        if result.is_none() && self.bytes.below(2) == 0 {
            return;
        }
        self.engine_waits = None;
        if result.is_none() {
            self.book.abandon(Sequence(number));
            if let Some(Question::Unmerge { is_waited_for, .. }) = self.asked.get_mut(&number) {
                *is_waited_for = false;
            }
        }
    }

    fn take_outcomes(&mut self) {
        let pages = self.bytes.pages();
        let mut told = Vec::new();
        self.book.take_outcomes(&each(&pages).map(Vpn).collect::<Vec<_>>(), &mut told);
        let mut wanted = Vec::new();
        for page in each(&pages) {
            let known = self.page(page);
            wanted.extend(known.outcome.take().map(|outcome| (Vpn(page), outcome)));
        }
        assert_eq!(told, wanted);
        for (page, outcome) in told {
            let page = self.page(page.0);
            page.merged |= outcome == Outcome::Merged && page.in_file;
        }
    }

    fn look(&mut self) {
        if self.bytes.below(4) == 0 {
            let anew = self.bytes.pages();
            self.book.look_anew(std::slice::from_ref(&anew));
            self.change(each(&anew), |page| page.fresh = true);
        }
        let (mut pages, most) = (self.bytes.pages(), 1 + self.bytes.below(8));
        while let Some((parts, is_fresh)) = self.book.next_to_look_at(&pages, most) {
            assert!(!parts.is_empty());
            assert!(!is_fresh || parts.iter().map(count).sum::<u64>() <= most);
            for part in parts {
                assert!(part.start >= pages.start && part.start < part.end);
                assert!(part.end <= pages.end);
                assert_eq!(self.parts(&(pages.start..part.start), |page| page.live), []);
                let alike = self.parts(&part, |page| page.live && page.fresh == is_fresh);
                assert_eq!(alike, std::slice::from_ref(&part));
                self.change(each(&part), |page| page.fresh = false);
                pages.start = part.end;
            }
        }
        assert_eq!(self.parts(&pages, |page| page.live), []);
    }

    /// To what was asked or not, with what it was asked for or not, for as many pages or not.
    fn answer(&mut self) {
        let number = match self.bytes.below(4) {
            0 => self.bytes.below(self.questions + 2),
            choice => {
                let questions = self.asked.keys().copied().collect::<Vec<_>>();
                let choice = usize::try_from(choice + self.bytes.below(8)).unwrap();
                questions.get(choice % questions.len().max(1)).copied().unwrap_or(u64::MAX)
            }
        };
        let answer =
            self.any_answer(self.asked.get(&number).map(|question| question.pages().len()));
        let result = self.book.answer(Sequence(number), &answer);
        assert_eq!(result, self.wanted_result(number, &answer), "{number}: {answer:?}");
        if result.is_ok() {
            self.answered(number, &answer);
        }
    }

    fn any_answer(&mut self, wanted: Option<usize>) -> Answer<'static> {
        use protocol::Outcome::{Differs, Exhausted, Gone, Merged, Pinned, Refused};
        match self.bytes.below(8) {
            0 => Answer::Refused(protocol::Errno(5)),
            1 => Answer::Mappings { used: self.bytes.below(9), limit: 1 },
            2 | 3 => Answer::Unmerged(Unmerged::Done),
            4 => Answer::Unmerged(Unmerged::OutOfMemory),
            is_right => {
                let mut outcomes = Vec::new();
                for _ in 0..wanted.unwrap_or(3) {
                    let kind = self.bytes.below(8);
                    let kinds = [Differs, Exhausted, Gone, Pinned, Refused];
                    let outcome = kinds.get(usize::try_from(kind).unwrap()).unwrap_or(&Merged);
                    OutcomeRun::push(&mut outcomes, *outcome);
                }
                if is_right == 5 {
                    let pages = [0, 1, u32::MAX][usize::try_from(self.bytes.below(3)).unwrap()];
                    outcomes.push(OutcomeRun { outcome: Merged, pages });
                }
                Answer::Merged(outcomes.into())
            }
        }
    }

    fn wanted_result(&self, number: u64, answer: &Answer<'_>) -> Result<(), Lie> {
        match (self.asked.get(&number), answer) {
            (None, _) => Err(Lie::Unasked(number)),
            (Some(question @ Question::Merge(_)), Answer::Merged(told)) => {
                let (asked, found) = (question.pages().len() as u64, OutcomeRun::pages(told));
                let lie = Lie::Length { sequence: number, found, asked };
                if found == asked { Ok(()) } else { Err(lie) }
            }
            (Some(_), Answer::Refused(_))
            | (Some(Question::Unmerge { .. }), Answer::Unmerged(_)) => Ok(()),
            _ => Err(Lie::OtherKind(number)),
        }
    }

    fn answered(&mut self, number: u64, answer: &Answer<'_>) {
        let question = self.asked.remove(&number).unwrap();
        match (&question, answer) {
            (Question::Merge(runs), answer) => {
                let told: Vec<Outcome> = match answer {
                    Answer::Merged(told) => OutcomeRun::each(told).map(to_engine).collect(),
                    _ => vec![Outcome::Pinned; question.pages().len()],
                };
                let frames = runs.iter().flat_map(|run| {
                    let is_frame = matches!(run.target, Target::Frames(_));
                    each(&run.pages).map(move |page| (page, is_frame))
                });
                for ((page, is_frame), outcome) in frames.zip(told) {
                    let page = self.page(page);
                    page.in_file |= is_frame && outcome == Outcome::Merged;
                    page.stray |= !page.live && page.in_file;
                    page.outcome = page.live.then_some(outcome);
                }
            }
            (Question::Unmerge { is_waited_for, .. }, answer) => {
                let result = match answer {
                    Answer::Unmerged(result) => *result,
                    _ => Unmerged::Failed(protocol::Errno(5)),
                };
                if result == Unmerged::Done {
                    self.change(question.pages(), |page| {
                        page.in_file = false;
                        page.returned |= !is_waited_for && page.live;
                        // Who waits hears of it.
                        page.merged &= !is_waited_for;
                    });
                }
                if *is_waited_for {
                    self.unmerged.insert(number, result);
                }
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.book.is_asked_anything(), !self.asked.is_empty());
        assert_eq!(self.book.owes_since(Instant::now()), !self.asked.is_empty());
        assert!(!self.book.owes_since(self.began));
        let merges = self.asked.values().filter(|question| matches!(question, Question::Merge(_)));
        let merges = merges.count();
        assert_eq!(self.book.is_asked_to_merge(), merges > 0);
        assert!(merges <= QUESTIONS);
        assert_eq!(self.book.has_room(), self.asked.len() < QUESTIONS);
        let all = Vpn(0)..Vpn(PAGES);
        assert_eq!(self.book.live_in(std::slice::from_ref(&all)), self.parts(&all, |p| p.live));
        let in_file: Vec<_> =
            self.book.in_file(std::slice::from_ref(&all)).iter().map(|(part, ())| part).collect();
        assert_eq!(in_file, self.parts(&all, |page| page.in_file));
        assert_eq!(self.book.strays_in(&all), self.parts(&all, |page| page.stray));
        for page in &self.pages {
            // What the engine takes for merged may be so, or the engine will hear that it is not.
            assert!(!page.merged || !page.live || page.in_file || page.returned, "{page:?}");
        }
        let now = Instant::now();
        let patience = self.book.patient_until(now).saturating_duration_since(now);
        assert!(patience >= LEAST_PATIENCE && patience <= PATIENCE, "{patience:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn s6_whatever_a_client_says_is_taken_in_or_named_a_lie(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut bed = Bed::new(&bytes);
        while bed.bytes.0.len() > 0 {
            bed.step();
            bed.check();
        }
        // Nobody waits for one who is gone, and its questions are over with it.
        bed.end();
        bed.book.forget_asked();
        bed.asked.clear();
        bed.check();
    }
}

#[test]
fn s6_pages_in_more_pieces_than_are_kept_track_of_are_a_lie() {
    let mut book = Book::new();
    let piece = |n: u64| Vpn(2 * n)..Vpn(2 * n + 1);
    for n in 0..RANGES as u64 {
        assert_eq!(book.enliven(&piece(n)), Ok(()));
    }
    assert_eq!(book.enliven(&piece(RANGES as u64)), Err(Lie::Pieces));
    // Or of one that is cut up.
    let mut book = Book::new();
    assert_eq!(book.enliven(&(Vpn(0)..Vpn(4 * RANGES as u64))), Ok(()));
    let cut = (0..=RANGES as u64).find(|n| book.bury(piece(*n)) != Ok(()));
    assert_eq!(cut, Some(RANGES as u64));
}
