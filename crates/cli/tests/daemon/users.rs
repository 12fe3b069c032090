//! A daemon for programs of several users, started as root and run as another user.

use std::fs;
use std::process::Command;

use crate::bed::{Bed, By, is_root};

const PAGES: u64 = 300;
/// Users that nobody is.
const ONE: u32 = 64_001;
const OTHER: u32 = 64_002;
/// The user that the daemon becomes.
const DAEMON: &str = "nobody";

#[test]
fn s6_users_programs_are_merged_with_their_own_alone() {
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&["--user", DAEMON]);
    let mut programs = [ONE, ONE, OTHER, OTHER].map(|user| bed.program(&By::user(user), PAGES, 1));
    daemon.until_merged(2 * PAGES, 2 * PAGES);
    daemon.scan_twice();
    daemon.until_merged(2 * PAGES, 2 * PAGES);
    programs.iter_mut().for_each(|program| program.is_whole());
    assert_eq!(programs[0].ask("write 7 99"), "ok");
    daemon.scan_twice();
    programs.iter_mut().for_each(|program| program.is_whole());
    let status = daemon.status();
    let users: Vec<_> = status["clients"].as_array().unwrap().iter().map(|c| &c["uid"]).collect();
    assert_eq!(users, [ONE, ONE, OTHER, OTHER]);
    daemon.end();
    programs.iter_mut().for_each(|program| program.is_whole());
}

#[test]
fn s6_users_that_the_administrator_lists_share_a_domain() {
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let config = bed.path("config");
    fs::write(&config, format!("[domain.both]\nuids = [{ONE}, {OTHER}]\n")).unwrap();
    let daemon = bed.daemon(&["--user", DAEMON, "--config", config.to_str().unwrap()]);
    let both = |user| bed.program(&By::user(user).in_domain("both"), PAGES, 1);
    let mut programs = [both(ONE), both(OTHER)];
    daemon.until_merged(PAGES, PAGES);
    programs.iter_mut().for_each(|program| program.is_whole());
    // Who is not listed is told so, and goes on.
    let mut stranger = bed.program(&By::user(OTHER + 1).in_domain("both"), PAGES, 1);
    stranger.until_said("may not be in domain both");
    stranger.is_whole();
    daemon.until_merged(PAGES, PAGES);
}

#[test]
fn s6_a_configuration_that_makes_no_sense_is_named_with_what_is_allowed() {
    let Some(bed) = Bed::new() else { return };
    let config = bed.path("config");
    for (text, said) in [
        ("by_user = 3", "by_user"),
        ("users = true", "unknown field `users`, expected `by_user` or `domain`"),
        ("[domain.web]\nuids = [-1]", "uids"),
        ("[domain.\"a b\"]\nuids = [1]", "only A-Z, a-z, 0-9, '.', '_' and '-' are allowed"),
        ("[domain.\"\"]\nuids = [1]", "0, where 1 to 64 are allowed"),
    ] {
        fs::write(&config, text).unwrap();
        let daemon = bed.daemon_command(&["--config", config.to_str().unwrap()]);
        let mut command = Command::new("timeout");
        command.arg("20").arg(daemon.get_program()).args(daemon.get_args());
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{text}");
        assert!(error.contains(&*config.to_string_lossy()) && error.contains(said), "{error}");
    }
}

/// Who may not ask is not told that nobody is there.
#[test]
fn s6_who_may_not_ask_a_daemon_is_told_who_may() {
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&["--user", DAEMON]);
    let ask = |user: u32, words: &[&str]| {
        let ids = [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".into()];
        let mut command = Command::new("setpriv");
        let (verb, rest) = words.split_first().unwrap();
        command.args(ids).arg(bed.path("numerge")).arg(verb).arg("--socket").arg(bed.socket());
        command.args(rest).output().unwrap()
    };
    let statistics = ["run", "--stats", "/dev/null", "--", "echo", "it runs"];
    for words in [&["get"][..], &["get", "run"], &["set", "run", "0"], &["status"], &statistics] {
        let output = ask(ONE, words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{words:?}: {output:?}");
        let path = bed.path("socket.control");
        let told = "only root and whose the socket is may ask the numerge daemon at";
        assert!(error.contains(&format!("{told} {}:", path.display())), "{words:?}: {error}");
        assert!(!error.contains("no numerge daemon"), "{words:?}: {error}");
    }
    let error = String::from_utf8(ask(ONE, &statistics).stderr).unwrap();
    assert!(error.contains("with --set run=1 and no --socket COMMAND has an engine"), "{error}");
    assert_eq!(daemon.client().get("run").unwrap(), 1, "what was refused was not done");
    assert!(ask(0, &["get", "run"]).status.success());
    daemon.end();
    // One that a user has started is for that user, too.
    let place = bed.path("of-one");
    fs::create_dir(&place).unwrap();
    std::os::unix::fs::chown(&place, Some(ONE), Some(ONE)).unwrap();
    let socket = place.join("socket");
    let ask_there = |user: u32| {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={user}"), "--clear-groups".into(), "--regid=64009".into()]);
        command.arg(bed.path("numerge")).args(["get", "run", "--socket"]).arg(&socket);
        command.output().unwrap().status.success()
    };
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={ONE}"), format!("--regid={ONE}"), "--clear-groups".into()]);
    command.arg(bed.path("numerge")).args(["daemon", "--socket"]).arg(&socket);
    let mut daemon = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let answers = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        ask_there(ONE)
    });
    let others = (ask_there(0), ask_there(OTHER));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(answers && others == (true, false), "{answers} {others:?}");
}

