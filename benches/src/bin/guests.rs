//! How much memory merging gives back while guests run, and how soon: this machine's ksmd, or a numerge
//! that is there already and does not scan yet.
//!
//! `perf/guests` and `tools/demo` run this inside `tools/guests`, once for each.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use numerge::control::{Client, path_beside};
use numerge_linux::available_bytes;

const USAGE: &str = "usage: guests ksmd|numerge [BYTES_ANOTHER_GAVE_BACK]";
/// Between looks at the counters.
const POLL: Duration = Duration::from_millis(10);
/// Savings are at rest when they have not grown by a hundredth for so long.
const REST: Duration = Duration::from_secs(4);
const TIMEOUT: Duration = Duration::from_secs(120);
/// The machine's memory is at rest when it has changed by no more than so many bytes for so long; or else
/// after so long.
const SETTLED_BYTES: u64 = 1 << 20;
const SETTLED: Duration = Duration::from_secs(5);
const UNSETTLED: Duration = Duration::from_secs(30);
const PAGE_BYTES: u64 = 4096;

/// Of both. Zeros are dropped also by ksmd without that knob, where it splits huge pages.
const FASTEST: [(&str, u64); 3] =
    [("pages_to_scan", 100_000), ("sleep_millisecs", 0), ("use_zero_pages", 1)];

/// Who merges.
enum Merger {
    Ksmd,
    Numerge(Client),
}

impl Merger {
    /// At its fastest, and not begun.
    fn find(name: &str) -> io::Result<Self> {
        match name {
            "ksmd" => {
                ksm_set("run", "0")?;
                if std::fs::exists("/sys/kernel/mm/ksm/advisor_mode")? {
                    ksm_set("advisor_mode", "none")?;
                }
                for (knob, value) in FASTEST {
                    ksm_set(knob, &value.to_string())?;
                }
                Ok(Self::Ksmd)
            }
            "numerge" => {
                let socket = std::env::var_os("NUMERGE_SOCKET").map(PathBuf::from);
                let socket =
                    socket.ok_or_else(|| io::Error::other("not run below `numerge run`"))?;
                let mut client =
                    Client::connect(&path_beside(&socket)).map_err(io::Error::other)?;
                for (knob, value) in FASTEST {
                    client.set(knob, value).map_err(io::Error::other)?;
                }
                Ok(Self::Numerge(client))
            }
            _ => Err(io::Error::other(USAGE)),
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        match self {
            Self::Ksmd => ksm_set("run", "1"),
            Self::Numerge(client) => client.set("run", 1).map(drop).map_err(io::Error::other),
        }
    }

    fn saved_bytes(&mut self) -> io::Result<u64> {
        match self {
            Self::Ksmd => Ok((ksm("pages_sharing")? + ksm("ksm_zero_pages")?) * PAGE_BYTES),
            Self::Numerge(client) => {
                let status = client.status().map_err(io::Error::other)?;
                status["bytes_saved"]
                    .as_u64()
                    .ok_or_else(|| io::Error::other(format!("no bytes_saved in {status}")))
            }
        }
    }
}

fn ksm(name: &str) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/sys/kernel/mm/ksm/{name}"))?;
    text.trim().parse().map_err(io::Error::other)
}

fn ksm_set(name: &str, value: &str) -> io::Result<()> {
    std::fs::write(format!("/sys/kernel/mm/ksm/{name}"), value)
}

/// Waits until the machine's available memory is at rest: what it gives back late after the guests' boot, nobody has
/// merged, and what was merged comes back by and by. Tells of all that it sees.
fn settle(mut see: impl FnMut(u64)) -> io::Result<()> {
    let began = Instant::now();
    let (mut settled, mut since) = (available_bytes()?, Instant::now());
    while since.elapsed() < SETTLED && began.elapsed() < UNSETTLED {
        sleep(SETTLED / 50);
        let now = available_bytes()?;
        see(now);
        if now.abs_diff(settled) > SETTLED_BYTES {
            (settled, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// Prints what was saved and given back, in bytes, and seconds: until 95 % of that was given back, and until 95 % of
/// what another gave back was, or "never".
fn measure(name: &str, another: Option<i64>) -> io::Result<()> {
    let mut merger = Merger::find(name)?;
    let mut before = available_bytes()?;
    settle(|now| before = now)?;
    let began = Instant::now();
    merger.begin()?;
    let mut curve: Vec<(f64, i64)> = Vec::new();
    let (mut most, mut grew) = (0, Instant::now());
    let mut see = |now: u64| {
        curve.push((began.elapsed().as_secs_f64(), now.cast_signed() - before.cast_signed()));
    };
    while grew.elapsed() < REST || most == 0 {
        if began.elapsed() > TIMEOUT {
            return Err(io::Error::other("nothing at rest in time"));
        }
        let saved = merger.saved_bytes()?;
        see(available_bytes()?);
        if saved > most + most / 100 {
            (most, grew) = (saved, Instant::now());
        }
        sleep(POLL);
    }
    let saved = merger.saved_bytes()?;
    settle(see)?;
    let freed = curve.last().map_or(0, |(_, freed)| *freed);
    if freed <= 0 {
        return Err(io::Error::other("nothing was given back"));
    }
    let reached = |wanted: i64| {
        let there = curve.iter().find(|(_, now)| *now * 100 >= wanted * 95);
        there.map_or("never".into(), |(seconds, _)| format!("{seconds:.3}"))
    };
    println!("{saved} {freed} {} {}", reached(freed), reached(another.unwrap_or(freed)));
    for (seconds, now) in curve.iter().step_by((curve.len() / 40).max(1)) {
        eprintln!("{name} {seconds:.3} {}", now >> 20);
    }
    Ok(())
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let another = arguments.next().map(|bytes| bytes.parse().map_err(|_| io::Error::other(USAGE)));
    match another.transpose().and_then(|another| measure(&name, another)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guests: {error}");
            ExitCode::FAILURE
        }
    }
}
