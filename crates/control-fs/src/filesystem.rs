//! The file system as `fuser` wants it.
//!
//! What is written, and what is asked of nodes, is done by a thread of its own, so that what takes long
//! holds up nothing else. Counters and knobs never take long.
//!
//! **Inode numbers.** The kernel lets nobody truncate a file, as a shell's `>` does first of all, while
//! a write to it is under way. For a write to `run` that unmerges, that could be long, and it is to be
//! ended just by writing to `run`. So from the beginning of such a write on `run` is a new inode: who
//! opens it then waits for nobody.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use numerge_engine::Knob;

use crate::files::{File, Files, Kind, ROOT};
use crate::handles::{Handles, bytes};
use crate::relay::WRITE_BYTES;
use crate::source::{Source, errno};
use crate::text;
use crate::writes::Writes;

/// The size that all files have, and the most that one write takes in: the kernel's page.
const PAGE: usize = 4096;

/// Threads at one time. What comes then waits for its turn.
const THREADS: usize = 64;

/// How long the kernel may keep what it was told about files, which does not change: each question less is
/// one less to wait for on a busy machine.
const LONG: Duration = Duration::from_secs(3600);
/// And which inode `run` is, which does.
const NEVER: Duration = Duration::ZERO;

pub(crate) struct ControlFilesystem {
    inner: Arc<Inner>,
}

struct Inner {
    source: Arc<dyn Source>,
    writes: Arc<Writes>,
    files: Files,
    handles: Handles,
    threads: AtomicUsize,
    /// How many unmergings have begun.
    unmerged: AtomicU64,
    mounted_at: SystemTime,
    owner: (u32, u32),
}

impl ControlFilesystem {
    /// `owner` is whose the files are, user and group.
    pub(crate) fn new(source: Arc<dyn Source>, writes: Arc<Writes>, owner: (u32, u32)) -> Self {
        let files = Files::new(&source.nids());
        let inner = Inner {
            source,
            writes,
            files,
            handles: Handles::default(),
            threads: AtomicUsize::new(0),
            unmerged: AtomicU64::new(0),
            mounted_at: SystemTime::now(),
            owner,
        };
        Self { inner: Arc::new(inner) }
    }
}

impl Inner {
    fn number(&self, ino: INodeNo) -> usize {
        let all = self.files.len() as u64;
        usize::try_from(ino.0.wrapping_sub(1) % all).unwrap_or(ROOT)
    }

    fn file(&self, ino: INodeNo) -> &File {
        // A remainder is the number of a file.
        self.files.get(self.number(ino)).expect("every inode is a file's")
    }

    fn is_run(&self, number: usize) -> bool {
        self.files.get(number).is_some_and(|file| matches!(file.kind, Kind::Knob(Knob::Run)))
    }

