//! What is known of a client, without a client.

use numerge_engine::Kpfn;
use numerge_protocol as protocol;

use super::*;

fn pages(range: Range<u64>) -> Range<Vpn> {
    Vpn(range.start)..Vpn(range.end)
}

fn run(range: Range<u64>, first: u64) -> Run {
    Run { pages: pages(range), target: Target::Frames(Kpfn(first)) }
}

fn told(outcomes: &[(protocol::Outcome, u32)]) -> Answer<'static> {
    let run = |(outcome, pages): &(_, _)| OutcomeRun { outcome: *outcome, pages: *pages };
    Answer::Merged(outcomes.iter().map(run).collect())
}

/// Asks for what can be asked for, and gives the number of the question and the outcomes.
fn ask(book: &mut Book, runs: &[Run]) -> (Sequence, Vec<Outcome>) {
    let mut outcomes = Vec::new();
    let askable = book.askable(runs, &mut outcomes);
    let sequence = book.next_number();
    book.asked_merge(askable);
    (sequence, outcomes)
}

fn outcomes(book: &mut Book, range: Range<u64>) -> Vec<(u64, Outcome)> {
    let (asked, mut out) = (range.map(Vpn).collect::<Vec<_>>(), Vec::new());
    book.take_outcomes(&asked, &mut out);
    out.into_iter().map(|(page, outcome)| (page.0, outcome)).collect()
}

fn book(live: Range<u64>) -> Book {
    let mut book = Book::new();
    book.enliven(&pages(live)).unwrap();
    book
}

#[test]
fn only_what_is_there_is_asked_for_each_page_with_its_frame() {
    let mut book = book(10..20);
    book.bury(pages(12..14)).unwrap();
    let mut outcomes = Vec::new();
    let askable = book.askable(&[run(8..16, 100), run(18..22, 200)], &mut outcomes);
    assert_eq!(askable, [run(10..12, 102), run(14..16, 106), run(18..20, 200)]);
    use Outcome::{Gone, Late};
    let wanted = [Gone, Gone, Late, Late, Gone, Gone, Late, Late, Late, Late, Gone, Gone];
    assert_eq!(outcomes, wanted);
}

#[test]
fn outcomes_are_told_once() {
    let mut book = book(0..10);
    let (sequence, _) = ask(&mut book, &[run(2..5, 100)]);
    assert_eq!(outcomes(&mut book, 0..10), []);
    let answer = told(&[(protocol::Outcome::Merged, 2), (protocol::Outcome::Differs, 1)]);
    book.answer(sequence, &answer).unwrap();
    assert_eq!(outcomes(&mut book, 0..3), [(2, Outcome::Merged)]);
    assert_eq!(outcomes(&mut book, 0..10), [(3, Outcome::Merged), (4, Outcome::Differs)]);
    assert_eq!(outcomes(&mut book, 0..10), []);
    assert!(book.any_in_file(&pages(2..4)) && !book.any_in_file(&pages(4..10)));
    assert_eq!(book.answer(sequence, &answer), Err(Lie::Unasked(0)));
}

#[test]
fn a_silence_is_a_stall_if_it_was_asked_something() {
    let mut book = book(0..10);
    let now = Instant::now();
    let at = |ms| now + Duration::from_millis(ms);
    // Silent for long, but nobody asked.
    book.hear(at(10_000));
    assert_eq!(book.stalls(at(20_000)), Stalls::default());
    let (sequence, _) = ask(&mut book, &[run(2..5, 100)]);
    // Asked now, in truth, which is before it was heard last.
    assert_eq!(book.stalls(at(10_099)), Stalls::default());
    let long = Duration::from_millis(100);
    let one = Stalls { count: 1, total: long, longest: long };
    assert_eq!(book.stalls(at(10_100)), one);
    book.hear(at(10_100));
    // What it said was no answer; nor was what it says soon after.
    book.hear(at(10_150));
    assert_eq!(book.stalls(at(10_249)), one);
    let longer = Duration::from_millis(500);
    let two = Stalls { count: 2, total: long + longer, longest: longer };
    book.hear(at(10_650));
    book.answer(sequence, &told(&[(protocol::Outcome::Merged, 3)])).unwrap();
    assert_eq!(book.stalls(at(90_000)), two);
}

#[test]
fn a_lie_leaves_the_question_unanswered() {
    let mut book = book(0..10);
    let (sequence, _) = ask(&mut book, &[run(2..5, 100)]);
    let merged = protocol::Outcome::Merged;
    let lies = [
        (told(&[(merged, 2)]), Lie::Length { sequence: 0, found: 2, asked: 3 }),
        (told(&[(merged, 4)]), Lie::Length { sequence: 0, found: 4, asked: 3 }),
        (Answer::Unmerged(Unmerged::Done), Lie::OtherKind(0)),
        (Answer::Mappings { used: 1, limit: 1 }, Lie::OtherKind(0)),
    ];
    for (answer, lie) in lies {
        assert_eq!(book.answer(sequence, &answer), Err(lie));
        assert!(book.is_asked_to_merge());
        assert_eq!(outcomes(&mut book, 0..10), []);
    }
}

