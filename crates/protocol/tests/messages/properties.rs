//! Any message comes back as it was; any bytes are an error or the encoding of what they decode to.

use std::fmt::Debug;

use numerge_protocol::limits::{ADDRESS_PAGES, FILE_PAGES, FILES, MAPPINGS, VERSION};
use numerge_protocol::{
    Answer, Errno, Kpfn, Limits, Message, Outcome, OutcomeRun, Reason, RegionError, RegionId, Run,
    Scope, Sequence, Span, Target, ToClient, ToEngine, Unmerged, Vpn, decode, encode,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::samples;
use crate::unchecked;

fn spans(max_pages: u64) -> impl Strategy<Value = Span> {
    (1..=max_pages).prop_flat_map(|pages| {
        (0..=ADDRESS_PAGES - pages).prop_map(move |start| Span { start: Vpn(start), pages })
    })
}

fn errnos() -> impl Strategy<Value = Errno> {
    (1..=4095_u16).prop_map(Errno)
}

fn outcomes() -> impl Strategy<Value = Vec<OutcomeRun>> {
    use Outcome::{Differs, Exhausted, Gone, Merged, Pinned, Refused};
    let outcome = select(vec![Merged, Differs, Pinned, Refused, Gone, Exhausted]);
    vec((outcome, 1..=16_u32), 1..1024).prop_map(|given| {
        let mut runs = Vec::new();
        for (outcome, pages) in given {
            (0..pages).for_each(|_| OutcomeRun::push(&mut runs, outcome));
        }
        runs
    })
}

fn answers() -> impl Strategy<Value = Answer<'static>> {
    prop_oneof![
        outcomes().prop_map(|runs| Answer::Merged(runs.into())),
        Just(Answer::Unmerged(Unmerged::Done)),
        Just(Answer::Unmerged(Unmerged::OutOfMemory)),
        errnos().prop_map(|errno| Answer::Unmerged(Unmerged::Failed(errno))),
        (0..=MAPPINGS, 1..=MAPPINGS).prop_map(|(used, limit)| Answer::Mappings { used, limit }),
        errnos().prop_map(Answer::Refused),
    ]
}

fn to_engine() -> impl Strategy<Value = ToEngine<'static>> {
    let scope = select(vec![Scope::Advised, Scope::Mapped, Scope::Api]);
    let hello = (12..=16_u32, scope, option::of("[A-Za-z0-9._-]{1,64}"));
    prop_oneof![
        hello.prop_map(|(shift, scope, domain)| ToEngine::Hello {
            version: VERSION,
            page_size: 1 << shift,
            scope,
            domain: domain.map(Into::into),
        }),
        (any::<u64>(), spans(ADDRESS_PAGES))
            .prop_map(|(region, span)| ToEngine::Register { region: RegionId(region), span }),
        spans(ADDRESS_PAGES).prop_map(|span| ToEngine::Gone { span }),
        any::<u64>().prop_map(|region| ToEngine::Unregister { region: RegionId(region) }),
        (any::<u64>(), answers())
            .prop_map(|(n, answer)| ToEngine::Done { sequence: Sequence(n), answer }),
        Just(ToEngine::Bye),
    ]
}

fn welcomes() -> impl Strategy<Value = ToClient<'static>> {
    let numbers =
        (1..=1_u32 << 16, 1..=ADDRESS_PAGES, 1..=ADDRESS_PAGES, 1..=1024_u32, 1..=16_384_u32);
    numbers.prop_map(|(regions, region_pages, pages, merge_runs, merge_pages)| ToClient::Welcome {
        version: VERSION,
        limits: Limits { regions, region_pages, pages, merge_runs, merge_pages },
    })
}

fn rejections() -> impl Strategy<Value = ToClient<'static>> {
    let reasons = vec![
        Reason::Version,
        Reason::PageSize,
        Reason::Domain,
        Reason::TooManyClients,
        Reason::Permission,
        Reason::Unavailable,
        Reason::Protocol,
        Reason::Other,
    ];
    (select(reasons), "\\PC{0,60}").prop_map(|(reason, text)| {
        let text = text.chars().filter(|c| !c.is_control()).collect::<String>();
        ToClient::Rejected { reason, text: text.into() }
    })
}

