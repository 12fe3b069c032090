//! A daemon, programs that it serves, and a place where all users may have them from.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use numerge::control::{Client, path_beside};
use serde_json::Value;
use tempfile::TempDir;

/// After so long, what has not come about is not going to.
const LONG: Duration = Duration::from_secs(60);

/// Where cargo puts what it builds for this test.
fn built() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_numerge")).parent().unwrap().into()
}

/// Has the preload library built, of which cargo builds for tests only what is Rust.
fn build() {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let profile = if built().ends_with("release") { "release" } else { "test" };
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--profile", profile, "-p", "numerge-agent-preload"]);
        cargo.arg("--target-dir").arg(built().parent().unwrap());
        assert!(cargo.status().unwrap().success(), "the preload library does not build");
    });
}

/// The C programs of this directory.
const PROGRAMS: [&str; 2] = ["holder", "hostile"];

/// Whether this is root: others can't start programs of several users, nor look into a daemon. Says so
/// if not.
pub(crate) fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("SKIPPED: only root can start programs of several users and look into a daemon");
    }
    is_root
}

/// A place for sockets, with copies of the programs: what is built may be where others can't look.
pub(crate) struct Bed(TempDir);

impl Bed {
    /// None, with the reason printed, if this machine does not let programs be merged.
    pub(crate) fn new() -> Option<Self> {
        if let Err(error) = numerge_linux::check_kernel() {
            println!("SKIPPED: {error}");
            return None;
        }
        build();
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let bed = Self(directory);
        fs::copy(env!("CARGO_BIN_EXE_numerge"), bed.path("numerge")).unwrap();
        let agent = "libnumerge_agent.so";
        fs::copy(built().join(agent), bed.path(agent)).unwrap();
        for program in PROGRAMS {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/daemon").join(program);
            let mut cc = Command::new("cc");
            cc.args(["-O1", "-g", "-Wall", "-Wextra", "-o"]).arg(bed.path(program));
            let built = cc.arg(source.with_extension("c")).status().unwrap();
            assert!(built.success(), "{program}.c does not build");
        }
        Some(bed)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// `numerge daemon` with these arguments, not started.
    pub(crate) fn daemon_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("numerge"));
        command.args(["daemon", "--set", "pages_to_scan=10000", "--set", "sleep_millisecs=1"]);
        command.arg("--socket").arg(self.socket()).args(arguments);
        command.env_remove("NUMERGE_SOCKET");
        command
    }

    /// A daemon that answers.
    pub(crate) fn daemon(&self, arguments: &[&str]) -> Daemon {
        self.start(self.daemon_command(arguments))
    }

    /// A daemon by some command, which may execute other programs first; it answers.
    pub(crate) fn start(&self, command: Command) -> Daemon {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        self.start_logging_to(log.into(), command)
    }

    /// The same, and its log goes somewhere else.
    pub(crate) fn start_logging_to(&self, log: Stdio, mut command: Command) -> Daemon {
        let child = command.stderr(log).spawn().unwrap();
        let mut daemon = Daemon { child, socket: self.socket() };
        let end = Instant::now() + LONG;
        while daemon.ask().is_none() {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon has ended, {status}: {}", self.log());
            }
            assert!(Instant::now() < end, "the daemon does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    /// What daemons have said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A program of a user below `numerge run`, started by way of `by`; it has filled its memory.
    pub(crate) fn program(&self, by: &By, pages: u64, first: u64) -> Program {
        let words = [pages.to_string(), first.to_string()];
        let mut command = by.command(self);
        command.arg(self.path("numerge")).args(["run", "--socket"]).arg(self.socket());
        command.args(&by.domain).arg("--");
        if let Some(limit) = by.limit {
            command.args(["prlimit", limit]);
        }
        command.arg(self.path("holder")).args(words);
        command.env("NUMERGE_AGENT", self.path("libnumerge_agent.so")).env_remove("NUMERGE_SOCKET");
        let said = self.path(&format!("said.{first}.{}", by.user));
        let stderr = fs::File::create(&said).unwrap();
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let orders = child.stdin.take();
        let mut program = Program { child, orders, answers, said };
        assert_eq!(program.answer(), "ready");
        program
    }

    /// The program that means harm, as the test is run.
    pub(crate) fn hostile(&self, arguments: &[&str]) -> Program {
        self.hostile_by(&By::me(), arguments)
    }

    /// The program that means harm.
    pub(crate) fn hostile_by(&self, by: &By, arguments: &[&str]) -> Program {
        let mut command = by.command(self);
        command.arg(self.path("hostile")).arg(self.socket()).args(arguments);
        let said = self.path("said.hostile");
        let stderr = fs::File::create(&said).unwrap();
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let orders = child.stdin.take();
        Program { child, orders, answers, said }
    }
}

/// How a program is started.
pub(crate) struct By {
    pub(crate) user: u32,
    /// Arguments of unshare(1), beside those for mounts.
    pub(crate) unshare: &'static [&'static str],
    domain: Vec<String>,
    /// An argument of prlimit(1).
    limit: Option<&'static str>,
    /// Permissions of the device for userfaultfds.
    device_mode: &'static str,
}

