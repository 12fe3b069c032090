//! An engine that knows nothing of what is worth merging: each page of its clients that it can read it
//! has merged, again and again.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use numerge_engine::Kpfn;
use numerge_engine::machine::{Frames, PAGE_SIZE, Vpn};
use numerge_linux::{FramePools, Ranges};
use numerge_protocol::limits::{FILE_PAGES, VERSION};
use numerge_protocol::{
    self as protocol, Answer, Buffer, Limits, Listener, Outcome, OutcomeRun, ReceiveError,
    RegionError, Run, SendError, Sequence, Socket, Span, Target, ToClient, ToEngine, Unmerged,
};
use numerge_topology::{Nid, Topology};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Pages of one question.
const QUESTION: usize = 64;

/// The engine. Ends, without a word to its clients, when dropped.
pub struct Engine {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
    directory: tempfile::TempDir,
}

struct Shared {
    pools: Arc<FramePools>,
    nid: Nid,
    by_content: Mutex<HashMap<Vec<u8>, Kpfn>>,
    stop: AtomicBool,
    unmerges: AtomicBool,
    leaves: AtomicU64,
    deaf: AtomicBool,
    counts: Mutex<Counts>,
}

/// What happened.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    pub clients: u64,
    pub registered: u64,
    pub merged: u64,
    pub gone: u64,
    pub unmerged: u64,
    pub byes: u64,
    pub lies: u64,
    /// Most regions that were told of between a question and its answer.
    pub behind: u64,
}

impl Engine {
    pub fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(directory: tempfile::TempDir) -> Self {
        let topology = Arc::new(Topology::discover().unwrap());
        let nid = topology.nodes().iter().find(|node| node.memory_bytes > 0).unwrap().nid;
        let shared = Arc::new(Shared {
            pools: Arc::new(FramePools::new(topology).unwrap()),
            nid,
            by_content: Mutex::default(),
            stop: AtomicBool::new(false),
            unmerges: AtomicBool::new(false),
            leaves: AtomicU64::new(0),
            deaf: AtomicBool::new(false),
            counts: Mutex::default(),
        });
        let listener = Listener::bind(&directory.path().join("socket"), 0o600).unwrap();
        listener.set_nonblocking(true).unwrap();
        let served = Arc::clone(&shared);
        let thread = Some(std::thread::spawn(move || accept(&served, &listener)));
        Self { shared, thread, directory }
    }

    /// Ends this one and begins another at the same place.
    pub fn again(mut self) -> Self {
        self.end();
        let nowhere = tempfile::tempdir().unwrap();
        let directory = std::mem::replace(&mut self.directory, nowhere);
        drop(self);
        Self::at(directory)
    }

    /// From now on it unmerges as often as it merges.
    pub fn unmerge_too(&self) {
        self.shared.unmerges.store(true, Ordering::Relaxed);
    }

    /// Tells all clients to leave, and to keep their memory merged or not.
    pub fn leave(&self, keep: bool) {
        self.shared.leaves.store(1 + u64::from(keep), Ordering::Relaxed);
    }

