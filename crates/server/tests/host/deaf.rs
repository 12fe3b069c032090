//! A file system that never answers who reads its file, and what a client can do with that to who looks at its
//! memory: nothing but to lose what it registered.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request, Session, SessionACL,
};
use numerge_engine::machine::PAGE_SIZE;
use tempfile::TempDir;

use crate::bed::{Bed, Client, until};

const PAGES: u64 = 50;
/// How long a question may take that waits for nobody.
const PROMPT: Duration = Duration::from_secs(1);
/// When a client that wants to has its mappings locked, and somebody else to wait for them.
const HELD_AFTER: Duration = Duration::from_millis(300);
/// How long the server's end may take, however many clients there are that do not leave.
const END: Duration = Duration::from_secs(60);
/// How long a test waits for the file before it is told that nothing is there: then it fails.
const TEST: Duration = Duration::from_secs(100);

/// The file system: a directory with one file, of whatever name.
#[derive(Default)]
struct Deaf {
    /// Who reads, and waits.
    unanswered: Mutex<Vec<ReplyData>>,
}

fn attributes(ino: INodeNo) -> FileAttr {
    let (kind, perm) = match ino {
        INodeNo::ROOT => (FileType::Directory, 0o755),
        _ => (FileType::RegularFile, 0o644),
    };
    FileAttr {
        ino,
        size: PAGES * PAGE_SIZE as u64,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Deaf {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.entry(&END, &attributes(INodeNo(2)), Generation(0));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&END, &attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // Who maps it past the page cache waits until no page of it is being read.
        let is_direct = flags.0 & libc::O_NONBLOCK != 0;
        let mode = if is_direct { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() };
        reply.opened(FileHandle(0), mode);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.unanswered.lock().unwrap().push(reply);
    }
}

/// In a process of its own, with whose end all waiting does: mounts the file system and serves it.
pub(crate) fn serve(path: &Path) -> String {
    let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
        return "no /dev/fuse".into();
    };
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let text = |text: &str| CString::new(text).unwrap();
    let (name, kind, options) = (text("deaf"), text("fuse"), text(&options));
    let place = text(path.to_str().unwrap());
    let data = options.as_ptr().cast();
    // SAFETY: all five are strings that live over the call.
    let mounted = unsafe { libc::mount(name.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, data) };
    if mounted != 0 {
        return std::io::Error::last_os_error().to_string();
    }
    let session =
        Session::from_fd(Deaf::default(), device.into(), SessionACL::All, fuser::Config::default());
    std::mem::forget(session.and_then(Session::spawn).unwrap());
    "ok".into()
}

/// Puts the file over pages, as a client does that says nothing of it; 0: where there is room.
pub(crate) fn cover(file: &File, start: usize, pages: u64) -> usize {
    let bytes = usize::try_from(pages).unwrap() * PAGE_SIZE;
    let at = std::ptr::with_exposed_provenance_mut(start);
    let fixed = if start == 0 { 0 } else { libc::MAP_FIXED };
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | fixed);
    // SAFETY: a new mapping, or one over what this process uses no more.
    let covered = unsafe { libc::mmap(at, bytes, access, flags, file.as_raw_fd(), 0) };
    assert_ne!(covered, libc::MAP_FAILED);
    covered.expose_provenance()
}

/// Takes the lock on this process's own mappings, soon and for ever: somebody reads the file, which does not
/// answer, and then somebody puts it in the place of a mapping in a way that waits for the reader.
pub(crate) fn hold_mappings(file: &str) {
    // All is there before: a new thread changes mappings, too.
    let direct = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(file).unwrap();
    let file = File::open(file).unwrap();
    let replaced = cover(&file, 0, 1);
    let reader = move || {
        std::thread::sleep(HELD_AFTER);
        file.read_at(&mut [0], 0)
    };
    let writer = move || {
        std::thread::sleep(2 * HELD_AFTER);
        cover(&direct, replaced, 1)
    };
    std::thread::spawn(reader);
    std::thread::spawn(writer);
}

