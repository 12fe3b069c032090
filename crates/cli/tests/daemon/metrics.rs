//! `--metrics`: what a monitoring system gets to see.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::bed::{Bed, By, is_root};

const PAGES: u64 = 300;

/// The body of an answer with that status.
fn ask(stream: &mut (impl Read + Write), path: &str, status: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    body.to_owned()
}

fn scrape(socket: &Path) -> String {
    ask(&mut UnixStream::connect(socket).unwrap(), "/metrics", "200")
}

/// Samples by their names and labels.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let (text, after) = text.split_once("# EOF\n").unwrap();
    assert_eq!(after, "");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').map(|(at, n)| (at, n.parse().unwrap())).unwrap())
        .collect()
}

#[test]
fn s5_5_metrics_are_the_counters() {
    let Some(bed) = Bed::new() else { return };
    let socket = bed.path("metrics");
    let daemon = bed.daemon(&["--metrics", socket.to_str().unwrap()]);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let programs = [(); 2].map(|()| bed.program(&By::me(), PAGES, 1));
    daemon.until_merged(PAGES, PAGES);
    daemon.scan_twice();
    // What was counted before is given for a second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let text = scrape(&socket);
    let found = samples(&text);
    let pages = PAGES as f64;
    for (name, value) in [
        ("numerge_pages_registered", 2.0 * pages),
        ("numerge_pages_shared", pages),
        ("numerge_pages_sharing", pages),
        ("numerge_saved_bytes", pages * 4096.0),
        ("numerge_clients", 2.0),
        ("numerge_knob{knob=\"pages_to_scan\"}", 10_000.0),
        ("numerge_knob{knob=\"run\"}", 1.0),
    ] {
        assert_eq!(found.get(name), Some(&value), "{name} in {text}");
    }
    assert!(found["numerge_full_scans_total"] > 0.0, "{text}");
    let sum = |name: &str| -> f64 {
        let of_name = |at: &&str| at.split('{').next() == Some(name);
        found.iter().filter(|(at, _)| of_name(at)).map(|(_, value)| value).sum()
    };
    for name in ["node_pages_shared", "domain_pages_shared"] {
        assert_eq!(sum(&format!("numerge_{name}")), pages, "{text}");
    }
    assert_eq!(sum("numerge_process_pages_merged"), 2.0 * pages, "{text}");
    for name in ["node_pages_registered", "domain_pages_registered"] {
        assert_eq!(sum(&format!("numerge_{name}")), 2.0 * pages, "{text}");
    }
    // What one has, all of them, and nodes as far as they have any.
    let mappings = sum("numerge_process_mappings");
    assert!(mappings > 0.0, "{text}");
    for (name, everywhere, of) in [
        ("mappings", mappings, &["domain"][..]),
        ("stalls", sum("numerge_process_stalls_total"), &["domain"]),
        ("ksm_zero_pages", 0.0, &["node", "domain"]),
        ("pages_unshared", 0.0, &["node", "domain"]),
        ("pages_volatile", 0.0, &["node", "domain"]),
        ("pages_broken_total", 0.0, &["node", "domain"]),
        ("pages_scanned_total", found["numerge_pages_scanned_total"], &["node"]),
        ("pages_skipped_total", found["numerge_pages_skipped_total"], &["node"]),
        ("saved_bytes", pages * 4096.0, &["node", "domain"]),
    ] {
        assert_eq!(found.get(&*format!("numerge_{name}")), Some(&everywhere), "{name} in {text}");
        for whose in of {
            let its = format!("numerge_{whose}_{name}");
            assert!(found.keys().any(|at| at.starts_with(&format!("{its}{{"))), "no {its}: {text}");
            assert_eq!(sum(&its), everywhere, "{its} in {text}");
        }
    }
    drop(programs);
    daemon.end();
    assert!(!socket.exists());
}

/// Where a process listens: paths of Unix sockets, and local addresses of others.
fn listens(pid: u32) -> Vec<String> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    let own: Vec<String> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    let mut found = Vec::new();
    // The columns of the state, of what it is when somebody listens, of the inode, and of the address.
    for (table, state, listening, inode, address) in
        [("unix", 3, "00010000", 6, 7), ("tcp", 3, "0A", 9, 1), ("tcp6", 3, "0A", 9, 1)]
    {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let is_own = |inode| own.contains(&format!("socket:[{inode}]"));
            if fields.get(state) == Some(&listening) && fields.get(inode).is_some_and(is_own) {
                found.push(fields.get(address).copied().unwrap_or_default().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn metrics_are_off_by_default() {
    if !is_root() {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let own = bed.socket().to_str().unwrap().to_owned();
    let without = [own.clone(), format!("{own}.control")];
    let daemon = bed.daemon(&[]);
    assert_eq!(listens(daemon.child.id()), without);
    daemon.end();
    for metrics in [bed.path("metrics").to_str().unwrap(), "127.0.0.1:0"] {
        let daemon = bed.daemon(&["--metrics", metrics]);
        assert_eq!(listens(daemon.child.id()).len(), without.len() + 1, "{metrics}");
        daemon.end();
    }
}

#[test]
fn metrics_by_tcp_end_with_the_daemon_and_nobody_keeps_them_from_others() {
    let Some(bed) = Bed::new() else { return };
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let daemon = bed.daemon(&["--metrics", &free.to_string()]);
    let connect = || TcpStream::connect(free).unwrap();
    // Those say nothing.
    let silent = [connect(), connect()];
    assert!(ask(&mut connect(), "/metrics", "200").ends_with("# EOF\n"));
    ask(&mut connect(), "/", "404");
    drop(silent);
    daemon.end();
    assert!(TcpStream::connect(free).is_err());
}

#[test]
fn s6_metrics_are_not_for_other_machines() {
    let Some(bed) = Bed::new() else { return };
    let output = bed.daemon_command(&["--metrics", "0.0.0.0:9155"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("0.0.0.0:9155' can be reached from elsewhere"), "{error}");
}

/// Names of metrics in a text.
fn names(text: &str) -> Vec<&str> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_of_name(c));
    words.filter(|word| word.starts_with("numerge_")).collect()
}

#[test]
fn the_dashboard_shows_what_there_is() {
    let Some(bed) = Bed::new() else { return };
    let socket = bed.path("metrics");
    let daemon = bed.daemon(&["--metrics", socket.to_str().unwrap()]);
    let _program = bed.program(&By::me(), PAGES, 1);
    daemon.until_clients(1);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let text = scrape(&socket);
    let there: Vec<&str> =
        samples(&text).into_keys().filter_map(|at| at.split('{').next()).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/grafana/numerge.json");
    let dashboard = std::fs::read_to_string(path).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: Vec<&str> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(queries.len() > 20, "{queries:?}");
    for query in queries {
        let names = names(query);
        assert!(!names.is_empty(), "{query}");
        for name in names {
            assert!(there.contains(&name), "no {name}: {there:?}");
        }
    }
}
