//! The client: as much of an agent as a test needs, told what to do line by line.

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use numerge_engine::Kpfn;
use numerge_engine::machine::{Memory, Outcome, PAGE_SIZE, Run, Target, Vpn};
use numerge_linux::{FrameView, ProcessMemory};
use numerge_protocol::limits::VERSION;
use numerge_protocol::{
    self as protocol, Answer, Buffer, Errno, OutcomeRun, RegionId, Scope, Sequence, Socket, Span,
    ToClient, ToEngine, Unmerged,
};

use crate::bed::{CONTROL, page_of};
use crate::{deaf, liar};

/// What the agent answers when it is asked to merge.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest,
    /// Carries it out, and says so when told to.
    Slow,
    /// The same when it is asked to unmerge.
    SlowToUnmerge,
    /// Says that it can't unmerge for want of memory, later than anybody waits for it.
    LateWithoutMemory,
    /// Says something about fewer pages.
    Short,
    /// Says something about more pages.
    Long,
    /// Answers a question that was not asked.
    Unasked,
    /// Answers twice.
    Twice,
    /// Gives the answer to something else.
    OtherKind,
    /// Says that all is merged, and merges nothing.
    Pretend,
    /// Says that the question can't be carried out.
    Refuse,
    /// The same, and what it was asked about counts as written to, as what an agent has put back does.
    PutBack,
    /// Carries it out, and writes to what was merged at once.
    Restless,
}

struct Agent {
    memory: ProcessMemory,
    view: Arc<FrameView>,
    socket: Socket,
    /// Held while anything is done to memory, and over what is said of it.
    state: Mutex<State>,
}

struct State {
    manner: Manner,
    /// What has become of the connection.
    news: String,
    kept_back: Vec<(Sequence, Answer<'static>)>,
    /// Pages that it was asked to unmerge.
    unmerged: u64,
    /// How often it was asked to merge.
    asked: u64,
    /// Device and inode of each file of frames that it was given.
    files: Vec<String>,
}

fn range(span: Span) -> Range<Vpn> {
    Vpn(span.start.0)..Vpn(span.start.0 + span.pages)
}

fn to_protocol(outcome: Outcome) -> protocol::Outcome {
    match outcome {
        Outcome::Merged => protocol::Outcome::Merged,
        Outcome::Differs => protocol::Outcome::Differs,
        Outcome::Pinned | Outcome::Late | Outcome::Deferred => protocol::Outcome::Pinned,
        Outcome::Refused => protocol::Outcome::Refused,
        Outcome::Gone => protocol::Outcome::Gone,
        Outcome::Exhausted => protocol::Outcome::Exhausted,
    }
}

impl Agent {
    fn say(&self, message: &ToEngine<'_>) {
        // The engine may have hung up: that is in the news.
        let _ = self.socket.send(message, &[]);
    }

    fn done(&self, sequence: Sequence, answer: Answer<'_>) {
        self.say(&ToEngine::Done { sequence, answer });
    }

    /// Does as it is asked until the connection ends.
    fn serve(&self) {
        let mut buffer = Buffer::new();
        let mut ended = "closed".to_owned();
        while let Ok(Some((message, fds))) = self.socket.receive::<ToClient<'_>>(&mut buffer) {
            match message {
                ToClient::Rejected { reason, .. } => ended = format!("rejected {reason:?}"),
                ToClient::Leave { keep } => {
                    ended = format!("left {keep}");
                    if !keep {
                        self.leave();
                    }
                    self.say(&ToEngine::Bye);
                    break;
                }
                other => self.carry_out(&other, fds),
            }
        }
        self.state.lock().unwrap().news = ended;
    }

    /// Gives all memory back.
    fn leave(&self) {
        let regions = REGIONS.lock().unwrap().clone();
        let _state = self.state.lock().unwrap();
        for (start, pages) in regions {
            self.memory.unregister(vpns(start, 0..pages)).unwrap();
        }
    }

