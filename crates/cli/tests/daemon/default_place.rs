//! Where a daemon has its sockets and its control files if nothing is said: in /run, which is a test's own here, in
//! a mount namespace.

use std::process::Command;

use crate::bed::Bed;
use crate::{control_dir, systemd};

/// The user that the daemon becomes.
const DAEMON: &str = "nobody";

/// Starts a daemon by its arguments and has it end, before and after which it looks at what is there.
const SCRIPT: &str = r#"
mount -t tmpfs none /run
"$@" 2>"$LOG" & daemon=$!
trap 'kill $daemon 2>/dev/null || true; wait $daemon || true' EXIT
tries=0
until grep -q listening "$LOG"; do
    tries=$((tries + 1)); kill -0 $daemon; test $tries -lt 600; sleep 0.1
done
# Not those of other tests.
mounts() { awk '$3 == "fuse.numerge" && ($2 ~ "^/run/" || index($2, ENVIRON["PLACE"])) { print $2 }' /proc/mounts; }
mounts
cd /run/numerge 2>/dev/null || { echo no /run/numerge; exit; }
stat -c '%n %a %u' numerge.sock numerge.sock.control
stat -c '%n %a %u' ksm/sleep_millisecs
echo 7 >ksm/sleep_millisecs
"$NUMERGE" get sleep_millisecs
# Who says nothing of a socket is the daemon's, if it is there, whatever is asked for; else nobody's but its own.
"$NUMERGE" run -- sh -c 'echo "$NUMERGE_SOCKET"'
"$NUMERGE" run --stats "$PLACE/stats" -- true
grep -o '"clients":\[\]' "$PLACE/stats"
"$NUMERGE" run --log error -- sh -c 'test "$NUMERGE_SOCKET" != /run/numerge/numerge.sock'
kill $daemon; wait $daemon
trap - EXIT
echo ended
"$NUMERGE" run -- sh -c 'test -S "$NUMERGE_SOCKET" && test "$NUMERGE_SOCKET" != /run/numerge/numerge.sock'
mounts
# Sockets in a directory of root's stay where the daemon is somebody else.
test ! -e ksm
"#;

/// What the script says of a daemon that is started by these words; else why it can't.
fn said(bed: &Bed, by: &[String], arguments: &[&str]) -> Result<String, String> {
    let (numerge, log) = (bed.path("numerge"), bed.path("default.log"));
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", SCRIPT, "sh"]).args(by);
    command.arg(&numerge).args(["daemon", "--set", "sleep_millisecs=3"]).args(arguments);
    command.env("NUMERGE", &numerge).env("LOG", &log).env("PLACE", numerge.parent().unwrap());
    command.env_remove("NUMERGE_SOCKET");
    let output = command.output().unwrap();
    let logged = std::fs::read_to_string(&log).unwrap_or_default();
    let complaints = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8(output.stdout).unwrap();
    if output.status.success() { Ok(said) } else { Err(format!("{said}{complaints}{logged}")) }
}

const WITH_FILES: &str = "/run/numerge/ksm\n\
                          numerge.sock 666 0\n\
                          numerge.sock.control 600 0\n\
                          ksm/sleep_millisecs 644 0\n\
                          7\n\
                          /run/numerge/numerge.sock\n\
                          \"clients\":[]\n\
                          ended\n";

#[test]
fn a_daemon_of_roots_has_its_control_files_in_run() {
    let Some(bed) = control_dir::bed() else { return };
    assert_eq!(said(&bed, &[], &[]).unwrap(), WITH_FILES);
    // With another socket there are none, there or elsewhere.
    let elsewhere = bed.socket();
    let without = said(&bed, &[], &["--socket", elsewhere.to_str().unwrap()]);
    assert_eq!(without.unwrap(), "no /run/numerge\n");
}

/// As the drop-in for the service has it.
#[test]
fn s6_the_drop_ins_capabilities_are_enough_for_control_files() {
    let Some(bed) = control_dir::bed() else { return };
    let texts = ["numerge.service", systemd::FILES].map(systemd::shipped);
    let lines = texts.iter().flat_map(|text| text.lines());
    let sets = lines.filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let capabilities: Vec<String> = sets
        .flat_map(str::split_ascii_whitespace)
        .map(|name| format!(",+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()))
        .collect();
    let by = |capabilities: &[String]| -> Vec<String> {
        let bounding = format!("--bounding-set=-all{}", capabilities.concat());
        ["setpriv", &*bounding, "--no-new-privs"].map(str::to_owned).into()
    };
    assert_eq!(said(&bed, &by(&capabilities), &["--user", DAEMON]).unwrap(), WITH_FILES);
    // None of them is there for nothing: without, there are no files, or no daemon.
    for left_out in &capabilities {
        let mut rest = capabilities.clone();
        rest.retain(|one| one != left_out);
        let found = said(&bed, &by(&rest), &["--user", DAEMON]);
        assert!(
            found.as_ref().is_err_and(|error| error.contains("numerge")),
            "{left_out}: {found:?}"
        );
    }
}
