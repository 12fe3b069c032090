//! What the daemon logs of its engines' work.

use crate::bed::{Bed, By, until};

const PAGES: u64 = 300;

/// The sum of a number of all lines with these words.
fn sum(log: &str, words: &str, name: &str) -> u64 {
    let lines = log.lines().filter(|line| line.contains(words));
    let number = |line: &str| {
        let after = line.split_once(&format!(" {name}="))?.1;
        after.split_whitespace().next()?.parse::<u64>().ok()
    };
    lines.filter_map(number).sum()
}

#[test]
fn merges_breaks_and_unmerging_are_logged_in_sums() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&["--log", "debug"]);
    let mut programs = [(), ()].map(|()| bed.program(&By::me(), PAGES, 1));
    daemon.until_merged(PAGES, PAGES);
    let pages = |name| sum(&bed.log(), "pages merged", name);
    until(|| pages("merged") == 2 * PAGES, || bed.log());
    assert_eq!(programs[0].ask("write 7 9999"), "ok");
    daemon.until_merged(PAGES, PAGES - 1);
    until(|| pages("broken") == 1, || bed.log());
    daemon.client().set("run", 2).unwrap();
    until(|| pages("unmerged") == 2 * PAGES - 1, || bed.log());
    let log = bed.log();
    assert_eq!(sum(&log, "unmerging everything", "pages"), 2 * PAGES - 1, "{log}");
    assert_eq!(sum(&log, " unmerged pages=", "pages"), 2 * PAGES - 1, "{log}");
    assert_eq!(sum(&log, " unmerged pages=", "left"), 0, "{log}");
    // For hundreds of pages, some lines.
    let lines = log.lines().filter(|line| line.contains("pages merged")).count();
    assert!((3..20).contains(&lines), "{log}");
    programs.iter_mut().for_each(|program| program.is_whole());
}

#[test]
fn s2_5_prunes_are_logged_and_only_where_that_is_wanted() {
    let Some(bed) = Bed::new() else { return };
    let run = |log: &'static str| {
        let settings = ["max_page_sharing=2", "stable_node_chains_prune_millisecs=0"];
        let daemon = bed.daemon(&["--set", settings[0], "--set", settings[1], "--log", log]);
        let mut programs = [(); 4].map(|()| bed.program(&By::me(), PAGES, 1));
        daemon.until_merged(2 * PAGES, 2 * PAGES);
        assert_eq!(daemon.number("stable_node_chains"), PAGES);
        // A frame of each content gets room, and the chain is looked up.
        drop(std::mem::replace(&mut programs[0], bed.program(&By::me(), PAGES, 1)));
        daemon.until_merged(2 * PAGES, 2 * PAGES);
        programs.iter_mut().for_each(|program| program.is_whole());
        (daemon, programs)
    };
    let (daemon, programs) = run("info");
    drop(programs);
    daemon.end();
    let log = bed.log();
    assert!(!log.contains("chains pruned") && !log.contains("pages merged"), "{log}");
    // That the one program has gone may not have been noticed by now, and so nothing been looked up.
    let (_daemon, _programs) = run("debug");
    until(|| sum(&bed.log(), "chains pruned", "pruned") >= PAGES, || bed.log());
}
