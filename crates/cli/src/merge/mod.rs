//! `numerge merge`: loads files as memory images of guests, merges them, proves every byte
//! unchanged, and says what the host got back.

mod guests;
mod images;
mod progress;
mod report;

use std::error::Error;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use numerge::{Counters, Knob, Merger, Options};

use guests::Guests;
use images::Image;
use progress::Progress;
use report::{Report, Stopwatch};

/// Pages between rests, of which there are none here.
const PAGES_TO_SCAN: u64 = 1 << 20;

/// This program needs few mappings for itself.
pub(crate) const MAPPING_SHARE_PERCENT: u64 = 90;

/// How often the counters are looked at while merging.
const GLANCE: Duration = Duration::from_millis(5);

/// Scans that must change nothing before merging counts as done.
const QUIET_SCANS: u64 = 2;

/// The most scans that are waited for: a bound, should something never come to rest.
const MOST_SCANS: u64 = 1000;

/// Arguments of `numerge merge`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print one JSON object instead of a summary.
    #[arg(long)]
    json: bool,
    /// How many guests to make of each path.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    copies: u16,
    /// The most pages one frame is mapped to.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=2_147_483_647))]
    max_page_sharing: u32,
    /// Map pages of zeros to the kernel's own page of zeros.
    #[arg(long)]
    use_zero_pages: bool,
    /// Threads for each NUMA node; as many as it has CPUs, 4 at most, when not given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads_per_node: Option<u16>,
    /// 1: merge pages of all NUMA nodes with each other. 0: only within their node.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    merge_across_nodes: u8,
    /// Let threads of a node with nothing to do look at pages of nodes with more than enough.
    #[arg(long)]
    help_other_nodes: bool,
    /// With --merge-across-nodes 0, move frames that the system moved to another node back.
    #[arg(long)]
    move_frames_back: bool,
    /// Go on merging for this many seconds after nothing more merges.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    keep_running: u32,
    /// Files, or directories all of whose files make one image.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// Runs `numerge merge`. Succeeds only if all three verifications did.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let total = Stopwatch::start();
    let images =
        arguments.paths.iter().map(|path| Image::open(path)).collect::<Result<Vec<_>, _>>()?;
    let merger = Merger::new(Options {
        threads_per_node: arguments.threads_per_node.map(usize::from),
        mapping_share_percent: MAPPING_SHARE_PERCENT,
        help_other_nodes: arguments.help_other_nodes,
        move_frames_back: arguments.move_frames_back,
        ..Options::default()
    })?;
    merger.set(Knob::PagesToScan, PAGES_TO_SCAN)?;
    merger.set(Knob::SleepMillisecs, 0)?;
    merger.set(Knob::MaxPageSharing, u64::from(arguments.max_page_sharing))?;
    merger.set(Knob::UseZeroPages, u64::from(arguments.use_zero_pages))?;
    merger.set(Knob::MergeAcrossNodes, u64::from(arguments.merge_across_nodes))?;

    let mut report = Report::of_images(&images, arguments.copies);
    let bytes = images.iter().map(|image| image.bytes as u64).sum::<u64>();

    let watch = Stopwatch::start();
    let progress = Progress::new("load", bytes * u64::from(arguments.copies));
    let copies = usize::from(arguments.copies);
    let mut guests = Guests::load(&merger, &images, copies, |bytes| progress.add(bytes as u64))?;
    progress.finish();
    report.times.load = watch.stop();
    report.bytes_registered = guests.bytes();

    report.before = report::Host::now()?;
    let watch = Stopwatch::start();
    let progress = Progress::new("merge", guests.bytes());
    merger.set(Knob::Run, 1)?;
    settle(&merger, &progress);
    progress.finish();
    let merging = watch.stop();
    report.after = report::Host::now()?;
    report.merged(&merger, &guests, &merging)?;
    if arguments.keep_running > 0 {
        thread::sleep(Duration::from_secs(u64::from(arguments.keep_running)));
    }

    let progress = Progress::new("verify", 3);
    let watch = Stopwatch::start();
    guests.verify()?;
    progress.add(1);
    report.pages_written = guests.write()?;
    guests.verify()?;
    progress.add(1);
    report.times.verify = watch.stop();

    let watch = Stopwatch::start();
    merger.set(Knob::Run, 2)?;
    report.times.unmerge = watch.stop();
    let watch = Stopwatch::start();
    guests.verify()?;
    progress.finish();
    report.times.verify.add(&watch.stop());

    drop(guests);
    merger.shut_down()?;
    report.verified = true;
    report.times.total = total.stop();
    report.print(arguments.json)
}

/// Waits until scans change nothing any more.
fn settle(merger: &Merger, progress: &Progress) {
    let key = |c: &Counters| {
        (c.pages_shared, c.pages_sharing, c.pages_unshared, c.pages_volatile, c.ksm_zero_pages)
    };
    let mut last = merger.counters();
    let mut quiet_since = last.full_scans;
    while last.full_scans < MOST_SCANS {
        thread::sleep(GLANCE);
        let now = merger.counters();
        progress.set(now.bytes_saved());
        if key(&now) != key(&last) {
            quiet_since = now.full_scans;
        } else if now.full_scans > quiet_since + QUIET_SCANS {
            return;
        }
        last = now;
    }
}

/// The wall clock, for reports.
pub(crate) fn since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}
