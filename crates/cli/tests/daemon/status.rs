//! `numerge status`: what it tells of each program.

use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bed::{Bed, By, Daemon, until};

const PAGES: u64 = 300;

/// What is said of each program, by process.
fn programs(daemon: &Daemon) -> Vec<Value> {
    let mut programs = daemon.status()["clients"].as_array().unwrap().clone();
    programs.sort_by_key(|program| program["pid"].as_u64());
    programs
}

fn numbers(program: &Value, names: [&str; 4]) -> [u64; 4] {
    names.map(|name| program[name].as_u64().unwrap_or_else(|| panic!("{name}: {program}")))
}

/// The table.
fn table(bed: &Bed) -> String {
    let mut status = Command::new(bed.path("numerge"));
    let output = status.args(["status", "--socket"]).arg(bed.socket()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn s3_6_status_tells_whose_pages_were_broken_again_and_what_each_program_saves() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&[]);
    let mut writer = bed.program(&By::me(), PAGES, 1);
    daemon.until_clients(1);
    let first = programs(&daemon)[0]["pid"].as_u64();
    let _other = bed.program(&By::me(), PAGES, 1);
    daemon.until_merged(PAGES, PAGES);
    let names = ["pages_registered", "pages_merged", "pages_saved", "pages_broken"];
    for program in programs(&daemon) {
        assert_eq!(numbers(&program, names), [PAGES, PAGES, PAGES / 2, 0]);
    }
    (0..10).for_each(|page| assert_eq!(writer.ask(&format!("write {page} {}", 9000 + page)), "ok"));
    daemon.until_merged(PAGES, PAGES - 10);
    let (its, others): (Vec<Value>, Vec<Value>) =
        programs(&daemon).into_iter().partition(|program| program["pid"].as_u64() == first);
    let [_, merged, saved, broken] = numbers(&its[0], names);
    assert_eq!([merged, broken], [PAGES - 10, 10], "{its:?}");
    let [_, merged, saved_by_other, broken] = numbers(&others[0], names);
    assert_eq!([merged, broken], [PAGES, 0], "{others:?}");
    // Each may be rounded down.
    assert!((PAGES - 12..=PAGES - 10).contains(&(saved + saved_by_other)), "{its:?} {others:?}");
    assert_eq!(daemon.status()["domains"][0]["pages_broken"], 10);
    let nodes = daemon.client().nodes().unwrap();
    let broken =
        nodes.as_array().unwrap().iter().map(|node| node["pages_broken"].as_u64().unwrap());
    assert_eq!(broken.sum::<u64>(), 10, "{nodes}");
    writer.is_whole();

    let table = table(&bed);
    let line = table.lines().find(|line| line.trim_start().starts_with(&its[0]["pid"].to_string()));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    assert_eq!(words[1..5], ["1.2", "1.1", "0.6", "10"], "{table}");
    assert!(table.lines().all(|line| line.len() <= 120), "{table}");
}

#[test]
fn s6_status_tells_how_many_mappings_a_program_has_of_how_many() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&[]);
    let _programs = [(), ()].map(|()| bed.program(&By::me(), PAGES, 1));
    daemon.until_merged(PAGES, PAGES);
    // At rest.
    daemon.scan_twice();
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let budget = limit.trim().parse::<u64>().unwrap() / 100 * 50;
    for program in programs(&daemon) {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", program["pid"])).unwrap();
        assert_eq!(program["mappings"], maps.lines().count(), "{program}");
        assert_eq!(program["mappings_budget"], budget, "{program}");
    }
    assert!(table(&bed).contains(&format!("/{budget} ")), "{}", table(&bed));
}

#[test]
fn s6_status_tells_which_program_does_not_answer() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&[]);
    let mut stopped = bed.program(&By::me(), PAGES, 1);
    daemon.until_clients(1);
    let pid = programs(&daemon)[0]["pid"].as_i64().unwrap();
    let process = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(process, Signal::STOP).unwrap();
    // It is asked to merge with these, and can't answer.
    let mut like_it = bed.program(&By::me(), PAGES, 1);
    let names = ["pid", "stalls", "stalled_ms", "longest_stall_ms"];
    let its = || programs(&daemon).into_iter().find(|program| program["pid"] == pid).unwrap();
    until(|| its()["stalls"] != 0, || format!("no stall: {}", daemon.status()));
    let [_, stalls, total, longest] = numbers(&its(), names);
    assert!(stalls > 0 && longest >= 100 && total >= longest, "{}", its());
    // The same silence still, and longer.
    until(|| numbers(&its(), names)[3] > longest, || format!("not longer: {}", its()));
    kill_process(process, Signal::CONT).unwrap();
    daemon.until_merged(PAGES, PAGES);
    let [_, stalls, total, over] = numbers(&its(), names);
    assert!(stalls > 0 && over > longest && total >= over, "forgotten: {}", its());
    stopped.is_whole();
    like_it.is_whole();
}
