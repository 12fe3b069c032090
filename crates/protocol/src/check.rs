//! Whether a message keeps to the limits: asked before it is encoded, and after it was decoded.

use crate::limits::{
    ADDRESS_PAGES, DOMAIN_BYTES, ERRNO, FILE_PAGES, FILES, FRAME_NUMBERS, MAPPINGS, MERGE_PAGES,
    MERGE_RUNS, PAGE_SIZE_MAX, PAGE_SIZE_MIN, REGIONS, TEXT_BYTES, UNMERGE_PAGES, UNMERGE_RANGES,
    VERSION,
};
use crate::message::{
    Answer, Limits, Reason, RegionError, Run, Target, ToClient, ToEngine, Unmerged,
};
use crate::numbers::{Errno, Kpfn, Span};
use crate::outcomes::OutcomeRun;

/// What no message may say.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// A version that is not spoken here.
    #[error("version {found} of the protocol: only version {VERSION} is spoken here")]
    Version {
        /// The version.
        found: u32,
    },
    /// A number that is too low or too high.
    #[error("{what}: {found}, where {min} to {max} are allowed")]
    Range {
        /// What it counts.
        what: &'static str,
        /// The number.
        found: u64,
        /// The lowest allowed.
        min: u64,
        /// The highest allowed.
        max: u64,
    },
    /// A range that goes beyond the last page or frame number.
    #[error("{pages} {what} from {start:#x}: must end at or before {end:#x}")]
    Beyond {
        /// What there are numbers of.
        what: &'static str,
        /// The first.
        start: u64,
        /// How many.
        pages: u64,
        /// Where numbers end.
        end: u64,
    },
    /// A page size that is no power of two.
    #[error("a page size of {found}: must be a power of two")]
    PageSize {
        /// The size.
        found: u32,
    },
    /// A domain's name with a character that is not allowed.
    #[error("{found:?} in the name of a domain: only A-Z, a-z, 0-9, '.', '_' and '-' are allowed")]
    DomainCharacter {
        /// The character.
        found: char,
    },
    /// A text that could upset a log or a terminal.
    #[error("{found:?} in a text for people: control characters are not allowed")]
    TextCharacter {
        /// The character.
        found: char,
    },
    /// Two equal outcomes in two runs, where one would do.
    #[error("two adjacent runs of outcome {found:?}: must be one")]
    NotJoined {
        /// The outcome.
        found: crate::Outcome,
    },
}

type Checked = Result<(), Violation>;

const fn within(what: &'static str, found: u64, min: u64, max: u64) -> Checked {
    if min <= found && found <= max {
        Ok(())
    } else {
        Err(Violation::Range { what, found, min, max })
    }
}

/// `start` and the numbers after it, `pages` in all, are numbers below `end`.
const fn inside(what: &'static str, start: u64, pages: u64, end: u64) -> Checked {
    match start.checked_add(pages) {
        Some(last) if last <= end => Ok(()),
        _ => Err(Violation::Beyond { what, start, pages, end }),
    }
}

fn version(found: u32) -> Checked {
    if found == VERSION { Ok(()) } else { Err(Violation::Version { found }) }
}

fn page_size(found: u32) -> Checked {
    within("bytes of a page", found.into(), PAGE_SIZE_MIN, PAGE_SIZE_MAX)?;
    if found.is_power_of_two() { Ok(()) } else { Err(Violation::PageSize { found }) }
}

/// Checks the name of a security domain.
///
/// # Errors
///
/// If it is empty or too long, or has a character that is not allowed.
pub fn check_domain(name: &str) -> Result<(), Violation> {
    within("bytes of a domain's name", name.len() as u64, 1, DOMAIN_BYTES as u64)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name.chars().find(|&c| !allowed(c)) {
        Some(found) => Err(Violation::DomainCharacter { found }),
        None => Ok(()),
    }
}

fn text(text: &str) -> Checked {
    within("bytes of a text", text.len() as u64, 0, TEXT_BYTES as u64)?;
    match text.chars().find(|c| c.is_control()) {
        Some(found) => Err(Violation::TextCharacter { found }),
        None => Ok(()),
    }
}

fn errno(Errno(found): Errno) -> Checked {
    within("number of an error", found.into(), 1, ERRNO)
}

fn span(what: &'static str, span: Span) -> Checked {
    within(what, span.pages, 1, ADDRESS_PAGES)?;
    inside("pages", span.start.0, span.pages, ADDRESS_PAGES)
}

fn run(run: &Run) -> Checked {
    span("pages of a run", run.span)?;
    match run.target {
        Target::Frames(Kpfn(first)) => inside("frames", first, run.span.pages, FRAME_NUMBERS),
        Target::Zero => Ok(()),
    }
}

