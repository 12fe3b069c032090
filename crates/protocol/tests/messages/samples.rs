//! A message of each kind and each choice, with a name.

use std::borrow::Cow;

use numerge_protocol::limits::{MERGE_PAGES, VERSION};
use numerge_protocol::{
    Answer, Errno, Kpfn, Limits, Outcome, OutcomeRun, Reason, RegionError, RegionId, Run, Scope,
    Sequence, Span, Target, ToClient, ToEngine, Unmerged, Vpn,
};

pub(crate) const fn span(start: u64, pages: u64) -> Span {
    Span { start: Vpn(start), pages }
}

pub(crate) const fn hello(domain: Option<Cow<'_, str>>) -> ToEngine<'_> {
    ToEngine::Hello { version: VERSION, page_size: 4096, scope: Scope::Mapped, domain }
}

pub(crate) const fn done(answer: Answer<'_>) -> ToEngine<'_> {
    ToEngine::Done { sequence: Sequence(300), answer }
}

pub(crate) const LIMITS: Limits = Limits {
    regions: 4096,
    region_pages: 1 << 30,
    pages: 1 << 32,
    merge_runs: 1024,
    merge_pages: 16_384,
};

pub(crate) fn to_engine() -> Vec<(&'static str, ToEngine<'static>)> {
    let outcomes = [
        (Outcome::Merged, 200),
        (Outcome::Differs, 1),
        (Outcome::Pinned, 2),
        (Outcome::Refused, 3),
        (Outcome::Gone, 4),
        (Outcome::Exhausted, 5),
    ];
    let outcomes = outcomes.map(|(outcome, pages)| OutcomeRun { outcome, pages });
    vec![
        ("hello", hello(None)),
        ("hello-domain", hello(Some("guests_of.team-1".into()))),
        ("register", ToEngine::Register { region: RegionId(7), span: span(0x7f12_3456, 512) }),
        ("gone", ToEngine::Gone { span: span(0x7f12_3456, 1) }),
        ("unregister", ToEngine::Unregister { region: RegionId(u64::MAX) }),
        ("done-merged", done(Answer::Merged(outcomes.to_vec().into()))),
        ("done-unmerged", done(Answer::Unmerged(Unmerged::Done))),
        ("done-unmerged-out-of-memory", done(Answer::Unmerged(Unmerged::OutOfMemory))),
        ("done-unmerged-failed", done(Answer::Unmerged(Unmerged::Failed(Errno(14))))),
        ("done-mappings", done(Answer::Mappings { used: 300, limit: 65_530 })),
        ("done-refused", done(Answer::Refused(Errno(22)))),
        ("bye", ToEngine::Bye),
    ]
}

pub(crate) fn to_client() -> Vec<(&'static str, ToClient<'static>)> {
    let runs = [
        Run { span: span(0x7f12_3456, 64), target: Target::Frames(Kpfn(0x4_0010)) },
        Run { span: span(0x10, 1), target: Target::Zero },
    ];
    let ranges = [span(0x7f12_3456, 64), span(1, 2)];
    let region = RegionId(7);
    let sequence = Sequence(300);
    vec![
        ("welcome", ToClient::Welcome { version: VERSION, limits: LIMITS }),
        ("rejected", ToClient::Rejected { reason: Reason::Version, text: "version 3".into() }),
        ("rejected-other", ToClient::Rejected { reason: Reason::Other, text: "".into() }),
        ("frames", ToClient::Frames { file: 3, pages: 1 << 18 }),
        ("merge", ToClient::Merge { sequence, runs: runs.to_vec().into() }),
        ("unmerge", ToClient::Unmerge { sequence, ranges: ranges.to_vec().into() }),
        ("mappings", ToClient::Mappings { sequence }),
        ("unregistered", ToClient::Unregistered { region, error: None }),
        (
            "unregistered-failed",
            ToClient::Unregistered { region, error: Some(RegionError::Failed(Errno(14))) },
        ),
        ("leave", ToClient::Leave { keep: true }),
        ("userfaultfd", ToClient::Userfaultfd),
    ]
}

/// The longest message to an engine that the limits allow.
pub(crate) fn longest_to_engine() -> ToEngine<'static> {
    let mut outcomes = Vec::new();
    for page in 0..MERGE_PAGES {
        let outcome = if page % 2 == 0 { Outcome::Merged } else { Outcome::Differs };
        OutcomeRun::push(&mut outcomes, outcome);
    }
    ToEngine::Done { sequence: Sequence(u64::MAX), answer: Answer::Merged(outcomes.into()) }
}

/// The longest message to a client that the limits allow.
pub(crate) fn longest_to_client() -> ToClient<'static> {
    let target = Target::Frames(Kpfn((1 << 36) - 16));
    let run = Run { span: span((1 << 36) - 16, 16), target };
    ToClient::Merge { sequence: Sequence(u64::MAX), runs: vec![run; 1024].into() }
}
