//! Node reports for who must not wait: they take as long as there are frames, and with several nodes, pages.
//!
//! Each reader has one made, if none is being made, and waits a little for it; where that is not enough, or
//! was not the last time, it gets the last there was. So where there is little to look through, what is read
//! is of this moment, and where there is much, of the last look through it; and that does not begin anew
//! before twenty times as long has gone by as it took, or readers alone would keep a CPU busy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use numerge::NodeReport;
use parking_lot::{Condvar, Mutex};

/// How long a reader waits: all control files answer within 10 ms (S5.2).
const PATIENCE: Duration = Duration::from_millis(2);

/// The share of one CPU's time that reports take.
const SHARE: u32 = 20;

#[derive(Default)]
struct State {
    last: Option<Vec<NodeReport>>,
    /// Before that, it is not made anew. None if that took little time.
    next: Option<Instant>,
    /// Those that were made.
    made: u64,
    is_making: bool,
}

/// The last reports.
#[derive(Default)]
pub(crate) struct Recent {
    state: Mutex<State>,
    is_made: Condvar,
}

impl Recent {
    /// Reports that `make` gives; the very first are waited for.
    pub(crate) fn get(
        self: &Arc<Self>,
        make: impl FnOnce() -> Vec<NodeReport> + Send + 'static,
    ) -> Vec<NodeReport> {
        let until = Instant::now() + PATIENCE;
        let mut state = self.state.lock();
        let before = state.made;
        if !state.is_making && state.next.is_none_or(|next| next <= Instant::now()) {
            state.is_making = true;
            drop(state);
            let recent = Arc::clone(self);
            let work = move || {
                // Who waits for it may be one whose turns are first, and this may take long.
                numerge_topology::take_ordinary_turns();
                let began = Instant::now();
                let reports = make();
                recent.take_in(reports, began.elapsed());
            };
            if std::thread::Builder::new().name("nodes".into()).spawn(work).is_err() {
                // The next reader tries again.
                self.state.lock().is_making = false;
            }
            state = self.state.lock();
        }
        while state.is_making && state.made == before {
            if state.last.is_none() {
                self.is_made.wait(&mut state);
            } else if state.next.is_some() || self.is_made.wait_until(&mut state, until).timed_out()
            {
                break;
            }
        }
        state.last.clone().unwrap_or_default()
    }

    fn take_in(&self, reports: Vec<NodeReport>, took: Duration) {
        let mut state = self.state.lock();
        state.last = Some(reports);
        state.next = (took > PATIENCE).then(|| Instant::now() + took * SHARE);
        state.made += 1;
        state.is_making = false;
        drop(state);
        self.is_made.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use numerge::Nid;

    use super::*;

    fn report(pages_home: u64) -> Vec<NodeReport> {
        vec![NodeReport { pages_home, ..NodeReport::nothing_on(Nid(0)) }]
    }

    #[test]
    fn s5_2_a_reader_gets_the_last_reports_while_others_take_long() {
        let recent = Arc::new(Recent::default());
        assert_eq!(recent.get(|| report(1)), report(1));
        assert_eq!(recent.get(|| report(2)), report(2));
        let (go_on, wait) = channel::<()>();
        let slow = move || {
            let _ = wait.recv();
            report(3)
        };
        assert_eq!(recent.get(slow), report(2));
        // Nobody makes others meanwhile.
        assert_eq!(recent.get(|| report(4)), report(2));
        go_on.send(()).unwrap();
        // Not at once, since those took long.
        while recent.get(|| report(5)) != report(5) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