/// What the daemon has left of root's rights.
#[test]
fn s6_the_daemon_keeps_what_it_needs_and_no_more() {
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&["--user", DAEMON]);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().split_ascii_whitespace().collect::<Vec<_>>()
    };
    // CAP_DAC_READ_SEARCH is number 2, CAP_SYS_PTRACE is number 19.
    let kept = format!("{:016x}", 1_u64 << 2 | 1 << 19);
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(field(set), [&kept], "{set}");
    }
    for set in ["CapInh:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("Uid:"), ["65534"; 4]);
    assert_eq!(field("Gid:"), ["65534"; 4]);
    assert!(field("Groups:").is_empty());
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    // Every thread has the same: capabilities are each thread's own.
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap();
    // One that answered a question may have ended meanwhile.
    let threads =
        threads.filter_map(|one| fs::read_to_string(one.unwrap().path().join("status")).ok());
    let threads: Vec<String> = threads.collect();
    assert!(threads.len() > 2, "{threads:?}");
    let kept = format!("CapEff:\t{kept}");
    assert!(threads.iter().all(|thread| thread.contains(&kept)), "{threads:?}");
    // Who is the same user may not look into it.
    let mut peek = Command::new("setpriv");
    peek.args(["--reuid", DAEMON, "--clear-groups", "ls"]);
    let peek = peek.arg(format!("/proc/{}/fd", daemon.child.id())).output().unwrap();
    assert!(!peek.status.success());
}

#[test]
fn s6_the_daemons_own_user_is_not_served() {
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&["--user", "daemon"]);
    let uid = nix::unistd::User::from_name("daemon").unwrap().unwrap().uid.as_raw();
    let mut own = bed.program(&By::user(uid), PAGES, 1);
    own.until_said("all users but its own");
    own.is_whole();
    assert_eq!(daemon.number("pages_registered"), 0);
}

#[test]
fn s6_clients_of_other_namespaces_are_turned_away_and_go_on() {
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&["--user", DAEMON]);
    let container = By::user(0).unshare(&["--pid", "--fork", "--mount-proc"]);
    let mut container = bed.program(&container, PAGES, 1);
    container.until_said("another mount of /proc");
    container.is_whole();
    assert_eq!(daemon.number("pages_registered"), 0);
    // With /proc as the host has it they are served.
    let mut inside = bed.program(&By::user(ONE).unshare(&["--user", "--map-root-user"]), PAGES, 1);
    let mut outside = bed.program(&By::user(ONE), PAGES, 1);
    daemon.until_clients(2);
    daemon.scan_twice();
    // The same user, but not the same namespace: what is root inside is a user outside.
    daemon.until_merged(0, 0);
    inside.is_whole();
    outside.is_whole();
    let mut other = bed.program(&By::user(ONE), PAGES, 1);
    daemon.until_merged(PAGES, PAGES);
    other.is_whole();
}

/// Whether an ordinary user needs the device. Says so if not.
fn device_is_needed() -> bool {
    let setting = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap();
    let is_needed = setting.trim() == "0";
    if !is_needed {
        println!("SKIPPED: vm.unprivileged_userfaultfd=1: no user needs the device");
    }
    is_needed
}

#[test]
fn users_that_may_not_open_the_device_are_lent_it() {
    if !is_root() || !device_is_needed() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&["--user", DAEMON, "--lend-userfaultfd"]);
    let without = || bed.program(&By::user(ONE).without_device(), PAGES, 1);
    let mut programs = [without(), without()];
    daemon.until_merged(PAGES, PAGES);
    programs.iter_mut().for_each(|program| program.is_whole());
    assert_eq!(programs[0].ask("write 7 99"), "ok");
    daemon.scan_twice();
    programs.iter_mut().for_each(|program| program.is_whole());
    // Who may open it does not need it, and is merged as well.
    programs[0] = bed.program(&By::user(ONE), PAGES, 1);
    daemon.until_merged(PAGES, PAGES);
    daemon.end();
    programs.iter_mut().for_each(|program| program.is_whole());
    assert_eq!(programs.each_ref().map(|program| program.said()), ["", ""]);
}

#[test]
fn users_that_are_not_lent_the_device_are_told_and_go_on() {
    if !is_root() || !device_is_needed() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon(&["--user", DAEMON]);
    let mut without = bed.program(&By::user(ONE).without_device(), PAGES, 1);
    without.until_said("may not open a userfaultfd");
    let mut with = [(), ()].map(|()| bed.program(&By::user(ONE), PAGES, 1));
    daemon.until_merged(PAGES, PAGES);
    assert_eq!(daemon.number("pages_registered"), 2 * PAGES);
    without.is_whole();
    with.iter_mut().for_each(|program| program.is_whole());
}

#[test]
fn a_device_that_can_not_be_lent_is_named() {
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon_command(&["--lend-userfaultfd"]);
    let mut command = By::user(ONE).without_device().command(&bed);
    let output = command.arg(daemon.get_program()).args(daemon.get_args()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("--lend-userfaultfd: can't open /dev/userfaultfd"), "{error}");
}

#[test]
fn a_user_that_can_not_be_is_named() {
    let Some(bed) = Bed::new() else { return };
    let refused = |mut command: Command| {
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = refused(bed.daemon_command(&["--user", "no-such-user"]));
    assert!(error.contains("--user no-such-user: there is no such user"), "{error}");
    let error = refused(bed.daemon_command(&["--user", "root"]));
    assert!(error.contains("--user root is root"), "{error}");
    if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "64001", "--clear-groups"]).arg(bed.path("numerge"));
        command.args(["daemon", "--user", "nobody"]);
        let error = refused(command);
        assert!(error.contains("only root can become"), "{error}");
    }
}
