//! Programs to run, and to run them by.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use numerge::control::{Client, path_beside};
use rustix::process::Pid;
use tempfile::TempDir;

/// Options of `numerge run`.
pub(crate) const AT_FULL_SPEED: [&str; 4] =
    ["--set", "pages_to_scan=100000", "--set", "sleep_millisecs=0"];

/// Where cargo puts what it builds for this test.
pub(crate) fn built() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_numerge")).parent().unwrap().into()
}

/// What a test run alone does not have cargo build, built the first time: the preload library, of which
/// cargo builds for tests only what is Rust, the examples that are run as programs, and what `tools` run.
pub(crate) fn build() {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let preload = ["-p", "numerge-agent-preload"];
        let benches = ["-p", "numerge-benches", "--bin", "saveable"];
        let facts = ["-p", "numerge-control-fs", "--bin", "ksm-facts"];
        for what in [&preload[..], &["-p", "numerge", "--examples"], &benches, &facts] {
            let mut cargo = Command::new(env!("CARGO"));
            let profile = if built().ends_with("release") { "release" } else { "test" };
            cargo.args(["build", "--quiet", "--profile", profile]).args(what);
            cargo.arg("--target-dir").arg(built().parent().unwrap());
            assert!(cargo.status().unwrap().success(), "{what:?} does not build");
        }
    });
}

/// `numerge` with these arguments.
pub(crate) fn numerge(arguments: &[&str]) -> Command {
    build();
    let mut command = Command::new(env!("CARGO_BIN_EXE_numerge"));
    let agent = built().join("libnumerge_agent.so");
    // No daemon that this machine may have.
    command.args(arguments).env("NUMERGE_AGENT", agent).env("NUMERGE_SOCKET", "/nobody/listens");
    command
}

/// A command by way of another one, which executes what its last arguments say.
pub(crate) fn by_way_of(mut other: Command, command: &Command) -> Command {
    other.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    other
}

/// Whether this machine lets programs be merged; says so if not.
pub(crate) fn can_merge() -> bool {
    match numerge_linux::check_kernel() {
        Ok(()) => true,
        Err(error) => {
            println!("SKIPPED: {error}");
            false
        }
    }
}

/// A C program of this directory, built the first time.
pub(crate) fn c_program(name: &str) -> PathBuf {
    c_program_with(name, name, &[])
}

/// The same by other options of the compiler, as `made`.
pub(crate) fn c_program_with(name: &str, made: &str, options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host").join(name);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(made).with_extension("");
    let scratch = program.with_extension(std::process::id().to_string());
    // Two tests may want the same.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-g", "-Wall", "-Wextra", "-pthread"]).args(options);
    assert!(
        cc.arg("-o").arg(&scratch).arg(source).status().unwrap().success(),
        "{name} does not build"
    );
    std::fs::rename(&scratch, &program).unwrap();
    program
}

/// A Rust example of this package.
pub(crate) fn example(name: &str) -> PathBuf {
    build();
    built().join("examples").join(name)
}

/// Ended when it is dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon at full speed, and its control connection.
pub(crate) struct Host {
    socket: PathBuf,
    pub(crate) client: Client,
    daemon: Running,
    _scratch: TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let socket = scratch.path().join("socket");
        let (daemon, client) = Self::start(&socket);
        Self { socket, client, daemon, _scratch: scratch }
    }

    fn start(socket: &Path) -> (Running, Client) {
        let mut daemon = numerge(&["daemon"]);
        daemon.args(AT_FULL_SPEED).arg("--socket").arg(socket);
        let daemon = Running(daemon.spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(20);
        let client = loop {
            match Client::connect(&path_beside(socket)) {
                Ok(client) => break client,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        (daemon, client)
    }

    /// Kills the daemon, and starts another in its place.
    pub(crate) fn kill_and_start(&mut self) {
        self.daemon.0.kill().unwrap();
        self.daemon.0.wait().unwrap();
        (self.daemon, self.client) = Self::start(&self.socket);
    }

    /// `numerge run` under this daemon, of this scope; what is run is to be added.
    pub(crate) fn run(&self, scope: &str) -> Command {
        let mut run = numerge(&["run", "--scope", scope, "--socket"]);
        run.arg(&self.socket).arg("--");
        run
    }

    /// The daemon's number.
    pub(crate) fn daemon(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.daemon.0.id()).unwrap()).unwrap()
    }

    pub(crate) fn number(&mut self, name: &str) -> u64 {
        self.client.status().unwrap()[name].as_u64().unwrap()
    }

    /// Waits until so much is saved, or fails.
    pub(crate) fn wait_saved(&mut self, bytes: u64) {
        let end = Instant::now() + Duration::from_secs(120);
        while self.number("bytes_saved") < bytes {
            assert!(Instant::now() < end, "not {bytes} saved: {}", self.client.status().unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
