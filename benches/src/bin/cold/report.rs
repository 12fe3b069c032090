//! What was measured, and how it is told.

use std::fmt::Write;

use numerge_benches::median;
use numerge_engine::machine::PAGE_SIZE;

/// What numerge took.
#[derive(Clone, Copy)]
pub(crate) struct Judged {
    /// CPU seconds until every page was judged: found unchanged twice, and without a partner.
    pub(crate) cpu_s: f64,
    /// The same by the clock.
    pub(crate) seconds: f64,
    /// CPU seconds of the first of the two looks.
    pub(crate) first_look_cpu_s: f64,
    /// CPU seconds of one more full scan, nothing written.
    pub(crate) idle_scan_cpu_s: f64,
    /// CPU seconds of a full scan after 1% of the pages were written.
    pub(crate) written_scan_cpu_s: f64,
    /// CPU seconds of the scan after that, which judges what was written.
    pub(crate) second_look_cpu_s: f64,
    /// Bytes of metadata at the end.
    pub(crate) metadata_bytes: f64,
}

impl Judged {
    pub(crate) const fn from_values(values: &[f64]) -> Option<Self> {
        let &[
            cpu_s,
            seconds,
            first_look_cpu_s,
            idle_scan_cpu_s,
            written_scan_cpu_s,
            second_look_cpu_s,
            metadata_bytes,
        ] = values
        else {
            return None;
        };
        Some(Self {
            cpu_s,
            seconds,
            first_look_cpu_s,
            idle_scan_cpu_s,
            written_scan_cpu_s,
            second_look_cpu_s,
            metadata_bytes,
        })
    }
}

/// What ksmd took.
#[derive(Clone, Copy)]
pub(crate) struct Scanned {
    /// CPU seconds until every page was in its unstable tree.
    pub(crate) cpu_s: f64,
    /// The same by the clock.
    pub(crate) seconds: f64,
    /// CPU seconds of one more full scan, nothing written.
    pub(crate) idle_scan_cpu_s: f64,
}

/// One measurement of each.
#[derive(Default)]
pub(crate) struct Round {
    pub(crate) numerge: Option<Judged>,
    pub(crate) ksmd: Option<Scanned>,
}

impl Round {
    /// The round in one line.
    pub(crate) fn line(&self, number: usize) -> String {
        let mut line = format!("round {number}:");
        if let Some(judged) = self.numerge {
            let _ = write!(line, " numerge {:.3} CPU s", judged.cpu_s);
        }
        if let Some(scanned) = self.ksmd {
            let _ = write!(line, " ksmd {:.2} CPU s", scanned.cpu_s);
        }
        line
    }
}

/// The medians of all rounds as a table.
pub(crate) fn table(rounds: &[Round], mib: usize, smart_scan: Option<u64>) -> String {
    let numerge = |of: fn(&Judged) -> f64| {
        median(
            &rounds.iter().filter_map(|round| round.numerge.as_ref().map(of)).collect::<Vec<_>>(),
        )
    };
    let ksmd = |of: fn(&Scanned) -> f64| {
        median(&rounds.iter().filter_map(|round| round.ksmd.as_ref().map(of)).collect::<Vec<_>>())
    };
    let mut text = format!(
        "{mib} MiB of unique pages, medians of {} rounds, smart_scan {}\n\n\
         | what | numerge | ksmd | ksmd / numerge |\n| --- | ---: | ---: | ---: |\n",
        rounds.len(),
        smart_scan.map_or_else(|| "unknown".to_owned(), |value| value.to_string()),
    );
    let mut row = |what: &str, ours: Option<f64>, theirs: Option<f64>| {
        let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
        let ratio = ours.zip(theirs).map(|(ours, theirs)| theirs / ours);
        let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}"));
        let _ = writeln!(text, "| {what} | {} | {} | {ratio} |", cell(ours), cell(theirs));
    };
    row("judge everything, CPU s", numerge(|j| j.cpu_s), ksmd(|s| s.cpu_s));
    row("judge everything, s", numerge(|j| j.seconds), ksmd(|s| s.seconds));
    row("of it the first look, CPU s", numerge(|j| j.first_look_cpu_s), None);
    row(
        "a scan more, nothing written, CPU s",
        numerge(|j| j.idle_scan_cpu_s),
        ksmd(|s| s.idle_scan_cpu_s),
    );
    row("a scan more, 1% written, CPU s", numerge(|j| j.written_scan_cpu_s), None);
    row("the scan that judges that 1%, CPU s", numerge(|j| j.second_look_cpu_s), None);
    let pages = f64::from(u32::try_from(mib * (1 << 20) / PAGE_SIZE).unwrap_or(u32::MAX));
    row("metadata, bytes a page", numerge(|j| j.metadata_bytes).map(|bytes| bytes / pages), None);
    text
}
