//! `numerge get`, `set` and `status`, and what is generated of the command line.

use std::path::Path;
use std::process::Output;

use numerge::Knob;

use crate::bed::{can_merge, numerge};

/// A shell script below `numerge run`, whose engine it asks; `numerge` is this one.
fn below_run(script: &str) -> Output {
    let numerge_itself = env!("CARGO_BIN_EXE_numerge");
    let script = format!("numerge() {{ {numerge_itself} \"$@\"; }}; {script}");
    numerge(&["run", "--", "sh", "-c", &script, numerge_itself]).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn s5_4_set_takes_and_refuses_what_the_files_do() {
    if !can_merge() {
        return;
    }
    let taken = "set -e; numerge set advisor_mode scan-time; numerge get advisor_mode; \
        numerge set advisor_mode none; numerge get advisor_mode; \
        numerge set smart_scan no; numerge get smart_scan; \
        numerge set run 2; numerge get run; numerge set sleep_millisecs +7; numerge get sleep_millisecs";
    let output = below_run(taken);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "scan-time\nnone\n0\n2\n7\n");
    let refused = [
        ("run 3", "run can't be '3': allowed is 0 to 2"),
        ("run -1", "run can't be '-1': allowed is 0 to 2"),
        ("run 1x", "run can't be '1x': allowed is 0 to 2"),
        ("run ''", "run can't be '': allowed is 0 to 2"),
        ("max_page_sharing 1", "max_page_sharing can't be '1': allowed is 2 to 2147483647"),
        ("advisor_mode 1", "advisor_mode can't be '1': allowed is none or scan-time"),
        ("sleep_millisecs 4294967296", "allowed is 0 to 4294967295"),
        ("Run 1", "no knob 'Run': there are run, pages_to_scan"),
    ];
    let tries = refused.map(|(words, _)| format!("if numerge set {words} 2>&1; then echo ok; fi"));
    let output = below_run(&tries.join("; "));
    let said = text(&output.stdout);
    assert_eq!(said.lines().count(), refused.len(), "{said}");
    for (said, (words, why)) in said.lines().zip(refused) {
        assert!(said.contains(why), "{words}: {said}");
    }
}

#[test]
fn s5_5_status_tells_by_node_by_domain_and_by_program() {
    if !can_merge() {
        return;
    }
    let output = below_run("numerge status --json");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!status["nodes"].as_array().unwrap().is_empty(), "{status}");
    assert_eq!(status["pages_registered"], 0);
    assert!(status["domains"].is_array() && status["clients"].is_array(), "{status}");
    let output = below_run("timeout 3 \"$0\" status --watch");
    let said = text(&output.stdout);
    assert!(said.matches("Registered").count() > 1, "{said}");
    for title in ["Registered", "Saved", "Not merged", "Nodes", "Domains", "Programs"] {
        assert!(said.contains(title), "{title}: {said}");
    }
}

#[test]
fn who_asks_where_nobody_answers_is_told_so() {
    for command in [&["get"][..], &["set", "run", "1"], &["status"]] {
        let output =
            numerge(&[command, &["--socket", "/nowhere/socket"]].concat()).output().unwrap();
        let said = text(&output.stderr);
        assert!(!output.status.success());
        assert!(said.contains("no numerge daemon answers at /nowhere/socket"), "{said}");
    }
}

#[test]
fn manual_pages_and_completions_are_made() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("new");
    let made = numerge(&["generate", directory.to_str().unwrap()]).output().unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    for (page, option) in [
        ("numerge.1", "numerge\\-run(1)"),
        ("numerge-run.1", "as\\-ksm"),
        ("numerge-daemon.1", "metrics"),
        ("numerge-status.1", "watch"),
        ("numerge-set.1", "KNOB"),
    ] {
        let found = read(page);
        assert!(found.contains(".TH") && found.contains(option), "{page}: {found}");
    }
    for (page, said) in [
        ("numerge.1", [".SH FILES", ".SH ENVIRONMENT", "numerge\\-status\\fR(1)"]),
        ("numerge-daemon.1", ["/run/numerge/ksm", "NUMERGE_SOCKET", "numerge\\-run\\fR(1)"]),
        ("numerge-run.1", ["/dev/userfaultfd", "NUMERGE_AGENT", ".SH \"SEE ALSO\""]),
        ("numerge-topology.1", ["HWLOC_SYNTHETIC", "HWLOC_XMLFILE", ".SH \"SEE ALSO\""]),
    ] {
        let found = read(page);
        said.iter().for_each(|said| assert!(found.contains(said), "{page}, {said}: {found}"));
    }
    for page in ["numerge-set.1", "numerge-get.1"] {
        let found = read(page);
        let (_, knobs) = found.split_once(".SH KNOBS\n").unwrap();
        for knob in Knob::ALL {
            let (_, entry) = knobs.split_once(&format!(".TP\n\\fB{knob}\\fR\n")).unwrap();
            let entry = entry.lines().next().unwrap();
            let (least, most) = (knob.range().start().to_string(), knob.range().end().to_string());
            let (values, default) = match knob {
                Knob::AdvisorMode => ("none or scan-time".into(), "none".into()),
                _ => (format!("{least} to {most}"), knob.default_value().to_string()),
            };
            let told = format!("Allowed is {values}; the default is {default}.");
            assert!(entry.ends_with(&told), "{page}: {entry}");
        }
    }
    // What troff complains of nobody would see.
    for page in std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()) {
        if page.extension().is_some_and(|extension| extension == "1") {
            let lines = std::fs::read_to_string(&page).unwrap();
            let is_odd = |line: &&str| line.starts_with('\'') || line.starts_with("..");
            assert_eq!(lines.lines().find(is_odd), None, "{}", page.display());
        }
    }
    // Hidden, as it is for packages.
    assert!(!Path::new(&directory.join("numerge-generate.1")).exists());
    for (name, option) in [
        ("numerge.bash", "--control-dir"),
        ("_numerge", "--control-dir"),
        ("numerge.fish", "control-dir"),
    ] {
        assert!(read(name).contains(option), "{name}");
    }
    let file = place.path().join("file");
    std::fs::write(&file, "").unwrap();
    let failed = numerge(&["generate", file.to_str().unwrap()]).output().unwrap();
    assert!(!failed.status.success() && text(&failed.stderr).contains("file: "));
}
