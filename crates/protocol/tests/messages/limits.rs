//! Each limit: at it, and one beyond it, on both ends.

use numerge_protocol::limits::{
    ADDRESS_PAGES, FILE_PAGES, FRAME_NUMBERS, MAPPINGS, MERGE_PAGES, MERGE_RUNS, REGIONS,
    UNMERGE_PAGES, UNMERGE_RANGES, VERSION,
};
use numerge_protocol::{
    Answer, DecodeError, EncodeError, Errno, Kpfn, Limits, Message, Outcome, OutcomeRun, Reason,
    RegionError, RegionId, Run, Scope, Sequence, Span, Target, ToClient, ToEngine, Unmerged,
    Violation, decode, encode,
};

use crate::samples::{LIMITS, done, hello, span};
use crate::unchecked;

/// Both ends take it, and read back what was written.
fn taken<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
    let mut buffer = vec![0; 64 << 10];
    let bytes = encode(message, &mut buffer).expect("a message within its limits");
    assert_eq!(&decode::<M>(bytes).expect("a message within its limits"), message);
}

/// Both ends refuse it, for the same reason, which is given.
#[track_caller]
fn refused<M: Message + PartialEq + std::fmt::Debug>(message: &M) -> Violation {
    let mut buffer = vec![0; 64 << 10];
    let Err(EncodeError::Violation(violation)) = encode(message, &mut buffer) else {
        panic!("encoded beyond its limits: {message:?}");
    };
    assert_eq!(decode::<M>(&unchecked(message)), Err(DecodeError::Violation(violation.clone())));
    violation
}

/// Both ends refuse it, and say what they found and what is allowed.
#[track_caller]
fn refused_saying<M: Message + PartialEq + std::fmt::Debug>(message: &M, words: &[&str]) {
    let text = refused(message).to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

fn merge(runs: Vec<Run>) -> ToClient<'static> {
    ToClient::Merge { sequence: Sequence(1), runs: runs.into() }
}

const fn zeros(span: Span) -> Run {
    Run { span, target: Target::Zero }
}

fn unmerge(ranges: Vec<Span>) -> ToClient<'static> {
    ToClient::Unmerge { sequence: Sequence(1), ranges: ranges.into() }
}

fn merged(runs: &[(Outcome, u32)]) -> ToEngine<'static> {
    let runs = runs.iter().map(|&(outcome, pages)| OutcomeRun { outcome, pages });
    done(Answer::Merged(runs.collect()))
}

#[test]
fn versions() {
    let hello =
        |version| ToEngine::Hello { version, page_size: 4096, scope: Scope::Advised, domain: None };
    let welcome = |version| ToClient::Welcome { version, limits: LIMITS };
    taken(&hello(2));
    taken(&welcome(2));
    for version in [0, 1, 3, u32::MAX] {
        refused_saying(&hello(version), &["version", &version.to_string(), "version 2"]);
        refused_saying(&welcome(version), &["version", &version.to_string(), "version 2"]);
    }
}

#[test]
fn page_sizes() {
    let hello = |page_size| ToEngine::Hello {
        version: VERSION,
        page_size,
        scope: Scope::Api,
        domain: None,
    };
    for size in [4096, 16_384, 65_536] {
        taken(&hello(size));
    }
    refused_saying(&hello(2048), &["2048", "4096", "65536"]);
    refused_saying(&hello(131_072), &["131072", "4096", "65536"]);
    refused_saying(&hello(4097), &["4097", "power of two"]);
}

#[test]
fn names_of_domains() {
    taken(&hello(Some("a".into())));
    taken(&hello(Some("AZaz09._-".into())));
    taken(&hello(Some("x".repeat(64).into())));
    refused_saying(&hello(Some("".into())), &["0", "1 to 64"]);
    refused_saying(&hello(Some("x".repeat(65).into())), &["65", "1 to 64"]);
    for bad in ["a/b", "a b", "ä", "a\0", "a\n"] {
        let found = bad.chars().find(|c| !c.is_ascii_alphanumeric()).unwrap();
        refused_saying(&hello(Some(bad.into())), &[&format!("{found:?}"), "A-Z"]);
    }
}