/// The engine is told that they are gone by other means, and not before the answer is there.
#[test]
fn pages_gone_before_the_answer_have_no_outcome_and_are_strays_if_merged() {
    let mut book = book(0..10);
    let (sequence, _) = ask(&mut book, &[run(0..10, 100)]);
    book.bury(pages(3..6)).unwrap();
    assert!(book.is_asked_about(&pages(5..7)));
    let answer = told(&[(protocol::Outcome::Merged, 4), (protocol::Outcome::Gone, 6)]);
    book.answer(sequence, &answer).unwrap();
    let told: Vec<u64> = outcomes(&mut book, 0..10).into_iter().map(|(page, _)| page).collect();
    assert_eq!(told, [0, 1, 2, 6, 7, 8, 9]);
    assert_eq!(book.strays_in(&pages(0..10)), [pages(3..4)]);
    book.forget_buried();
    assert_eq!(book.strays_in(&pages(0..10)), []);
}

/// The client said both before the engine was told of either.
#[test]
fn pages_registered_and_gone_again_do_not_come_to_life() {
    let mut book = Book::new();
    book.bury(pages(3..6)).unwrap();
    book.enliven(&pages(0..10)).unwrap();
    assert_eq!(book.live_in(&[pages(0..10)]), [pages(0..3), pages(6..10)]);
    book.forget_buried();
    book.enliven(&pages(3..6)).unwrap();
    assert_eq!(book.live_in(&[pages(0..10)]), [pages(0..10)]);
}

#[test]
fn pages_that_may_be_unmerged_at_any_moment_are_not_merged() {
    let mut book = book(0..10);
    let sequence = book.next_number();
    book.asked_unmerge(vec![pages(4..6)]);
    book.abandon(sequence);
    let mut outcomes = Vec::new();
    assert_eq!(book.askable(&[run(5..6, 100)], &mut outcomes), []);
    assert_eq!(outcomes, [Outcome::Deferred]);
    book.answer(sequence, &Answer::Unmerged(Unmerged::Done)).unwrap();
    assert_eq!(book.take_unmerged(sequence), None, "nobody waits");
    assert_eq!(book.askable(&[run(5..6, 100)], &mut outcomes).len(), 1);
}

#[test]
fn an_unmerge_refused_is_one_that_failed() {
    let mut book = book(0..10);
    let sequence = book.next_number();
    book.asked_unmerge(vec![pages(4..6)]);
    book.answer(sequence, &Answer::Refused(protocol::Errno(5))).unwrap();
    assert_eq!(book.take_unmerged(sequence), Some(Unmerged::Failed(protocol::Errno(5))));
    assert_eq!(book.take_unmerged(sequence), None);
}

#[test]
fn only_so_many_questions_are_unanswered() {
    let mut book = book(0..100);
    for n in 0..QUESTIONS as u64 {
        assert!(book.has_room());
        ask(&mut book, &[run(n..n + 1, 100)]);
    }
    assert!(!book.has_room());
}

#[test]
fn who_is_asked_nothing_is_not_silent() {
    let mut book = book(0..10);
    let later = Instant::now() + 10 * PATIENCE;
    assert!(!book.is_silent(later));
    ask(&mut book, &[run(0..1, 100)]);
    assert!(book.is_silent(later));
    let until = book.patient_until(Instant::now());
    (0..20).for_each(|_| book.lose_patience());
    assert!(book.patient_until(Instant::now()) < until);
}

#[test]
fn new_pages_are_looked_at_once_whatever_was_written() {
    let mut book = book(0..10);
    let all = pages(0..20);
    assert_eq!(book.next_to_look_at(&all, 4), Some((vec![pages(0..4)], true)));
    assert_eq!(book.next_to_look_at(&all, 4), Some((vec![pages(0..4)], false)));
    assert_eq!(book.next_to_look_at(&pages(4..20), 100), Some((vec![pages(4..10)], true)));
    assert_eq!(book.next_to_look_at(&all, 4), Some((vec![pages(0..10)], false)));
    assert_eq!(book.next_to_look_at(&pages(10..20), 4), None);
    book.bury(pages(3..6)).unwrap();
    book.forget_buried();
    book.enliven(&pages(3..5)).unwrap();
    assert_eq!(book.next_to_look_at(&all, 4), Some((vec![pages(0..3)], false)));
    assert_eq!(book.next_to_look_at(&pages(3..20), 4), Some((vec![pages(3..5)], true)));
}