/// The file system mounted, and the process that serves it, which ends when this is dropped.
struct Mount {
    server: Client,
    place: TempDir,
    /// Ends the server if this is not dropped in time.
    watch: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Mount {
    /// None, with the reason printed, if this user may not mount.
    fn new(bed: &Bed) -> Option<Self> {
        let (mut server, place) = (bed.process(), tempfile::tempdir().unwrap());
        let answer = server.ask(&format!("deaf-files {}", place.path().display()));
        if answer != "ok" {
            println!("SKIPPED: no file system can be mounted: {answer}");
            return None;
        }
        let (in_time, over) = channel();
        let pid = server.pid().cast_signed();
        let watch = std::thread::spawn(move || {
            if over.recv_timeout(TEST) == Err(RecvTimeoutError::Timeout) {
                // SAFETY: a signal to a child, which is not reaped before this thread has ended.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        });
        Some(Self { server, place, watch: Some((in_time, watch)) })
    }

    fn file(&self) -> PathBuf {
        self.place.path().join("file")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some((in_time, watch)) = self.watch.take() {
            drop(in_time);
            let _ = watch.join();
        }
        self.server.kill();
        let place = CString::new(self.place.path().to_str().unwrap()).unwrap();
        // SAFETY: a string that lives over the call.
        unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH) };
    }
}

/// What operators ask, answered at once.
fn answers_promptly(bed: &Bed) {
    let began = Instant::now();
    let clients = bed.server.clients().len();
    let counters = bed.server.counters();
    let waiting = bed.server.waiting_frames();
    let took = began.elapsed();
    assert!(took < PROMPT, "{took:?}: {clients} clients, {waiting} waiting, {counters:?}");
}

/// Ends the server in a thread, so that a test in which it does not end, ends.
fn ends(bed: Bed) {
    let ending = std::thread::spawn(|| bed.into_dir(|server| _ = server.shut_down(true)));
    let began = Instant::now();
    while !ending.is_finished() {
        assert!(began.elapsed() < END, "the server does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    ending.join().unwrap();
}

#[test]
fn s6_a_file_that_never_answers_in_the_place_of_pages_keeps_nobody_waiting() {
    let Some(bed) = Bed::new() else { return };
    let mut hostile = bed.client();
    // Gone before the client: what waits for it does not end sooner.
    let Some(mount) = Mount::new(&bed) else { return };
    hostile.ask(&format!("map {PAGES} 1 1"));
    hostile.ask("manner refuse");
    hostile.ask("register 0");
    let mut first = bed.client_with(PAGES, 1, 1);
    let asked = |hostile: &mut Client| hostile.ask("asked").parse::<u64>().unwrap();
    let began = Instant::now();
    while asked(&mut hostile) == 0 {
        assert!(began.elapsed() < END, "never asked to merge");
        std::thread::sleep(Duration::from_millis(5));
    }
    let held = || bed.server.counters().pages_held;
    until(|| held() == PAGES, || format!("{} pages held, not {PAGES}", held()));
    hostile.ask(&format!("cover 0 {}", mount.file().display()));
    let mut second = bed.client_with(PAGES, 1, 1);
    bed.until_merged(PAGES, PAGES);
    // Until what is held was tried again, more than once.
    let scans = bed.server.counters().full_scans;
    until(
        || bed.server.counters().full_scans >= scans + 20,
        || format!("{} full scans, {scans} before", bed.server.counters().full_scans),
    );
    assert_eq!(held(), 0, "what is not there any more was not looked at again");
    answers_promptly(&bed);
    let mut third = bed.client_with(PAGES, 1, 1);
    bed.until_merged(PAGES, 2 * PAGES);
    for client in [&mut first, &mut second, &mut third] {
        assert_eq!(client.ask("wrong 0 1 1"), "0");
    }
    ends(bed);
}

/// Not those of its own domain, and nobody who asks.
#[test]
fn s6_a_client_whose_mappings_can_not_be_looked_at_stalls_nobody() {
    let Some(bed) = Bed::new() else { return };
    let mut hostile = bed.client_with(PAGES, 1, 1);
    let Some(mount) = Mount::new(&bed) else { return };
    until(|| bed.server.counters().pages_volatile == 0, || "not looked at".into());
    hostile.ask(&format!("hold-mappings {}", mount.file().display()));
    std::thread::sleep(4 * HELD_AFTER);
    answers_promptly(&bed);
    let mut others = [(); 2].map(|()| bed.client_with(PAGES, 1, 1));
    bed.until_merged(PAGES, PAGES);
    let scans = bed.server.counters().full_scans;
    until(
        || bed.server.counters().full_scans >= scans + 20,
        || format!("{} full scans, {scans} before", bed.server.counters().full_scans),
    );
    for client in &mut others {
        assert_eq!(client.ask("wrong 0 1 1"), "0");
    }
    answers_promptly(&bed);
    // Who maps their frames is looked for, which the end waits for.
    drop(others);
    ends(bed);
}