#[test]
fn pages_of_regions_and_pages_gone() {
    let register = |span| ToEngine::Register { region: RegionId(0), span };
    let gone = |span| ToEngine::Gone { span };
    for good in [span(0, 1), span(0, ADDRESS_PAGES), span(ADDRESS_PAGES - 1, 1)] {
        taken(&register(good));
        taken(&gone(good));
    }
    for bad in [span(0, 0), span(0, ADDRESS_PAGES + 1)] {
        refused_saying(&register(bad), &[&bad.pages.to_string(), "1 to 68719476736"]);
        refused(&gone(bad));
    }
    for bad in [span(1, ADDRESS_PAGES), span(ADDRESS_PAGES, 1), span(u64::MAX, 1)] {
        refused_saying(&register(bad), &[&format!("{:#x}", bad.start.0), "0x1000000000"]);
        refused(&gone(bad));
    }
    refused(&register(span(u64::MAX, u64::MAX)));
}

#[test]
fn runs_of_a_merge() {
    taken(&merge(vec![zeros(span(0, 1))]));
    taken(&merge(vec![zeros(span(0, MERGE_PAGES / 1024)); MERGE_RUNS]));
    refused_saying(&merge(vec![]), &["runs of a merge", "0", "1 to 1024"]);
    refused_saying(&merge(vec![zeros(span(0, 1)); MERGE_RUNS + 1]), &["1025", "1 to 1024"]);
    refused_saying(&merge(vec![zeros(span(0, 0))]), &["pages of a run", "0"]);
    refused(&merge(vec![zeros(span(ADDRESS_PAGES, 1))]));
}

#[test]
fn pages_of_a_merge() {
    taken(&merge(vec![zeros(span(0, MERGE_PAGES))]));
    refused_saying(&merge(vec![zeros(span(0, MERGE_PAGES + 1))]), &["16385", "1 to 16384"]);
    refused_saying(
        &merge(vec![zeros(span(0, MERGE_PAGES)), zeros(span(MERGE_PAGES, 1))]),
        &["16385"],
    );
    refused(&merge(vec![zeros(span(0, ADDRESS_PAGES)); MERGE_RUNS]));
}

#[test]
fn frames_of_a_run() {
    let run = |first, pages| {
        merge(vec![Run { span: span(0, pages), target: Target::Frames(Kpfn(first)) }])
    };
    taken(&run(0, 1));
    taken(&run(FRAME_NUMBERS - 1, 1));
    taken(&run(FRAME_NUMBERS - 16, 16));
    refused_saying(&run(FRAME_NUMBERS, 1), &["frames", "0x1000000000"]);
    refused(&run(FRAME_NUMBERS - 16, 17));
    refused(&run(u64::MAX, 1));
}

#[test]
fn ranges_of_an_unmerge() {
    taken(&unmerge(vec![span(0, 1)]));
    taken(&unmerge(vec![span(0, UNMERGE_PAGES / 1024); UNMERGE_RANGES]));
    taken(&unmerge(vec![span(ADDRESS_PAGES - UNMERGE_PAGES, UNMERGE_PAGES)]));
    refused_saying(&unmerge(vec![]), &["ranges of an unmerge", "0", "1 to 1024"]);
    refused_saying(&unmerge(vec![span(0, 1); UNMERGE_RANGES + 1]), &["1025", "1 to 1024"]);
    refused_saying(&unmerge(vec![span(0, UNMERGE_PAGES + 1)]), &["262145", "1 to 262144"]);
    refused(&unmerge(vec![span(0, UNMERGE_PAGES), span(0, 1)]));
    refused(&unmerge(vec![span(0, 0)]));
    refused(&unmerge(vec![span(ADDRESS_PAGES, 1)]));
}

#[test]
fn outcomes_of_a_merge() {
    taken(&merged(&[(Outcome::Merged, 1)]));
    taken(&merged(&[(Outcome::Merged, 16_384)]));
    taken(&merged(&[(Outcome::Merged, 16_383), (Outcome::Gone, 1)]));
    refused_saying(&merged(&[]), &["0", "1 to 16384"]);
    refused_saying(&merged(&[(Outcome::Merged, 0)]), &["0", "1 to 16384"]);
    refused_saying(&merged(&[(Outcome::Merged, 16_385)]), &["16385"]);
    refused_saying(&merged(&[(Outcome::Merged, 16_384), (Outcome::Gone, 1)]), &["16385"]);
    refused(&merged(&[(Outcome::Merged, u32::MAX), (Outcome::Gone, u32::MAX)]));
    let found = refused(&merged(&[(Outcome::Gone, 1), (Outcome::Gone, 1)]));
    assert_eq!(found, Violation::NotJoined { found: Outcome::Gone });
    let too_many: Vec<_> = (0..16_385)
        .map(|n| (if n % 2 == 0 { Outcome::Gone } else { Outcome::Merged }, 1))
        .collect();
    refused_saying(&merged(&too_many), &["runs of outcomes", "16385"]);
}

