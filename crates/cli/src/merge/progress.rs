//! A progress bar on a terminal, nothing elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Progress of one stage.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar of this length, on standard error if that is a terminal.
    pub(crate) fn new(stage: &'static str, length: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{msg:>8} [{wide_bar}] {percent:>3}%");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(stage);
        Self(bar)
    }

    pub(crate) fn add(&self, amount: u64) {
        self.0.inc(amount);
    }

    pub(crate) fn set(&self, amount: u64) {
        self.0.set_position(amount);
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
