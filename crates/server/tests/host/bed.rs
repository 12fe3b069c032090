//! A server, its clients, and what can be asked about them from outside.

use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use numerge_engine::Knob;
use numerge_engine::machine::{MemoryError, PAGE_SIZE};
use numerge_linux::{Error, check_kernel};
use numerge_server::{Options, Server};
use tempfile::TempDir;

/// The environment variable that makes a test binary a client: where to take orders.
pub(crate) const CONTROL: &str = "NUMERGE_TEST_CONTROL";

/// After so long, what has not come about is not going to.
const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Bed {
    dir: TempDir,
    pub(crate) server: Server,
}

impl Bed {
    pub(crate) fn new() -> Option<Self> {
        Self::with(Options::default())
    }

    /// None, with the reason printed, if this machine does not allow it.
    pub(crate) fn with(options: Options) -> Option<Self> {
        match check_kernel() {
            Ok(()) => {}
            Err(error @ (Error::NotPermitted { .. } | Error::KernelTooOld { .. })) => {
                println!("SKIPPED: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        }
        note_panics();
        let dir = tempfile::tempdir().unwrap();
        // Who may connect is the socket's business: see `Options`.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let server = Server::bind(&dir.path().join("engine"), options).unwrap();
        server.set(Knob::PagesToScan, 4096).unwrap();
        server.set(Knob::SleepMillisecs, 1).unwrap();
        server.set(Knob::Run, 1).unwrap();
        Some(Self { dir, server })
    }

    /// Ends the server in some way. The clients go on.
    pub(crate) fn into_dir(self, end: impl FnOnce(Server)) -> TempDir {
        end(self.server);
        self.dir
    }

    pub(crate) fn socket(&self) -> String {
        self.dir.path().join("engine").to_str().unwrap().to_owned()
    }

    /// A process that has not connected.
    pub(crate) fn process(&self) -> Client {
        let path = self.dir.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent::client_process", "--nocapture"])
            .env(CONTROL, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let control = BufReader::new(listener.accept().unwrap().0);
        std::fs::remove_file(&path).unwrap();
        Client { child, control }
    }

    /// A client that is served.
    pub(crate) fn client(&self) -> Client {
        let mut client = self.process();
        assert_eq!(client.ask(&format!("connect {}", self.socket())), "welcome");
        client
    }

    /// A client with a registered region, number 0.
    pub(crate) fn client_with(&self, pages: u64, first: u64, step: u64) -> Client {
        let mut client = self.client();
        assert_eq!(client.ask(&format!("map {pages} {first} {step}")), "0");
        client.ask("register 0");
        client
    }

    /// Clients with equal memory, page n with content n + 1, all of it merged.
    pub(crate) fn merged_clients<const N: usize>(&self, pages: u64) -> [Client; N] {
        let clients = [(); N].map(|()| self.client_with(pages, 1, 1));
        self.until_merged(pages, pages * (N as u64 - 1));
        clients
    }

    /// Waits until as many frames are in use, and as many pages saved.
    pub(crate) fn until_merged(&self, shared: u64, sharing: u64) {
        let counts = || {
            let counters = self.server.counters();
            (counters.pages_shared, counters.pages_sharing)
        };
        until(
            || counts() == (shared, sharing),
            || format!("(shared, sharing) {:?}, not {:?}", counts(), (shared, sharing)),
        );
    }

    /// Waits until everybody was looked at twice more.
    pub(crate) fn scan_twice(&self) {
        let before = self.server.counters().full_scans;
        until(|| self.server.counters().full_scans >= before + 3, || "no full scans".into());
    }

    pub(crate) fn no_errors(&self) {
        self.no_errors_but(|_| false);
    }

    pub(crate) fn no_errors_but_silence(&self) {
        self.no_errors_but(|error| matches!(error, MemoryError::NoAnswer));
    }

    /// A liar's memory can't be unmerged where it says so.
    pub(crate) fn no_errors_but_a_liars(&self) {
        self.no_errors_but(|error| !matches!(error, MemoryError::NotMergeable(_)));
    }

    fn no_errors_but(&self, is_allowed: impl Fn(&MemoryError) -> bool) {
        // Of any server of this test process.
        assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a thread of a server has panicked");
        for domain in self.server.domains() {
            let mut errors = domain.engine().take_errors();
            errors.retain(|error| !is_allowed(error));
            assert!(errors.is_empty(), "{errors:?}");
        }
    }
}

/// Panics in threads of servers.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Has them counted, for nobody waits for these threads' results.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name().is_some_and(|name| name.starts_with("numerge-")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(info);
        }));
    });
}

/// A client process. Killed when dropped.
pub(crate) struct Client {
    child: Child,
    control: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn ask(&mut self, order: &str) -> String {
        writeln!(self.control.get_mut(), "{order}").unwrap();
        let mut answer = String::new();
        assert!(self.control.read_line(&mut answer).unwrap() > 0, "the client died of {order:?}");
        answer.trim_end().to_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: libc::c_int) {
        // SAFETY: a signal to our own child, which is not reaped yet.
        let sent = unsafe { libc::kill(self.pid().cast_signed(), signal) };
        assert_eq!(sent, 0);
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for what has become of the connection.
    pub(crate) fn until_news(&mut self, wanted: &str) {
        let began = Instant::now();
        loop {
            let news = self.ask("news");
            if news == wanted {
                return;
            }
            assert!(began.elapsed() < LONG, "{news}, not {wanted}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The machine's page frames behind a region, which are looked at first. 0 without the right to know.
    pub(crate) fn frames(&mut self, region: u64, pages: u64) -> Vec<u64> {
        self.ask(&format!("wrong {region} 0 0"));
        let start: u64 = self.ask(&format!("where {region}")).parse().unwrap();
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid())).unwrap();
        let entry = |page: u64| {
            let mut entry = [0; 8];
            let at = (start / PAGE_SIZE as u64 + page) * 8;
            pagemap.read_exact_at(&mut entry, at).unwrap();
            u64::from_ne_bytes(entry)
        };
        (0..pages).map(|page| entry(page) & ((1 << 55) - 1)).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for something that has to come about.
pub(crate) fn until(holds: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LONG, "{}", otherwise());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A page with this content all over; 0 is a page of zeros.
pub(crate) fn page_of(content: u64) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    if content != 0 {
        for (n, word) in page.chunks_exact_mut(8).enumerate() {
            let mixed = content.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ n as u64;
            word.copy_from_slice(&mixed.to_ne_bytes());
        }
    }
    page
}