/// Each is at most [`ADDRESS_PAGES`] and there are fewer than 2^16, so the sum does not overflow;
/// should either change, it stays at the highest number and is found too high.
fn total(pages: impl Iterator<Item = u64>) -> u64 {
    pages.fold(0, u64::saturating_add)
}

fn runs(runs: &[Run]) -> Checked {
    within("runs of a merge", runs.len() as u64, 1, MERGE_RUNS as u64)?;
    runs.iter().try_for_each(run)?;
    within("pages of a merge", total(runs.iter().map(|run| run.span.pages)), 1, MERGE_PAGES)
}

fn ranges(ranges: &[Span]) -> Checked {
    within("ranges of an unmerge", ranges.len() as u64, 1, UNMERGE_RANGES as u64)?;
    ranges.iter().try_for_each(|&range| span("pages of a range", range))?;
    within("pages of an unmerge", total(ranges.iter().map(|range| range.pages)), 1, UNMERGE_PAGES)
}

fn outcomes(runs: &[OutcomeRun]) -> Checked {
    within("runs of outcomes", runs.len() as u64, 1, MERGE_PAGES)?;
    for run in runs {
        within("pages of an outcome", run.pages.into(), 1, MERGE_PAGES)?;
    }
    within("pages of a merge's outcomes", OutcomeRun::pages(runs), 1, MERGE_PAGES)?;
    match runs.windows(2).find(|pair| pair[0].outcome == pair[1].outcome) {
        Some(pair) => Err(Violation::NotJoined { found: pair[0].outcome }),
        None => Ok(()),
    }
}

fn answer(answer: &Answer<'_>) -> Checked {
    match *answer {
        Answer::Merged(ref runs) => outcomes(runs),
        Answer::Unmerged(Unmerged::Done | Unmerged::OutOfMemory) => Ok(()),
        Answer::Unmerged(Unmerged::Failed(number)) | Answer::Refused(number) => errno(number),
        Answer::Mappings { used, limit } => {
            within("mappings in use", used, 0, MAPPINGS)?;
            within("mappings allowed", limit, 1, MAPPINGS)
        }
    }
}

fn limits(limits: &Limits) -> Checked {
    within("regions allowed", limits.regions.into(), 1, REGIONS)?;
    within("pages of a region allowed", limits.region_pages, 1, ADDRESS_PAGES)?;
    within("pages of all regions allowed", limits.pages, 1, ADDRESS_PAGES)?;
    within("runs of a merge foretold", limits.merge_runs.into(), 1, MERGE_RUNS as u64)?;
    within("pages of a merge foretold", limits.merge_pages.into(), 1, MERGE_PAGES)
}

/// Checks everything in a message that goes to an engine.
pub(crate) fn to_engine(message: &ToEngine<'_>) -> Checked {
    match *message {
        ToEngine::Hello { version: number, page_size: size, scope: _, domain: ref name } => {
            version(number)?;
            page_size(size)?;
            name.as_deref().map_or(Ok(()), check_domain)
        }
        ToEngine::Register { region: _, span: pages } => span("pages of a region", pages),
        ToEngine::Gone { span: pages } => span("pages gone", pages),
        ToEngine::Done { sequence: _, answer: ref given } => answer(given),
        ToEngine::Unregister { region: _ } | ToEngine::Bye => Ok(()),
    }
}

/// Checks everything in a message that goes to a client.
pub(crate) fn to_client(message: &ToClient<'_>) -> Checked {
    match *message {
        ToClient::Welcome { version: number, limits: ref allowed } => {
            version(number)?;
            limits(allowed)
        }
        ToClient::Rejected {
            reason:
                Reason::Version
                | Reason::PageSize
                | Reason::Domain
                | Reason::TooManyClients
                | Reason::Permission
                | Reason::Unavailable
                | Reason::Protocol
                | Reason::Other,
            text: ref why,
        } => text(why),
        ToClient::Frames { file, pages } => {
            within("number of a file", file.into(), 0, FILES - 1)?;
            within("pages of a file", pages, 1, FILE_PAGES)
        }
        ToClient::Merge { sequence: _, runs: ref asked } => runs(asked),
        ToClient::Unmerge { sequence: _, ranges: ref asked } => ranges(asked),
        ToClient::Unregistered { region: _, error: Some(RegionError::Failed(number)) } => {
            errno(number)
        }
        ToClient::Unregistered { region: _, error: _ }
        | ToClient::Mappings { sequence: _ }
        | ToClient::Leave { keep: _ }
        | ToClient::Userfaultfd => Ok(()),
    }
}