#[test]
fn numbers_of_errors() {
    let each = |errno| {
        let failed = RegionError::Failed(errno);
        (
            [done(Answer::Refused(errno)), done(Answer::Unmerged(Unmerged::Failed(errno)))],
            ToClient::Unregistered { region: RegionId(0), error: Some(failed) },
        )
    };
    for good in [1, 4095] {
        let (engine, client) = each(Errno(good));
        engine.iter().for_each(taken);
        taken(&client);
    }
    for bad in [0, 4096, u16::MAX] {
        let (engine, client) = each(Errno(bad));
        for message in &engine {
            refused_saying(message, &[&bad.to_string(), "1 to 4095"]);
        }
        refused(&client);
    }
}

#[test]
fn numbers_of_mappings() {
    let mappings = |used, limit| done(Answer::Mappings { used, limit });
    taken(&mappings(0, 1));
    taken(&mappings(MAPPINGS, MAPPINGS));
    taken(&mappings(2, 1));
    refused_saying(&mappings(MAPPINGS + 1, 1), &["2147483648", "0 to 2147483647"]);
    refused_saying(&mappings(0, MAPPINGS + 1), &["2147483648", "1 to 2147483647"]);
    refused_saying(&mappings(0, 0), &["0", "1 to 2147483647"]);
}

#[test]
fn limits_of_a_welcome() {
    let welcome = |limits| ToClient::Welcome { version: VERSION, limits };
    let least = Limits { regions: 1, region_pages: 1, pages: 1, merge_runs: 1, merge_pages: 1 };
    let most = Limits {
        regions: u32::try_from(REGIONS).unwrap(),
        region_pages: ADDRESS_PAGES,
        pages: ADDRESS_PAGES,
        merge_runs: 1024,
        merge_pages: 16_384,
    };
    taken(&welcome(least));
    taken(&welcome(most));
    for bad in [
        Limits { regions: 0, ..least },
        Limits { region_pages: 0, ..least },
        Limits { pages: 0, ..least },
        Limits { merge_runs: 0, ..least },
        Limits { merge_pages: 0, ..least },
    ] {
        refused_saying(&welcome(bad), &["0, where 1 to"]);
    }
    for bad in [
        Limits { regions: most.regions + 1, ..least },
        Limits { region_pages: most.region_pages + 1, ..least },
        Limits { pages: most.pages + 1, ..least },
        Limits { merge_runs: most.merge_runs + 1, ..least },
        Limits { merge_pages: most.merge_pages + 1, ..least },
    ] {
        refused(&welcome(bad));
    }
}

#[test]
fn texts_for_people() {
    let rejected =
        |text: &str| ToClient::Rejected { reason: Reason::Domain, text: text.to_owned().into() };
    taken(&rejected(""));
    taken(&rejected(&"x".repeat(256)));
    taken(&rejected(&"ä".repeat(128)));
    refused_saying(&rejected(&"x".repeat(257)), &["257", "0 to 256"]);
    refused_saying(&rejected(&"ä".repeat(129)), &["258"]);
    for bad in ["a\n", "\u{1b}[2J", "\0", "\u{85}"] {
        refused_saying(&rejected(bad), &["control"]);
    }
}

#[test]
fn files_of_frames() {
    let frames = |file, pages| ToClient::Frames { file, pages };
    taken(&frames(0, 1));
    taken(&frames((1 << 18) - 1, FILE_PAGES));
    refused_saying(&frames(1 << 18, 1), &["262144", "0 to 262143"]);
    refused_saying(&frames(0, 0), &["0", "1 to 262144"]);
    refused_saying(&frames(0, FILE_PAGES + 1), &["262145", "1 to 262144"]);
}