    fn ino(&self, number: usize) -> INodeNo {
        let changed = if self.is_run(number) { self.unmerged.load(Ordering::SeqCst) } else { 0 };
        INodeNo(1 + number as u64 + changed * self.files.len() as u64)
    }

    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let file = self.file(ino);
        let (kind, perm) = match file.kind {
            Kind::Directory(_) => (FileType::Directory, 0o755),
            Kind::Knob(_) => (FileType::RegularFile, 0o644),
            Kind::Counter(_) | Kind::OfNode(..) => (FileType::RegularFile, 0o444),
        };
        let at = self.mounted_at;
        FileAttr {
            ino,
            size: if file.is_directory() { 0 } else { PAGE as u64 },
            blocks: 0,
            atime: at,
            mtime: at,
            ctime: at,
            crtime: at,
            kind,
            perm,
            nlink: if file.is_directory() { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Writes to a file; an error number if it refuses.
    fn write(&self, ino: INodeNo, number: u64, text: &[u8]) -> Result<(), i32> {
        let Kind::Knob(knob) = self.file(ino).kind else { return Err(libc::EACCES) };
        let value = text::parse(knob, text)?;
        if (knob, value) == (Knob::Run, 2) {
            return self.unmerge(number);
        }
        self.source.set(knob, value).map_err(|error| errno(&error))
    }

    /// Whenever a signal ends it, `run` is 0 then.
    fn unmerge(&self, number: u64) -> Result<(), i32> {
        if !self.writes.begin_to_unmerge(number) {
            self.source.set(Knob::Run, 0).map_err(|error| errno(&error))?;
            return Err(libc::EINTR);
        }
        self.unmerged.fetch_add(1, Ordering::SeqCst);
        let unmerged = self.source.set(Knob::Run, 2);
        let is_interrupted = self.writes.end_to_unmerge(number);
        match unmerged.map_err(|error| errno(&error)) {
            // All was done when the signal came, which may have set `run` to 0 already.
            Ok(()) if is_interrupted => {
                self.source.interrupt();
                Err(libc::EINTR)
            }
            Err(libc::ECANCELED) if is_interrupted => Err(libc::EINTR),
            unmerged => unmerged,
        }
    }
}

/// Does something in a thread of its own, or here if there are too many. If no thread can be had, the
/// answer that was not given is EIO.
fn aside(inner: &Arc<Inner>, work: impl FnOnce(&Inner) + Send + 'static) {
    if inner.threads.fetch_add(1, Ordering::SeqCst) >= THREADS {
        work(inner);
        inner.threads.fetch_sub(1, Ordering::SeqCst);
        return;
    }
    let shared = Arc::clone(inner);
    let thread = std::thread::Builder::new().name("control-fs".into()).spawn(move || {
        work(&shared);
        shared.threads.fetch_sub(1, Ordering::SeqCst);
    });
    if thread.is_err() {
        inner.threads.fetch_sub(1, Ordering::SeqCst);
    }
}

fn error(number: i32) -> Errno {
    Errno::from_i32(number)
}

impl Filesystem for ControlFilesystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let refused = |_| io::Error::other("the kernel does not write in pieces of 64 KiB");
        config.set_max_write(WRITE_BYTES).map(drop).map_err(refused)
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let inner = &self.inner;
        let found = name.to_str().and_then(|name| inner.files.find(inner.number(parent), name));
        match found {
            Some(number) => {
                let kept = if inner.is_run(number) { NEVER } else { LONG };
                reply.entry(&kept, &inner.attributes(inner.ino(number)), Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LONG, &self.inner.attributes(ino));
    }

    /// Times and sizes are what they are, and setting them is no error, as for the kernel's files.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if mode.is_some() || uid.is_some() || gid.is_some() {
            reply.error(Errno::EPERM);
        } else {
            reply.attr(&LONG, &self.inner.attributes(ino));
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let inner = &self.inner;
        let is_knob = matches!(inner.file(ino).kind, Kind::Knob(_));
        // Root too: the mode alone would let it.
        if flags.acc_mode() != OpenAccMode::O_RDONLY && !is_knob {
            return reply.error(Errno::EACCES);
        }
        match inner.handles.open() {
            Some(handle) => {
                // Several may write to `run` at a time.
                let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
                reply.opened(FileHandle(handle), flags);
            }
            None => reply.error(Errno::ENFILE),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(begun) = self.inner.handles.begun(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        let answer = move |inner: &Inner| {
            reply.data(&bytes(&begun, offset, size, || inner.file(ino).read(&*inner.source)));
        };
        match self.inner.file(ino).kind {
            Kind::OfNode(..) => aside(&self.inner, answer),
            Kind::Counter(_) | Kind::Knob(_) | Kind::Directory(_) => answer(&self.inner),
        }
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let text = data[..data.len().min(PAGE)].to_vec();
        let number = request.unique().0;
        aside(&self.inner, move |inner| match inner.write(ino, number, &text) {
            Ok(()) => reply.written(u32::try_from(text.len()).unwrap_or(0)),
            Err(number) => reply.error(error(number)),
        });
    }

    /// Says that there is nothing to do for anybody who closes a file, and is not asked again.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::EINVAL);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.inner.handles.close(handle.0);
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let inner = &self.inner;
        let number = inner.number(ino);
        let Some(inside) = inner.files.inside(number) else {
            return reply.error(Errno::ENOTDIR);
        };
        let dots = [(number, "."), (inner.file(ino).parent, "..")];
        let all = dots.into_iter().map(|(number, name)| (number, name.to_owned())).chain(
            inside
                .iter()
                .filter_map(|number| Some((*number, inner.files.get(*number)?.name.clone()))),
        );
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, (number, name)) in (1..).zip(all).skip(skipped) {
            let ino = inner.ino(number);
            let kind = inner.attributes(ino).kind;
            if reply.add(ino, place, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EACCES);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &std::path::Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.size(0);
    }
}
