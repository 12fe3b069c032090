//! Protection keys, which an emulated CPU has and the machine that the tests are run on may not.

use std::process::Command;

use crate::kernel;

/// Of tests/host/mappings.c, which `tools/numa` brings along.
const CASE: [&str; 2] = ["/bin/mappings", "protection_key"];

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let [said, errors] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{}: {said}{errors}", output.status);
    said
}

#[test]
#[ignore = "needs a CPU with protection keys: run by tools/numa"]
fn s1_1_protection_keys_mean_the_same_on_merged_memory() {
    kernel::quiet();
    let alone = said(Command::new(CASE[0]).arg(CASE[1]));
    assert!(alone.contains("key: from 0 rd wr ac; from 8 key 1 rd wr ac;"), "no keys: {alone}");
    let mut run = Command::new(env!("CARGO_BIN_EXE_numerge"));
    run.args(["run", "--set", "pages_to_scan=100000", "--set", "sleep_millisecs=0", "--"]);
    // The case begins when its memory is merged, and fails if it never is.
    run.args(CASE).env("NUMERGE_AGENT", "/bin/libnumerge_agent.so");
    let merged = said(&mut run);
    for (merged, alone) in merged.lines().zip(alone.lines()) {
        assert_eq!(merged, alone);
    }
    assert_eq!(merged, alone);
}