fn runs() -> impl Strategy<Value = Run> {
    (spans(16), any::<bool>(), 0..=(1_u64 << 36) - 16).prop_map(|(span, is_zero, first)| Run {
        span,
        target: if is_zero { Target::Zero } else { Target::Frames(Kpfn(first)) },
    })
}

fn to_client() -> impl Strategy<Value = ToClient<'static>> {
    let errors = prop_oneof![
        Just(RegionError::Unknown),
        Just(RegionError::OverLimit),
        Just(RegionError::InUse),
        Just(RegionError::OutOfMemory),
        errnos().prop_map(RegionError::Failed),
    ];
    let files = (0..u32::try_from(FILES).expect("18 bits"), 1..=FILE_PAGES);
    prop_oneof![
        welcomes(),
        rejections(),
        files.prop_map(|(file, pages)| ToClient::Frames { file, pages }),
        (any::<u64>(), vec(runs(), 1..=1024))
            .prop_map(|(n, runs)| ToClient::Merge { sequence: Sequence(n), runs: runs.into() }),
        (any::<u64>(), vec(spans(256), 1..=1024)).prop_map(|(n, ranges)| ToClient::Unmerge {
            sequence: Sequence(n),
            ranges: ranges.into()
        }),
        any::<u64>().prop_map(|n| ToClient::Mappings { sequence: Sequence(n) }),
        (any::<u64>(), option::of(errors))
            .prop_map(|(region, error)| ToClient::Unregistered { region: RegionId(region), error }),
        any::<bool>().prop_map(|keep| ToClient::Leave { keep }),
        Just(ToClient::Userfaultfd),
    ]
}

fn comes_back<M: Message + PartialEq + Debug>(message: &M) -> Result<(), TestCaseError> {
    let mut buffer = vec![0; 64 << 10];
    let bytes = encode(message, &mut buffer).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let back = decode::<M>(bytes).map_err(|e| TestCaseError::fail(e.to_string()))?;
    prop_assert_eq!(&back, message);
    Ok(())
}

/// Gives whether the bytes are a message.
pub(crate) fn is_one_encoding<M: Message + PartialEq + Debug>(
    bytes: &[u8],
) -> Result<bool, TestCaseError> {
    let Ok(message) = decode::<M>(bytes) else {
        return Ok(false);
    };
    let mut buffer = vec![0; 64 << 10];
    let again = encode(&message, &mut buffer).map_err(|e| TestCaseError::fail(e.to_string()))?;
    prop_assert_eq!(again, bytes);
    Ok(true)
}

/// Changes to bytes: at a place, what to do, and with what.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    vec((any::<prop::sample::Index>(), 0..3_u8, any::<u8>()), 1..4)
}

fn changed(mut bytes: Vec<u8>, changes: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    for (place, what, byte) in changes {
        let at = place.index(bytes.len() + 1);
        match what {
            0 => bytes.insert(at, *byte),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            _ if at < bytes.len() => bytes[at] = *byte,
            _ => bytes.push(*byte),
        }
    }
    bytes
}

proptest! {
    #[test]
    fn any_message_to_an_engine_comes_back(message in to_engine()) {
        comes_back(&message)?;
    }

    #[test]
    fn any_message_to_a_client_comes_back(message in to_client()) {
        comes_back(&message)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_bytes_are_one_encoding_or_none(
        direction in 0..2_u8,
        kind in 0..10_u8,
        rest in vec(prop_oneof![0..8_u8, any::<u8>()], 0..40),
    ) {
        let bytes = [&[direction, kind][..], &rest].concat();
        is_one_encoding::<ToEngine<'_>>(&bytes)?;
        is_one_encoding::<ToClient<'_>>(&bytes)?;
    }

    #[test]
    fn messages_with_some_bytes_changed_are_one_encoding_or_none(
        which in any::<prop::sample::Index>(),
        changes in changes(),
    ) {
        let engine = samples::to_engine();
        let client = samples::to_client();
        let at = which.index(engine.len() + client.len());
        let bytes = match engine.get(at) {
            Some((_, message)) => unchecked(message),
            None => unchecked(&client[at - engine.len()].1),
        };
        let bytes = changed(bytes, &changes);
        is_one_encoding::<ToEngine<'_>>(&bytes)?;
        is_one_encoding::<ToClient<'_>>(&bytes)?;
    }
}