    fn carry_out(&self, message: &ToClient<'_>, fds: Vec<OwnedFd>) {
        let mut state = self.state.lock().unwrap();
        match message {
            ToClient::Frames { file, .. } => {
                let fd = fds.into_iter().next().unwrap();
                let stat = rustix::fs::fstat(&fd).unwrap();
                state.files.push(format!("{}:{}", stat.st_dev, stat.st_ino));
                self.view.add(u64::from(*file), fd).unwrap();
            }
            ToClient::Merge { sequence, runs } => self.merge(&mut state, *sequence, runs),
            ToClient::Unmerge { sequence, ranges } => {
                if state.manner == Manner::LateWithoutMemory {
                    std::thread::sleep(Duration::from_millis(50));
                    return self.done(*sequence, Answer::Unmerged(Unmerged::OutOfMemory));
                }
                let ranges: Vec<_> = ranges.iter().map(|span| range(*span)).collect();
                let result = match self.memory.unmerge(&ranges) {
                    Ok(()) => Unmerged::Done,
                    Err(_) => Unmerged::OutOfMemory,
                };
                state.unmerged +=
                    ranges.iter().map(|range| range.end.0 - range.start.0).sum::<u64>();
                let answer = Answer::Unmerged(result);
                if state.manner == Manner::SlowToUnmerge {
                    state.kept_back.push((*sequence, answer));
                } else {
                    self.done(*sequence, answer);
                }
            }
            ToClient::Mappings { sequence } => {
                self.done(*sequence, Answer::Mappings { used: 100, limit: 65530 });
            }
            ToClient::Unregistered { region, error } => {
                state.news = format!("unregistered {} {error:?}", region.0);
            }
            other => state.news = format!("unexpected {other:?}"),
        }
    }

    fn merge(&self, state: &mut State, sequence: Sequence, runs: &[protocol::Run]) {
        let pages: u32 = runs.iter().map(|run| u32::try_from(run.span.pages).unwrap()).sum();
        state.asked += 1;
        let all = |pages| vec![OutcomeRun { outcome: protocol::Outcome::Merged, pages }];
        match state.manner {
            Manner::Honest
            | Manner::Slow
            | Manner::SlowToUnmerge
            | Manner::LateWithoutMemory
            | Manner::Restless => {}
            Manner::Short => return self.done(sequence, merged(all(pages + 1))),
            Manner::Long => return self.done(sequence, merged(all((pages - 1).max(1) + 5))),
            Manner::Unasked => return self.done(Sequence(sequence.0 + 1000), merged(all(pages))),
            Manner::OtherKind => {
                return self.done(sequence, Answer::Mappings { used: 1, limit: 1 });
            }
            Manner::Pretend => return self.done(sequence, merged(all(pages))),
            Manner::PutBack => {
                runs.iter().for_each(rewrite);
                return self.done(sequence, Answer::Refused(Errno(5)));
            }
            Manner::Refuse => return self.done(sequence, Answer::Refused(Errno(5))),
            Manner::Twice => self.done(sequence, merged(all(pages))),
        }
        let (mut outcomes, mut told) = (Vec::new(), Vec::new());
        self.memory.merge(&runs.iter().map(to_run).collect::<Vec<_>>(), &mut outcomes);
        if state.manner == Manner::Restless {
            runs.iter().for_each(rewrite);
        }
        outcomes.into_iter().for_each(|outcome| OutcomeRun::push(&mut told, to_protocol(outcome)));
        if state.manner == Manner::Slow {
            state.kept_back.push((sequence, merged(told)));
        } else {
            self.done(sequence, merged(told));
        }
    }
}

fn merged(outcomes: Vec<OutcomeRun>) -> Answer<'static> {
    Answer::Merged(outcomes.into())
}

fn to_run(run: &protocol::Run) -> Run {
    let target = match run.target {
        protocol::Target::Frames(first) => Target::Frames(Kpfn(first.0)),
        protocol::Target::Zero => Target::Zero,
    };
    Run { pages: range(run.span), target }
}

/// Regions by their numbers: address and pages.
static REGIONS: Mutex<Vec<(usize, u64)>> = Mutex::new(Vec::new());

fn region(number: &str) -> (usize, u64) {
    REGIONS.lock().unwrap()[number.parse::<usize>().unwrap()]
}

fn vpns(start: usize, pages: Range<u64>) -> Range<Vpn> {
    let first = Vpn((start / PAGE_SIZE) as u64);
    first.plus(pages.start)..first.plus(pages.end)
}

fn span(pages: &Range<Vpn>) -> Span {
    Span { start: protocol::Vpn(pages.start.0), pages: pages.end.0 - pages.start.0 }
}

fn map(at: usize, pages: u64) -> usize {
    let fixed = if at == 0 { 0 } else { libc::MAP_FIXED };
    let bytes = usize::try_from(pages).unwrap() * PAGE_SIZE;
    // SAFETY: a new mapping, or one over what this process has unmapped or uses no more.
    let start = unsafe {
        libc::mmap(
            std::ptr::with_exposed_provenance_mut(at),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed,
            -1,
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    // SAFETY: advice on the mapping just made.
    unsafe { libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE) };
    start.expose_provenance()
}

fn unmap(start: usize, pages: u64) {
    let bytes = usize::try_from(pages).unwrap() * PAGE_SIZE;
    // SAFETY: a mapping that this process made and uses no more.
    unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(start), bytes) };
}

