//! The files that `numerge run --as-ksm` shows take and give what the kernel's do.

use std::collections::BTreeSet;

use crate::bed::{built, numerge};
use crate::can_be_ksm;

/// What `ksm-facts` printed of Linux 6.18's own files, which a test of the control files compares with the
/// running kernel's.
const RECORDED: &str = include_str!("../../../control-fs/tests/facts/linux-6.18.txt");

#[test]
fn s5_4_what_is_shown_takes_and_gives_what_the_kernels_do() {
    if !can_be_ksm() {
        return;
    }
    let facts = built().join("ksm-facts");
    let arguments = ["run", "--as-ksm", "--", facts.to_str().unwrap()];
    let output = numerge(&arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let ours = String::from_utf8(output.stdout).unwrap();
    let [a, b] = [&ours[..], RECORDED].map(|text| text.lines().collect::<BTreeSet<_>>());
    assert!(
        ours == RECORDED,
        "ours only: {:#?}, the kernel's only: {:#?}",
        a.difference(&b),
        b.difference(&a)
    );
}
