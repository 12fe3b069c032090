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

fn sum(list: &Value, name: &str) -> u64 {
    list.as_array().unwrap().iter().map(|one| one[name].as_u64().unwrap()).sum()
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
    assert_eq!(sum(&nodes, "pages_broken"), 10, "{nodes}");
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
        assert_eq!(program["mappings_budget"], budget, "{program}");
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", program["pid"])).unwrap();
        let is_it = |one: &&Value| one["pid"] == program["pid"];
        let mappings = || programs(&daemon).iter().find(is_it).map(|one| one["mappings"].clone());
        // What was counted last may be a second old.
        until(
            || mappings() == Some(maps.lines().count().into()),
            || format!("{program} has {}", maps.lines().count()),
        );
    }
    assert!(table(&bed).contains(&format!("/{budget} ")), "{}", table(&bed));
    // Of the domain, and of all, as many as its programs have.
    let status = daemon.status();
    let all = sum(&status["clients"], "mappings");
    assert_eq!([&status["mappings"], &status["domains"][0]["mappings"]], [all, all], "{status}");
    assert!(table(&bed).contains(&format!(" 2, with {all} mappings")), "{}", table(&bed));
}

/// A program that lets all pages of zeros be merged with one, on whatever node they are.
#[test]
fn s5_5_status_of_nodes_and_domains_counts_pages_of_zeros() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&["--set", "use_zero_pages=1"]);
    let mut holder = bed.program(&By::me(), PAGES, 1);
    daemon.until_clients(1);
    (0..100).for_each(|page| assert_eq!(holder.ask(&format!("write {page} 0")), "ok"));
    until(|| daemon.number("ksm_zero_pages") == 100, || format!("{}", daemon.status()));
    daemon.scan_twice();
    let status = daemon.status();
    let nodes = daemon.client().nodes().unwrap();
    for name in [
        "ksm_zero_pages",
        "pages_shared",
        "pages_sharing",
        "pages_unshared",
        "pages_volatile",
        "pages_registered",
        "bytes_saved",
    ] {
        assert_eq!(sum(&nodes, name), status[name].as_u64().unwrap(), "{name}: {nodes} {status}");
        assert_eq!(sum(&status["domains"], name), status[name].as_u64().unwrap(), "{status}");
    }
    assert_eq!((sum(&nodes, "ksm_zero_pages"), sum(&nodes, "pages_shared")), (100, 0), "{nodes}");
    // Registered, merged and saved, of the nodes together as of the domain and the program.
    let table = table(&bed);
    let cells = |title: &str| -> Vec<f64> {
        let rows = table.lines().skip_while(|line| !line.contains(title)).skip(1);
        let rows = rows.take_while(|line| line.starts_with(' '));
        let cell = |row: &str, at: usize| row[8..].split_whitespace().nth(at)?.parse::<f64>().ok();
        let rows: Vec<&str> = rows.collect();
        (0..3).map(|at| rows.iter().filter_map(|row| cell(row, at)).sum()).collect()
    };
    for title in ["Nodes    reg", "Domains  reg", "Programs reg"] {
        // 300 and 100 pages.
        assert_eq!(cells(title), [1.2, 0.4, 0.4], "{title}: {table}");
    }
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
    // Of the domain, and of all, what its programs did.
    let status = daemon.status();
    for all in [&status, &status["domains"][0]] {
        let [stalls, total, longest] =
            ["stalls", "stalled_ms", "longest_stall_ms"].map(|name| all[name].as_u64().unwrap());
        assert_eq!(stalls, sum(&status["clients"], "stalls"), "{status}");
        // Each may be rounded down.
        assert!(total - sum(&status["clients"], "stalled_ms") < 2, "{status}");
        assert!(longest >= over, "{status}");
    }
    assert!(table(&bed).contains(&format!(" {} stalls, the longest", status["stalls"])));
    stopped.is_whole();
    like_it.is_whole();
}
