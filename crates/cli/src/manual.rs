//! What manual pages say that is no option: knobs, files, environment, and where there is more.

use std::fmt::Write;

use numerge::{AGENT_DOMAIN, AGENT_SCOPE, AGENT_SOCKET, DAEMON_SOCKET, Knob};

use crate::value;

/// Commands that ask a daemon, or are one.
const OF_DAEMONS: [&str; 5] = ["daemon", "run", "get", "set", "status"];
/// All that have a page.
const PAGES: [&str; 7] = ["run", "daemon", "get", "set", "status", "merge", "topology"];

/// What a knob is for.
const fn about(knob: Knob) -> &'static str {
    match knob {
        Knob::Run => {
            "1 scans and merges, 0 stops and leaves merged what is merged, 2 stops and gives all programs \
             memory of their own again. A daemon, and an engine of numerge run without \\-\\-as\\-ksm, begins with 1."
        }
        Knob::PagesToScan => {
            "Pages that a node's scanner looks at, in each domain, before it rests. The advisor's to set where \
             it is on."
        }
        Knob::SleepMillisecs => "How long it rests, in ms.",
        Knob::MaxPageSharing => {
            "Pages mapped to one frame, at most. Changes only while nothing is shared: run=2 first."
        }
        Knob::StableNodeChainsPruneMillisecs => {
            "How often frames of one content are looked through for such as are used no more, in ms."
        }
        Knob::MergeAcrossNodes => {
            "0 merges only pages of one NUMA node. Changes only while nothing is shared: run=2 first."
        }
        Knob::UseZeroPages => "1 maps pages of zeros to the kernel's page of zeros.",
        Knob::SmartScan => "1 looks ever more rarely at pages that change between looks.",
        Knob::AdvisorMode => "scan-time has pages_to_scan set by the advisor.",
        Knob::AdvisorMaxCpu => {
            "CPU time that the advisor lets scanning take, of all its threads, in percent of one CPU."
        }
        Knob::AdvisorMinPagesToScan => "The least that the advisor sets pages_to_scan to.",
        Knob::AdvisorMaxPagesToScan => "The most that the advisor sets pages_to_scan to.",
        Knob::AdvisorTargetScanTime => "How long the advisor has a full scan take, in s.",
    }
}

/// What a page has in the end; `command` is the name after `numerge`, empty for the page of that.
pub(crate) fn more(command: &str) -> String {
    let mut page = String::new();
    let mut section = |title: &str, entries: &[(String, String)]| {
        if !entries.is_empty() {
            // Writing to a string does not fail.
            let _ = writeln!(page, ".SH {title}");
        }
        for (name, text) in entries {
            let _ = writeln!(page, ".TP\n\\fB{name}\\fR\n{text}");
        }
    };
    let has_knobs = matches!(command, "get" | "set" | "daemon" | "run");
    section("KNOBS", &if has_knobs { knobs() } else { Vec::new() });
    section("FILES", &files(command));
    section("ENVIRONMENT", &environment(command));
    let others = PAGES.iter().filter(|name| **name != command);
    let mut others: Vec<String> =
        others.map(|name| format!("\\fBnumerge\\-{name}\\fR(1)")).collect();
    if !command.is_empty() {
        others.insert(0, "\\fBnumerge\\fR(1)".into());
    }
    let _ = writeln!(page, ".SH \"SEE ALSO\"\n{},\n\\fBmadvise\\fR(2)", others.join(",\n"));
    page
}

fn knobs() -> Vec<(String, String)> {
    let entry = |knob: Knob| {
        let (name, default) = (knob.name(), value::format(knob, knob.default_value()));
        let (about, allowed) = (about(knob), value::allowed(knob));
        (name.into(), format!("{about} Allowed is {allowed}; the default is {default}."))
    };
    Knob::ALL.map(entry).into()
}

fn files(command: &str) -> Vec<(String, String)> {
    let is_daemons = command.is_empty() || OF_DAEMONS.contains(&command);
    let mut files = Vec::new();
    if is_daemons {
        files.push((DAEMON_SOCKET.into(), "Where programs connect to the daemon.".into()));
        files.push((
            format!("{DAEMON_SOCKET}.control"),
            "Where get, set and status ask it: for root and the daemon's own user.".into(),
        ));
        files.push((
            "/run/numerge/ksm".into(),
            "The daemon's control files, as the kernel's in /sys/kernel/mm/ksm. Wants /dev/fuse, and root in \
             the beginning."
                .into(),
        ));
    }
    if is_daemons || command == "merge" {
        files.push((
            "/dev/userfaultfd".into(),
            "Must be open to read and write to whoever's memory is merged.".into(),
        ));
    }
    files
}

fn environment(command: &str) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    let mut add = |name: &str, text: &str| variables.push((name.into(), text.into()));
    if command.is_empty() || OF_DAEMONS.contains(&command) {
        add(AGENT_SOCKET, "The daemon's socket, where no \\-\\-socket says it.");
    }
    if command == "run" {
        add(
            "NUMERGE_AGENT",
            "The agent's library, libnumerge_agent.so, where it is not beside numerge.",
        );
        add("LD_PRELOAD", "Has the agent before what it had, for COMMAND.");
        add(AGENT_SCOPE, "Is set for COMMAND, to what \\-\\-scope says.");
        add(
            AGENT_DOMAIN,
            "Is set for COMMAND, to what \\-\\-domain says. Without, it stays as it is for a daemon.",
        );
        add(
            "XDG_RUNTIME_DIR",
            "Where the socket of an engine of COMMAND's own is; else in TMPDIR.",
        );
    }
    if command.is_empty() || command == "topology" {
        add("HWLOC_SYNTHETIC", "A description of the nodes to be used instead of this machine's.");
        add("HWLOC_XMLFILE", "A file with such a description.");
    }
    variables
}