fn from_hex(text: &str) -> Vec<u8> {
    let bytes = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
    bytes.map(Result::unwrap).collect()
}

fn page_pointer(start: usize, page: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(start + usize::try_from(page).unwrap() * PAGE_SIZE)
}

fn write(start: usize, page: u64, content: u64) {
    let content = page_of(content);
    // SAFETY: a page of a region of this process, to which no reference exists.
    unsafe {
        std::ptr::copy_nonoverlapping(content.as_ptr(), page_pointer(start, page), PAGE_SIZE);
    }
}

/// Writes to pages what is there.
fn rewrite(run: &protocol::Run) {
    let start = usize::try_from(run.span.start.0).unwrap() * PAGE_SIZE;
    for page in 0..run.span.pages {
        let first = page_pointer(start, page);
        // SAFETY: a byte of a region of this process, to which no reference exists.
        unsafe { first.write_volatile(first.read_volatile()) };
    }
}

fn has(start: usize, page: u64, content: u64) -> bool {
    let mut found = [0; PAGE_SIZE];
    // SAFETY: as above.
    unsafe {
        std::ptr::copy_nonoverlapping(page_pointer(start, page), found.as_mut_ptr(), PAGE_SIZE);
    }
    found == page_of(content)
}

/// Runs `child` in a forked process and gives its number.
fn fork(child: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child touches memory of this thread and the regions, makes system calls, and ends
    // without running anything of its parent's.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: asks to be ended when the forking thread is, so that no test leaves it behind.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            child();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        pid => pid,
    }
}

/// The client's life. Does nothing unless executed by a test.
#[test]
fn client_process() {
    let Some(control) = std::env::var_os(CONTROL) else { return };
    let mut control = BufReader::new(UnixStream::connect(PathBuf::from(control)).unwrap());
    let mut agent: Option<Arc<Agent>> = None;
    let mut line = String::new();
    loop {
        line.clear();
        if control.read_line(&mut line).unwrap() == 0 {
            std::process::exit(0);
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[0] {
            // connect SOCKET DOMAIN PAGEMAP USER, of which the last three may be left out.
            "connect" => {
                let word = |at: usize| words.get(at).copied();
                let user = word(4).map(|user| user.parse().unwrap());
                match connect(Path::new(words[1]), word(2), word(3), user) {
                    Ok(connected) => {
                        agent = Some(connected);
                        "welcome".into()
                    }
                    Err(why) => why,
                }
            }
            // lie SOCKET WELCOME BYTES, in hexadecimal.
            "lie" => liar::lie(Path::new(words[1]), words[2] == "true", &from_hex(words[3])),
            "deaf-files" => deaf::serve(Path::new(words[1])),
            // babble SOCKET PAGES FIRST STEP SEED COUNT: with memory as "map" makes it.
            "babble" => {
                let number = |at: usize| words[at].parse::<u64>().unwrap();
                let (start, pages) = (map(0, number(2)), number(2));
                (0..pages).for_each(|page| write(start, page, number(3) + page * number(4)));
                let memory = (vpns(start, 0..1).start.0, pages);
                let said = liar::babble(Path::new(words[1]), memory, number(5), number(6));
                (0..pages).for_each(|page| assert!(has(start, page, number(3) + page * number(4))));
                unmap(start, pages);
                said.to_string()
            }
            _ => agent.as_ref().unwrap().obey(&words),
        };
        writeln!(control.get_mut(), "{answer}").unwrap();
    }
}

/// Becomes another user for good, in all threads, whom its files in /proc belong to.
fn become_user(user: u32) {
    // SAFETY: changes this process's user and nothing in memory.
    let done = unsafe {
        libc::setresuid(user, user, user) == 0 && libc::prctl(libc::PR_SET_DUMPABLE, 1) == 0
    };
    assert!(done, "{}", std::io::Error::last_os_error());
}

fn connect(
    path: &Path,
    domain: Option<&str>,
    pagemap: Option<&str>,
    user: Option<u32>,
) -> Result<Arc<Agent>, String> {
    // Before it is somebody who may not track what is written to.
    let view = Arc::new(FrameView::default());
    let memory = ProcessMemory::new(view.clone()).unwrap();
    user.into_iter().for_each(become_user);
    let socket = Socket::connect(path).unwrap();
    let hello = ToEngine::Hello {
        version: VERSION,
        page_size: 4096,
        scope: Scope::Api,
        domain: domain.filter(|domain| *domain != "-").map(Into::into),
    };
    let pagemap = std::fs::File::open(pagemap.unwrap_or("/proc/self/pagemap")).unwrap();
    // Whoever has too many clients says so at once, and hangs up.
    let _ = socket.send(&hello, &[pagemap.as_fd()]);
    match socket.receive::<ToClient<'_>>(&mut Buffer::new()) {
        Ok(Some((ToClient::Welcome { .. }, _))) => {}
        Ok(Some((ToClient::Rejected { reason, .. }, _))) => return Err(format!("{reason:?}")),
        other => return Err(format!("{other:?}")),
    }
    let state = State {
        manner: Manner::Honest,
        news: "connected".into(),
        kept_back: Vec::new(),
        unmerged: 0,
        asked: 0,
        files: Vec::new(),
    };
    let agent = Arc::new(Agent { memory, view, socket, state: Mutex::new(state) });
    let serving = Arc::clone(&agent);
    std::thread::spawn(move || serving.serve());
    Ok(agent)
}

