//! `run`, set by several at once.

use std::time::Duration;

use numerge_engine::{Knob, KnobError, UnmergeError};

use crate::bed::{Bed, until};

const PAGES: u64 = 200;

/// Who has set 2 waits for a client that is stopped: it is not that client's fault that all ends here.
#[test]
fn s5_2_what_is_set_while_everything_is_unmerged_counts() {
    let Some(bed) = Bed::new() else { return };
    let [mut one, mut other] = bed.merged_clients(PAGES);
    other.signal(libc::SIGSTOP);
    for value in [0, 1] {
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| bed.server.set_patiently(Knob::Run, 2));
            until(|| bed.server.knob(Knob::Run) == 2, || "it has not begun".into());
            std::thread::sleep(Duration::from_millis(20));
            bed.server.set(Knob::Run, value).unwrap();
            let ended = writer.join().unwrap();
            let is_interrupted =
                matches!(ended, Err(KnobError::Unmerge(UnmergeError::Interrupted)));
            assert!(is_interrupted, "{ended:?}");
        });
        assert_eq!(bed.server.knob(Knob::Run), value);
        for domain in bed.server.domains() {
            assert_eq!(domain.engine().knob(Knob::Run), value);
        }
    }
    other.signal(libc::SIGCONT);
    bed.until_merged(PAGES, PAGES);
    assert_eq!([one.ask("wrong 0 1 1"), other.ask("wrong 0 1 1")], ["0", "0"]);
}
