//! What judging memory costs in which nothing is equal: numerge against the kernel's ksmd.
//!
//! `perf/cold` runs this and puts KSM's knobs back whatever happens; `perf/README.md` tells what the
//! numbers mean. Each measurement runs in a process of its own, which this program starts from
//! itself, so that none finds the memory of the one before.

mod judge;
mod ksm;
mod report;

use std::io;
use std::process::{Command, ExitCode};

use numerge_engine::machine::PAGE_SIZE;
use numerge_linux::AnonymousRegion;

use crate::report::Round;

const USAGE: &str = "usage: cold [--mib N] [--rounds N] [--only numerge|ksmd] [--markdown FILE]";
const MIB: usize = 1 << 20;
/// Everything but the memory to judge, and some air.
const SPARE_BYTES: u64 = 1 << 30;

/// Which of the two is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Numerge,
    Ksmd,
}

struct Options {
    mib: usize,
    rounds: usize,
    only: Option<Who>,
    markdown: Option<String>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut options = Self { mib: 4096, rounds: 3, only: None, markdown: None };
        while let Some(argument) = arguments.next() {
            let value = arguments.next()?;
            match argument.as_str() {
                "--mib" => {
                    options.mib = value.parse().ok().filter(|mib| (1..1 << 24).contains(mib))?
                }
                "--rounds" => {
                    options.rounds = value.parse().ok().filter(|n| (1..=99).contains(n))?
                }
                "--only" if value == "numerge" => options.only = Some(Who::Numerge),
                "--only" if value == "ksmd" => options.only = Some(Who::Ksmd),
                "--markdown" => options.markdown = Some(value),
                _ => return None,
            }
        }
        Some(options)
    }
}

/// Memory in which no two pages are equal and none is zeros.
fn unique_memory(pages: usize) -> io::Result<AnonymousRegion> {
    let region = AnonymousRegion::new(pages * PAGE_SIZE)?;
    for page in 0..pages {
        region.write(page * PAGE_SIZE, &numerge_benches::unique_page(page as u64))?;
    }
    Ok(region)
}

/// This program again, to do one part.
fn itself(part: &str, pages: usize) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([part, &pages.to_string()]);
    Ok(command)
}

/// Has the kernel end this process when the one that started it ends, however that happens.
fn end_with_parent() -> io::Result<()> {
    let kill = Some(rustix::process::Signal::KILL);
    Ok(rustix::process::set_parent_process_death_signal(kill)?)
}

fn measure(options: &Options) -> io::Result<()> {
    let pages = options.mib * MIB / PAGE_SIZE;
    let needed = (pages * PAGE_SIZE) as u64 + SPARE_BYTES;
    let available = numerge_linux::available_bytes()?;
    if available < needed {
        let message = format!(
            "{} MiB of memory needed and {} available: choose a smaller --mib",
            needed >> 20,
            available >> 20
        );
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, message));
    }
    let mut rounds = Vec::new();
    for number in 0..options.rounds {
        // Each goes first every other time, so that neither always finds the machine warm.
        let order =
            if number % 2 == 0 { [Who::Numerge, Who::Ksmd] } else { [Who::Ksmd, Who::Numerge] };
        let mut round = Round::default();
        for who in order.into_iter().filter(|who| options.only.is_none_or(|only| only == *who)) {
            match who {
                Who::Numerge => round.numerge = Some(judge::measure(pages)?),
                Who::Ksmd => round.ksmd = Some(ksm::measure(pages)?),
            }
        }
        println!("{}", round.line(number + 1));
        rounds.push(round);
    }
    let smart_scan = ksm::knob("smart_scan").ok();
    let table = report::table(&rounds, options.mib, smart_scan);
    println!("\n{table}");
    options.markdown.as_ref().map_or(Ok(()), |file| std::fs::write(file, table))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let part = match arguments.as_slice() {
        [part, pages] if part == "numerge-part" => Some((true, pages)),
        [part, pages] if part == "ksmd-part" => Some((false, pages)),
        _ => None,
    };
    let done = match part {
        Some((is_numerge, pages)) => pages
            .parse()
            .map_err(io::Error::other)
            .and_then(|pages| if is_numerge { judge::part(pages) } else { ksm::part(pages) }),
        None => match Options::parse(arguments.into_iter()) {
            Some(options) => measure(&options),
            None => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cold: {error}");
            ExitCode::FAILURE
        }
    }
}