impl Agent {
    fn obey(&self, words: &[&str]) -> String {
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match words[0] {
            // map PAGES FIRST STEP: page n has the content FIRST + n * STEP.
            "map" => {
                let start = map(0, number(1));
                (0..number(1)).for_each(|page| write(start, page, number(2) + page * number(3)));
                let mut regions = REGIONS.lock().unwrap();
                regions.push((start, number(1)));
                (regions.len() - 1).to_string()
            }
            "register" => {
                let (start, pages) = region(words[1]);
                let _state = self.state.lock().unwrap();
                let pages = vpns(start, 0..pages);
                self.memory.register(pages.clone()).unwrap();
                let region = RegionId(number(1));
                self.say(&ToEngine::Register { region, span: span(&pages) });
                "ok".into()
            }
            // replace REGION FROM TO CONTENT NUMBER: unmaps pages, maps others there, registers them.
            "replace" => {
                let (start, _) = region(words[1]);
                let pages = vpns(start, number(2)..number(3));
                let _state = self.state.lock().unwrap();
                self.memory.unregister(pages.clone()).unwrap();
                let at = start + usize::try_from(number(2)).unwrap() * PAGE_SIZE;
                map(at, number(3) - number(2));
                self.say(&ToEngine::Gone { span: span(&pages) });
                (number(2)..number(3)).for_each(|page| write(start, page, number(4)));
                self.memory.register(pages.clone()).unwrap();
                let region = RegionId(number(5));
                self.say(&ToEngine::Register { region, span: span(&pages) });
                "ok".into()
            }
            "unregister" => {
                self.say(&ToEngine::Unregister { region: RegionId(number(1)) });
                "ok".into()
            }
            "say-register" => {
                let span = Span { start: protocol::Vpn(number(2)), pages: number(3) };
                self.say(&ToEngine::Register { region: RegionId(number(1)), span });
                "ok".into()
            }
            "say-gone" => {
                let span = Span { start: protocol::Vpn(number(1)), pages: number(2) };
                self.say(&ToEngine::Gone { span });
                "ok".into()
            }
            "write" => {
                write(region(words[1]).0, number(2), number(3));
                "ok".into()
            }
            // wrong REGION FIRST STEP: how many pages do not have the content they had at first.
            "wrong" => {
                let (start, pages) = region(words[1]);
                let is_wrong = |page: &u64| !has(start, *page, number(2) + page * number(3));
                (0..pages).filter(is_wrong).count().to_string()
            }
            "is" => has(region(words[1]).0, number(2), number(3)).to_string(),
            "where" => region(words[1]).0.to_string(),
            "cover" => {
                let (start, pages) = region(words[1]);
                deaf::cover(&std::fs::File::open(words[2]).unwrap(), start, pages);
                "ok".into()
            }
            "hold-mappings" => {
                deaf::hold_mappings(words[1]);
                "ok".into()
            }
            // fork REGION FIRST STEP: a child that looks at its memory again and again until it is
            // killed, or ends if it changed.
            "fork" => {
                let (start, pages) = region(words[1]);
                let (first, step) = (number(2), number(3));
                fork(|| while (0..pages).all(|page| has(start, page, first + page * step)) {})
                    .to_string()
            }
            // A child that outlives its parent, and has all that was open.
            "fork-orphan" => fork(|| {
                // SAFETY: ends when it is killed, or after more time than any test takes.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, 0);
                    libc::alarm(100);
                    libc::pause();
                }
            })
            .to_string(),
            // As "fork", and its memory is what it is now.
            "fork-as-is" => {
                let (start, pages) = region(words[1]);
                let bytes = usize::try_from(pages).unwrap() * PAGE_SIZE;
                let mut before = vec![0_u8; bytes];
                let from = page_pointer(start, 0);
                // SAFETY: a region of this process, to which no reference exists.
                unsafe { std::ptr::copy_nonoverlapping(from, before.as_mut_ptr(), bytes) };
                fork(|| {
                    let is_same = || {
                        // SAFETY: both have as many bytes, and the child has no other thread.
                        unsafe { libc::memcmp(from.cast(), before.as_ptr().cast(), bytes) == 0 }
                    };
                    while is_same() {
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                })
                .to_string()
            }
            "reap" => {
                let pid = words[1].parse().unwrap();
                let mut status = 0;
                // SAFETY: ends and reaps a child of this process.
                unsafe {
                    libc::kill(pid, libc::SIGKILL);
                    libc::waitpid(pid, &raw mut status, 0);
                }
                (libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL).to_string()
            }
            "manner" => {
                self.state.lock().unwrap().manner = match words[1] {
                    "honest" => Manner::Honest,
                    "slow" => Manner::Slow,
                    "slow-to-unmerge" => Manner::SlowToUnmerge,
                    "late-without-memory" => Manner::LateWithoutMemory,
                    "short" => Manner::Short,
                    "long" => Manner::Long,
                    "unasked" => Manner::Unasked,
                    "twice" => Manner::Twice,
                    "other-kind" => Manner::OtherKind,
                    "pretend" => Manner::Pretend,
                    "refuse" => Manner::Refuse,
                    "put-back" => Manner::PutBack,
                    "restless" => Manner::Restless,
                    other => panic!("{other}"),
                };
                "ok".into()
            }
            "unmerged" => self.state.lock().unwrap().unmerged.to_string(),
            "files" => self.state.lock().unwrap().files.join(" "),
            "asked" => self.state.lock().unwrap().asked.to_string(),
            "kept-back" => self.state.lock().unwrap().kept_back.len().to_string(),
            "answer" => {
                let mut state = self.state.lock().unwrap();
                for (sequence, answer) in std::mem::take(&mut state.kept_back) {
                    self.done(sequence, answer);
                }
                "ok".into()
            }
            "news" => self.state.lock().unwrap().news.clone(),
            "bye" => {
                self.leave();
                self.say(&ToEngine::Bye);
                "ok".into()
            }
            // Ends, and keeps all mapped as it is.
            "bye-as-is" => {
                self.say(&ToEngine::Bye);
                "ok".into()
            }
            // A region is gone, it says, and keeps it mapped as it is.
            "gone-as-is" => {
                let (start, pages) = region(words[1]);
                self.say(&ToEngine::Gone { span: span(&vpns(start, 0..pages)) });
                "ok".into()
            }
            // Maps pages of the first file of frames that nobody asked it to, to be read; gives the
            // region's number.
            "map-frames" => {
                let pages = number(1);
                let fds = std::fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap().path());
                let is_frames = |fd: &PathBuf| {
                    let file = std::fs::read_link(fd).unwrap_or_default();
                    file.to_string_lossy().contains("numerge-frames")
                };
                let fd = fds.into_iter().find(is_frames).unwrap();
                let fd: libc::c_int = fd.file_name().unwrap().to_str().unwrap().parse().unwrap();
                let bytes = usize::try_from(pages).unwrap() * PAGE_SIZE;
                // SAFETY: a new mapping of a file.
                let start = unsafe {
                    let (read, private) = (libc::PROT_READ, libc::MAP_PRIVATE);
                    libc::mmap(std::ptr::null_mut(), bytes, read, private, fd, 0)
                };
                assert_ne!(start, libc::MAP_FAILED);
                let mut regions = REGIONS.lock().unwrap();
                regions.push((start.expose_provenance(), pages));
                (regions.len() - 1).to_string()
            }
            "hang-up" => {
                rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both).unwrap();
                "ok".into()
            }
            "hello" => {
                let (version, page_size, scope) = (VERSION, 4096, Scope::Api);
                let hello = ToEngine::Hello { version, page_size, scope, domain: None };
                let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
                self.socket.send(&hello, &[pagemap.as_fd()]).unwrap();
                "ok".into()
            }
            other => panic!("{other}"),
        }
    }
}
