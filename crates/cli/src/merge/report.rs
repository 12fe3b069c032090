//! What `numerge merge` has to say in the end.

use std::error::Error;
use std::time::{Duration, Instant};

use numerge::{Counters, Merger, NodeReport, PagesByNode, PoolReport};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::guests::Guests;
use super::images::Image;
use super::{MAPPING_SHARE_PERCENT, since};

/// Wall and CPU time of a stage, in seconds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Times {
    wall: f64,
    cpu: f64,
}

impl Times {
    pub(crate) fn add(&mut self, more: &Self) {
        self.wall += more.wall;
        self.cpu += more.cpu;
    }
}

/// Measures a stage: the clock, and the CPU time of all this process's threads.
pub(crate) struct Stopwatch {
    started: Instant,
    cpu: Duration,
}

fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), cpu: process_cpu() }
    }

    pub(crate) fn stop(&self) -> Times {
        let cpu = process_cpu().saturating_sub(self.cpu).as_secs_f64();
        Times { wall: since(self.started), cpu }
    }
}

/// Times of all stages.
#[derive(Default)]
pub(crate) struct StageTimes {
    pub(crate) load: Times,
    pub(crate) scan: Times,
    pub(crate) merge: Times,
    pub(crate) verify: Times,
    pub(crate) unmerge: Times,
    pub(crate) total: Times,
}

/// The host's memory at one moment; what is available includes the CPUs' lists of free pages.
#[derive(Clone, Copy, Default)]
pub(crate) struct Host {
    available_bytes: u64,
    pss_bytes: u64,
}

impl Host {
    pub(crate) fn now() -> std::io::Result<Self> {
        Ok(Self {
            available_bytes: numerge_linux::available_bytes()?,
            pss_bytes: numerge_linux::proportional_bytes()?,
        })
    }
}

/// Everything that is reported.
#[derive(Default)]
pub(crate) struct Report {
    files: usize,
    padded_files: usize,
    skipped_files: usize,
    copies: u16,
    counters: Counters,
    nodes: Vec<NodeReport>,
    regions: Vec<(u64, PagesByNode)>,
    pools: Vec<PoolReport>,
    mappings: u64,
    mappings_limit: u64,
    errors: Vec<String>,
    pub(crate) bytes_registered: u64,
    pub(crate) pages_written: u64,
    pub(crate) before: Host,
    pub(crate) after: Host,
    pub(crate) times: StageTimes,
    pub(crate) verified: bool,
}

impl Report {
    pub(crate) fn of_images(images: &[Image], copies: u16) -> Self {
        Self {
            files: images.iter().map(|image| image.parts.len()).sum(),
            padded_files: images.iter().map(|image| image.padded_files).sum(),
            skipped_files: images.iter().map(|image| image.skipped_files).sum(),
            copies,
            ..Self::default()
        }
    }

    /// Takes down what is true while everything is merged.
    pub(crate) fn merged(
        &mut self,
        merger: &Merger,
        guests: &Guests<'_>,
        merging: &Times,
    ) -> Result<(), Box<dyn Error>> {
        let stages = merger.stage_times();
        let merge = Times { wall: stages.merge.as_secs_f64(), cpu: stages.merge_cpu.as_secs_f64() };
        // What the pools' threads do while frames are filled counts as scanning: it is reading.
        self.times.scan =
            Times { wall: stages.scan.as_secs_f64(), cpu: (merging.cpu - merge.cpu).max(0.0) };
        self.times.merge = merge;
        self.counters = merger.counters();
        self.nodes = merger.nodes();
        self.pools = merger.pools();
        self.regions = guests.places()?;
        let mappings = merger.mappings()?;
        self.mappings = mappings.used;
        self.mappings_limit = mappings.limit;
        self.errors = merger.take_errors().iter().map(ToString::to_string).collect();
        Ok(())
    }

    fn host_bytes_freed(&self) -> i64 {
        self.after.available_bytes.cast_signed() - self.before.available_bytes.cast_signed()
    }

    pub(crate) fn print(&self, json: bool) -> Result<(), Box<dyn Error>> {
        if json {
            println!("{}", serde_json::to_string(&self.to_json())?);
        } else {
            self.print_summary();
        }
        Ok(())
    }

