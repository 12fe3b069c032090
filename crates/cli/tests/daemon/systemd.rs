//! The units, and sockets that are passed as systemd passes them.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use numerge::control::path_beside;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::bed::{Bed, By, Program};

const PAGES: u64 = 200;
/// Where descriptors are out of the way of those they are to become.
const AWAY: RawFd = 100;
const UNITS: [&str; 3] = ["numerge.service", "numerge.socket", "numerge-control.socket"];
/// Of 100; systemd-analyze(1) calls what is below 20 "OK" or better.
const MOST_EXPOSED: &str = "--threshold=19";
/// The drop-in for control files, and the same with it.
pub(crate) const FILES: &str = "control-files.conf";
const MOST_EXPOSED_WITH_FILES: &str = "--threshold=40";

fn are_merged(bed: &Bed, daemon: &crate::bed::Daemon) {
    let mut programs = [(), ()].map(|()| bed.program(&By::me(), PAGES, 1));
    daemon.until_merged(PAGES, PAGES);
    programs.iter_mut().for_each(Program::is_whole);
}

/// A file of `tools/systemd`.
pub(crate) fn shipped(name: &str) -> String {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/systemd");
    fs::read_to_string(units.join(name)).unwrap()
}

/// Verifies the units, with a drop-in for the service if there is one. Where the service is more exposed than
/// that, fails; gives what it was found to be.
fn verify(drop_in: Option<&str>, most_exposed: &str) -> String {
    let scratch = tempfile::tempdir().unwrap();
    // Where it is installed it is not now.
    let install = |name: &str, to: &Path| {
        let text = shipped(name).replace("/usr/bin/numerge", env!("CARGO_BIN_EXE_numerge"));
        fs::write(to.join(name), text).unwrap();
    };
    UNITS.iter().for_each(|unit| install(unit, scratch.path()));
    if let Some(drop_in) = drop_in {
        let directory = scratch.path().join("numerge.service.d");
        fs::create_dir(&directory).unwrap();
        install(drop_in, &directory);
    }
    let analyze = |arguments: &[&str], units: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        command.args(arguments).args(units.iter().map(|unit| scratch.path().join(unit)));
        let output = command.output().expect("systemd-analyze, which tools/setup installs");
        let said =
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        assert!(output.status.success(), "{arguments:?}: {said:?}");
        said
    };
    let [_, complaints] = analyze(&["verify"], &UNITS);
    assert!(!complaints.contains("numerge"), "{complaints}");
    let [found, _] = analyze(&["security", "--offline=true", most_exposed], &UNITS[..1]);
    found
}

#[test]
fn the_units_are_sound_and_grant_little() {
    verify(None, MOST_EXPOSED);
}

#[test]
fn the_drop_in_for_control_files_is_sound_and_leaves_the_rest_hardened() {
    let found = verify(Some(FILES), MOST_EXPOSED_WITH_FILES);
    println!("{found}");
    let has = |name: &str| {
        let line = found.lines().find(|line| line.contains(name)).unwrap();
        line.trim_start().starts_with('\u{2713}')
    };
    // What mounts nothing is as it was.
    for kept in ["NoNewPrivileges=", "PrivateNetwork=", "LockPersonality=", "RestrictNamespaces="] {
        assert!(has(kept), "{kept}: {found}");
    }
    // A mount that the daemon makes is seen by others only where it has no mount namespace of its own.
    let private = ["Devices=", "Tmp="].map(|what| format!("Private{what}"));
    let protected =
        ["System=", "Home=", "KernelTunables=", "KernelModules=", "KernelLogs=", "ControlGroups="];
    for dropped in private.into_iter().chain(protected.map(|what| format!("Protect{what}"))) {
        assert!(!has(&dropped), "{dropped}: {found}");
    }
}

#[test]
fn a_daemon_is_started_by_the_first_program() {
    let Some(bed) = Bed::new() else { return };
    let daemon = bed.daemon_command(&[]);
    let mut command = Command::new("systemd-socket-activate");
    command.args(["--seqpacket", "--listen"]).arg(bed.socket());
    command.arg(daemon.get_program()).args(daemon.get_args());
    // Is there as soon as somebody connects: until then there is nobody to be asked.
    let knock = std::thread::spawn({
        let socket = bed.socket();
        move || while numerge_server::Socket::connect(&socket).is_err() {}
    });
    let daemon = bed.start(command);
    knock.join().unwrap();
    are_merged(&bed, &daemon);
    daemon.end();
    assert!(bed.socket().exists(), "it was not the daemon's to remove");
}

pub(crate) fn listening(path: &Path, kind: SocketType) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 16).unwrap();
    socket
}

/// Has a command started with these descriptors as 3 and so on, and told so.
pub(crate) fn pass(command: &Command, sockets: &[&OwnedFd]) -> Command {
    let mut passing = Command::new("sh");
    // The number is that of the process that executes the daemon.
    passing.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]);
    passing.arg(command.get_program()).args(command.get_args());
    passing.env("LISTEN_FDS", sockets.len().to_string());
    let sockets: Vec<RawFd> = sockets.iter().map(|socket| socket.as_raw_fd()).collect();
    // SAFETY: dup2 and dup3 may be called between fork and exec. What is overwritten are the child's
    // copies of descriptors that it does not need.
    unsafe {
        passing.pre_exec(move || {
            let mut done = true;
            for (socket, away) in sockets.iter().zip(AWAY..) {
                done &= libc::dup3(*socket, away, libc::O_CLOEXEC) >= 0;
            }
            for (number, away) in (3..).zip(AWAY..).take(sockets.len()) {
                done &= libc::dup2(away, number) >= 0;
            }
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    passing
}

#[test]
fn both_sockets_can_be_passed_in_any_order_and_outlive_the_daemon() {
    let Some(bed) = Bed::new() else { return };
    let agents = listening(&bed.socket(), SocketType::SEQPACKET);
    let control = listening(&path_beside(&bed.socket()), SocketType::STREAM);
    for sockets in [[&agents, &control], [&control, &agents]] {
        let daemon = bed.start(pass(&bed.daemon_command(&[]), &sockets));
        are_merged(&bed, &daemon);
        daemon.end();
        assert!(bed.socket().exists() && path_beside(&bed.socket()).exists());
    }
}

#[test]
fn what_can_not_be_passed_is_refused() {
    let Some(bed) = Bed::new() else { return };
    let agents = listening(&bed.socket(), SocketType::SEQPACKET);
    let other = listening(&bed.path("other"), SocketType::SEQPACKET);
    let file: OwnedFd = fs::File::open("/dev/null").unwrap().into();
    for (sockets, why) in [
        (&[&agents, &other][..], "two sockets of one type"),
        (&[&file], "descriptor 3"),
        (&[&agents; 3], "LISTEN_FDS=3: 0 to 2"),
    ] {
        let output = pass(&bed.daemon_command(&[]), sockets).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(why), "{error}");
    }
}