impl By {
    /// As the test itself is run.
    pub(crate) fn me() -> Self {
        Self::user(rustix::process::geteuid().as_raw())
    }

    pub(crate) fn user(user: u32) -> Self {
        Self { user, unshare: &[], domain: Vec::new(), limit: None, device_mode: "666" }
    }

    pub(crate) fn in_domain(self, name: &str) -> Self {
        Self { domain: vec!["--domain".into(), name.into()], ..self }
    }

    pub(crate) fn limited(self, limit: &'static str) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// May not open the device for userfaultfds.
    pub(crate) fn without_device(self) -> Self {
        Self { device_mode: "600", ..self }
    }

    pub(crate) fn unshare(self, unshare: &'static [&'static str]) -> Self {
        Self { unshare, ..self }
    }

    /// A command that executes what its further arguments say, as that user, who may use userfaultfd
    /// or not: in a mount namespace of its own the device is everybody's, or root's alone.
    pub(crate) fn command(&self, bed: &Bed) -> Command {
        if self.user == rustix::process::geteuid().as_raw() && self.unshare.is_empty() {
            return Command::new("env");
        }
        let mut command = Command::new("unshare");
        let device = fs::metadata("/dev/userfaultfd").unwrap();
        let minor = rustix::fs::minor(std::os::unix::fs::MetadataExt::rdev(&device));
        let major = rustix::fs::major(std::os::unix::fs::MetadataExt::rdev(&device));
        let place = bed.path("devices");
        fs::create_dir_all(&place).unwrap();
        let place = place.to_str().unwrap();
        let (user, mode) = (self.user, self.device_mode);
        let unshare = self.unshare.join(" ");
        let unshare = if unshare.is_empty() { unshare } else { format!("unshare {unshare}") };
        let script = format!(
            "set -e; mount -t tmpfs none {place}; mknod -m {mode} {place}/uffd c {major} {minor}; \
             mount --bind {place}/uffd /dev/userfaultfd; \
             exec setpriv --reuid {user} --regid {user} --clear-groups {unshare} \"$@\""
        );
        command.args(["--mount", "sh", "-c", &script, "sh"]);
        command
    }
}

/// A program that answers. Killed when it is dropped.
pub(crate) struct Program {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    said: PathBuf,
}

impl Program {
    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "it has ended: {}", self.said());
        line.trim_end().to_owned()
    }

    pub(crate) fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        self.answer()
    }

    /// Every page has the content that the program gave it.
    pub(crate) fn is_whole(&mut self) {
        assert_eq!(self.ask("wrong"), "0", "pages changed");
    }

    /// What it and its agent have said on standard error.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }

    /// Waits until its agent has said something on standard error.
    pub(crate) fn until_said(&self, wanted: &str) {
        until(|| self.said().contains(wanted), || format!("not {wanted:?}: {}", self.said()));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running daemon. Killed when it is dropped.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    socket: PathBuf,
}

impl Daemon {
    /// Who asks it questions, by a connection of its own.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&path_beside(&self.socket)).unwrap()
    }

    fn ask(&self) -> Option<Value> {
        Client::connect(&path_beside(&self.socket)).ok()?.status().ok()
    }

    pub(crate) fn status(&self) -> Value {
        self.ask().expect("the daemon answers")
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        self.status()[name].as_u64().unwrap()
    }

    /// Waits until as many frames are in use, and as many pages saved.
    pub(crate) fn until_merged(&self, shared: u64, sharing: u64) {
        let counts = || {
            let status = self.status();
            ["pages_shared", "pages_sharing"].map(|name| status[name].as_u64().unwrap())
        };
        until(|| counts() == [shared, sharing], || format!("{:?}", self.status()));
    }

    /// Waits until everything was looked at twice more.
    pub(crate) fn scan_twice(&self) {
        let before = self.number("full_scans");
        until(|| self.number("full_scans") >= before + 3, || "no full scans".into());
    }

    /// Waits until there are so many clients.
    pub(crate) fn until_clients(&self, wanted: usize) {
        let count = || self.status()["clients"].as_array().unwrap().len();
        until(|| count() == wanted, || format!("{} clients, not {wanted}", count()));
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn end(mut self) {
        self.signal(rustix::process::Signal::TERM);
        assert!(self.child.wait().unwrap().success());
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for something that has to come about.
pub(crate) fn until(holds: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LONG, "{}", otherwise());
        std::thread::sleep(Duration::from_millis(10));
    }
}