    fn stages(&self) -> [(&'static str, &Times); 6] {
        let StageTimes { load, scan, merge, verify, unmerge, total } = &self.times;
        [
            ("load", load),
            ("scan", scan),
            ("merge", merge),
            ("verify", verify),
            ("unmerge", unmerge),
            ("total", total),
        ]
    }

    fn to_json(&self) -> Value {
        let seconds: serde_json::Map<String, Value> = self
            .stages()
            .iter()
            .map(|(stage, times)| ((*stage).into(), times.wall.into()))
            .collect();
        let cpu_seconds: serde_json::Map<String, Value> = self
            .stages()
            .iter()
            .map(|(stage, times)| ((*stage).into(), times.cpu.into()))
            .collect();
        let mut all = numerge::json::counters(&self.counters);
        let more = json!({
            "bytes_registered": self.bytes_registered,
            "host_bytes_freed": self.host_bytes_freed(),
            "mem_available_bytes": {
                "before": self.before.available_bytes, "after": self.after.available_bytes,
            },
            "pss_bytes": { "before": self.before.pss_bytes, "after": self.after.pss_bytes },
            "verified": self.verified,
            "pages_written": self.pages_written,
            "mappings": self.mappings,
            "mappings_limit": self.mappings_limit,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "nodes": self.nodes.iter().map(numerge::json::node).collect::<Vec<_>>(),
            "regions": self
                .regions
                .iter()
                .map(|(bytes, pages)| json!({ "bytes": bytes, "pages_by_node": by_node(pages) }))
                .collect::<Vec<_>>(),
            "pools": self
                .pools
                .iter()
                .map(|pool| json!({ "nid": pool.nid.0, "frames_by_node": by_node(&pool.frames) }))
                .collect::<Vec<_>>(),
            "files": self.files,
            "files_padded": self.padded_files,
            "files_skipped": self.skipped_files,
            "errors": self.errors,
        });
        if let Value::Object(more) = more {
            all.extend(more);
        }
        Value::Object(all)
    }

    /// A row a node, where there are several.
    fn print_nodes(&self) {
        if self.nodes.len() < 2 {
            return;
        }
        println!(
            "Nodes       {:>4} {:>10} {:>10} {:>10} {:>10} {:>10} {:>15}",
            "node", "home", "scanned", "by others", "frames", "sharing", "remote sharers",
        );
        for node in &self.nodes {
            println!(
                "            {:>4} {:>10} {:>10} {:>10} {:>10} {:>10} {:>15}{}",
                node.nid.0,
                node.pages_home,
                node.pages_scanned,
                node.pages_scanned_remote,
                node.pages_shared,
                node.pages_sharing,
                node.sharers_remote,
                if node.online { "" } else { "  offline" },
            );
        }
    }

    fn print_summary(&self) {
        let c = &self.counters;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        println!(
            "Loaded      {:9.1} MiB: {} copies of {} files{}{}",
            mib(self.bytes_registered),
            self.copies,
            self.files,
            note(self.padded_files, "padded with zeros to whole pages"),
            note(self.skipped_files, "links, special or empty files skipped"),
        );
        println!(
            "Saved       {:9.1} MiB ({:.1} %): {} pages in {} frames, {} pages of zeros",
            mib(c.bytes_saved()),
            percent(c.bytes_saved(), self.bytes_registered),
            c.pages_shared + c.pages_sharing,
            c.pages_shared,
            c.ksm_zero_pages,
        );
        println!(
            "Given back  {:9.1} MiB by MemAvailable ({:.1} -> {:.1}); Pss {:.1} -> {:.1} MiB",
            self.host_bytes_freed() as f64 / f64::from(1 << 20),
            mib(self.before.available_bytes),
            mib(self.after.available_bytes),
            mib(self.before.pss_bytes),
            mib(self.after.pss_bytes),
        );
        println!(
            "Not merged  {} pages without a partner, {} volatile, of which {} pinned or mapped \
             elsewhere and {} over the mapping budget",
            c.pages_unshared, c.pages_volatile, c.pages_held, c.pages_over_budget,
        );
        println!(
            "Chains      {} with {} dups; mappings {} of {}; metadata {:.1} MiB",
            c.stable_node_chains,
            c.stable_node_dups,
            self.mappings,
            self.mappings_limit,
            mib(c.metadata_bytes),
        );
        self.print_nodes();
        let times: Vec<String> = self
            .stages()
            .iter()
            .map(|(stage, times)| format!("{stage} {:.2} ({:.2})", times.wall, times.cpu))
            .collect();
        println!("Seconds     {} (of CPU)", times.join(", "));
        println!(
            "Verified    every byte while merged, after writing to {} pages, and after unmerging",
            self.pages_written,
        );
        if c.pages_over_budget > 0 {
            println!(
                "Note        {} pages were not merged: they would take more than {} % of \
                 vm.max_map_count ({}). Raise it to merge them.",
                c.pages_over_budget, MAPPING_SHARE_PERCENT, self.mappings_limit,
            );
        }
        if c.frames_refused > 0 {
            println!(
                "Note        {} frames could not be had, for want of memory: what they were for was \
                 not merged.",
                c.frames_refused,
            );
        }
        for error in &self.errors {
            println!("Note        {error}");
        }
    }
}

fn by_node(pages: &PagesByNode) -> serde_json::Map<String, Value> {
    pages.iter().map(|(nid, count)| (nid.to_string(), (*count).into())).collect()
}

fn note(count: usize, what: &str) -> String {
    if count == 0 { String::new() } else { format!(", {count} {what}") }
}