    /// Once something is merged it asks for nothing more, and when the client says that something is gone it
    /// hears no more, until the client hangs up.
    pub fn become_deaf(&self) {
        self.shared.deaf.store(true, Ordering::Relaxed);
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub fn counts(&self) -> Counts {
        *self.shared.counts.lock().unwrap()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

/// A path where no engine is.
pub fn nobody(directory: &Path) -> PathBuf {
    directory.join("nobody")
}

fn accept(shared: &Arc<Shared>, listener: &Listener) {
    std::thread::scope(|scope| {
        while !shared.stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok(socket) => {
                    scope.spawn(move || Connection::serve(shared, socket));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    });
}

struct Connection<'a> {
    shared: &'a Shared,
    socket: Socket,
    buffer: Buffer,
    pid: i32,
    live: Ranges<u64>,
    spans: BTreeMap<u64, Span>,
    files: Vec<u64>,
    asked: BTreeMap<u64, Vec<Run>>,
    unmerging: BTreeMap<u64, ()>,
    sequence: u64,
    at: Vpn,
    /// Regions told of since something was asked.
    behind: u64,
}

impl<'a> Connection<'a> {
    fn serve(shared: &'a Shared, socket: Socket) {
        let pid = socket.peer().unwrap().pid.unwrap().get();
        socket.set_nonblocking(true).unwrap();
        let mut this = Self {
            shared,
            socket,
            buffer: Buffer::new(),
            pid,
            live: Ranges::new(),
            spans: BTreeMap::new(),
            files: Vec::new(),
            asked: BTreeMap::new(),
            unmerging: BTreeMap::new(),
            sequence: 0,
            at: Vpn(0),
            behind: 0,
        };
        let mut greeted = false;
        while !shared.stop.load(Ordering::Relaxed) {
            match this.socket.receive::<ToEngine<'static>>(&mut this.buffer) {
                Ok(Some((ToEngine::Hello { version, .. }, fds))) => {
                    assert!(!greeted && version == VERSION && fds.len() == 1);
                    greeted = true;
                    this.shared.counts.lock().unwrap().clients += 1;
                    let limits = Limits {
                        regions: 1 << 16,
                        region_pages: 1 << 24,
                        pages: 1 << 30,
                        merge_runs: 1024,
                        merge_pages: 16384,
                    };
                    this.send(&ToClient::Welcome { version: VERSION, limits });
                }
                Ok(Some((message, _))) => {
                    assert!(greeted);
                    if !this.hear(message) {
                        return;
                    }
                }
                Ok(None) => return,
                Err(ReceiveError::WouldBlock) => match shared.leaves.load(Ordering::Relaxed) {
                    0 => this.ask(),
                    keep => {
                        this.send(&ToClient::Leave { keep: keep == 2 });
                        let until = Instant::now() + Duration::from_secs(10);
                        while Instant::now() < until {
                            match this.socket.receive::<ToEngine<'static>>(&mut this.buffer) {
                                Ok(Some((ToEngine::Bye, _))) => {
                                    this.shared.counts.lock().unwrap().byes += 1;
                                    return;
                                }
                                Ok(None) => return,
                                _ => std::thread::sleep(Duration::from_millis(1)),
                            }
                        }
                        return;
                    }
                },
                Err(_) => return,
            }
        }
    }

    fn send(&mut self, message: &ToClient<'_>) -> bool {
        match self.socket.send_with(message, &[], &mut self.buffer) {
            Ok(()) => true,
            Err(SendError::WouldBlock | SendError::Closed) => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn hear(&mut self, message: ToEngine<'static>) -> bool {
        let mut counts = self.shared.counts.lock().unwrap();
        match message {
            ToEngine::Register { region, span } => {
                let pages = pages_of(span);
                // Only what is registered nowhere may be.
                counts.lies += u64::from(self.live.next_in(&pages).is_some());
                counts.registered += span.pages;
                self.behind += u64::from(!self.asked.is_empty());
                counts.behind = counts.behind.max(self.behind);
                self.live.insert(pages, region.0);
                self.spans.insert(region.0, span);
            }
            ToEngine::Gone { span } => {
                counts.gone += span.pages;
                self.live.remove(&pages_of(span));
                drop(counts);
                if self.shared.deaf.swap(false, Ordering::Relaxed) {
                    let mut socket = [PollFd::new(&self.socket, PollFlags::empty())];
                    let most = Timespec { tv_sec: 60, tv_nsec: 0 };
                    rustix::event::poll(&mut socket, Some(&most)).unwrap();
                }
            }
            ToEngine::Unregister { region } => {
                let error = self.spans.remove(&region.0).is_none().then_some(RegionError::Unknown);
                drop(counts);
                self.send(&ToClient::Unregistered { region, error });
            }
            ToEngine::Done { sequence, answer: Answer::Merged(outcomes) } => {
                let asked = self.asked.remove(&sequence.0).expect("asked for");
                let mut each = OutcomeRun::each(&outcomes);
                for run in asked {
                    for page in pages_of(run.span).start.0..pages_of(run.span).end.0 {
                        let outcome = each.next().expect("one for each page");
                        if outcome == Outcome::Merged {
                            counts.merged += 1;
                            // After `Gone` nothing is said to be merged.
                            let is_live = self.live.get(Vpn(page)).is_some();
                            counts.lies += u64::from(!is_live);
                        }
                    }
                }
                assert_eq!(each.next(), None);
            }
            ToEngine::Done { sequence, answer: Answer::Unmerged(result) } => {
                self.unmerging.remove(&sequence.0).expect("asked for");
                assert_eq!(result, Unmerged::Done);
                counts.unmerged += 1;
            }
            ToEngine::Done { sequence, answer: Answer::Refused(_) } => {
                assert!(self.asked.remove(&sequence.0).is_some());
            }
            ToEngine::Bye => {
                counts.byes += 1;
                return false;
            }
            other => panic!("{other:?}"),
        }
        true
    }

    /// Has the next pages merged, or unmerged.
    fn ask(&mut self) {
        let rests = self.shared.deaf.load(Ordering::Relaxed)
            && self.shared.counts.lock().unwrap().merged > 0;
        if rests || !self.asked.is_empty() || !self.unmerging.is_empty() {
            std::thread::sleep(Duration::from_micros(100));
            return;
        }
        let mut spans: Vec<std::ops::Range<Vpn>> = Vec::new();
        let mut room = QUESTION as u64;
        while room > 0
            && let Some((found, _)) = self.live.next_in(&(self.at..Vpn(1 << 36)))
        {
            let end = found.end.min(found.start.plus(room));
            room -= end.0 - found.start.0;
            self.at = end;
            spans.push(found.start..end);
        }
        if spans.is_empty() {
            if self.at == Vpn(0) {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.at = Vpn(0);
            return;
        }
        self.behind = 0;
        let sequence = self.sequence;
        self.sequence += 1;
        if self.shared.unmerges.load(Ordering::Relaxed) && sequence % 7 == 3 {
            let span_of = |pages: &std::ops::Range<Vpn>| Span {
                start: protocol::Vpn(pages.start.0),
                pages: pages.end.0 - pages.start.0,
            };
            let ranges = spans.iter().map(span_of).collect::<Vec<_>>().into();
            if self.send(&ToClient::Unmerge { sequence: Sequence(sequence), ranges }) {
                self.unmerging.insert(sequence, ());
            }
            return;
        }
        let mut runs: Vec<Run> = Vec::new();
        for page in spans.iter().flat_map(|span| span.start.0..span.end.0).map(Vpn) {
            let Some(content) = read(self.pid, page) else { continue };
            let target = if content.iter().all(|byte| *byte == 0) {
                Target::Zero
            } else {
                Target::Frames(protocol::Kpfn(self.frame(&content).0))
            };
            let span = Span { start: protocol::Vpn(page.0), pages: 1 };
            match (runs.last_mut(), target) {
                (
                    Some(Run { span: last, target: Target::Frames(first) }),
                    Target::Frames(frame),
                ) if last.start.0 + last.pages == page.0
                    && first.0 + last.pages == frame.0
                    && first.0 / FILE_PAGES == frame.0 / FILE_PAGES =>
                {
                    last.pages += 1;
                }
                _ => runs.push(Run { span, target }),
            }
        }
        if runs.is_empty() {
            return;
        }
        let message =
            ToClient::Merge { sequence: Sequence(sequence), runs: runs.as_slice().into() };
        if self.send(&message) {
            self.asked.insert(sequence, runs);
        }
    }

    /// The frame with this content, whose file the client has.
    fn frame(&mut self, content: &[u8]) -> Kpfn {
        let frame = {
            let mut by_content = self.shared.by_content.lock().unwrap();
            *by_content.entry(content.to_vec()).or_insert_with(|| {
                let frame = self.shared.pools.allocate(self.shared.nid, 1).unwrap().start;
                self.shared.pools.write(frame, content.try_into().unwrap());
                frame
            })
        };
        let file = frame.0 / FILE_PAGES;
        if !self.files.contains(&file) {
            let fd = self.shared.pools.read_only_file(file).unwrap().unwrap();
            let message =
                ToClient::Frames { file: u32::try_from(file).unwrap(), pages: FILE_PAGES };
            if self.socket.send_with(&message, &[fd.as_fd()], &mut self.buffer).is_ok() {
                self.files.push(file);
            }
        }
        frame
    }
}

fn read(pid: i32, page: Vpn) -> Option<Vec<u8>> {
    let mut content = vec![0; PAGE_SIZE];
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(usize::try_from(page.0).unwrap() * PAGE_SIZE),
        iov_len: PAGE_SIZE,
    };
    let local = libc::iovec { iov_base: content.as_mut_ptr().cast(), iov_len: PAGE_SIZE };
    // SAFETY: reads another process's memory into a vector of that length.
    let got = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    (usize::try_from(got) == Ok(PAGE_SIZE)).then_some(content)
}

fn pages_of(span: Span) -> std::ops::Range<Vpn> {
    Vpn(span.start.0)..Vpn(span.start.0 + span.pages)
}
