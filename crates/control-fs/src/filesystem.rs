//! The file system as `fuser` wants it.
//!
//! What is written, and what is asked of nodes, is done by a thread of its own, so that what takes long
//! holds up nothing else. Counters and knobs never take long.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use fuser::{
    Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use numerge_engine::Knob;

use crate::files::Kind;
use crate::handles::{Handles, bytes};
use crate::processes::OfProcess;
use crate::relay::WRITE_BYTES;
use crate::source::{Source, errno};
use crate::text;
use crate::tree::{NEVER, PAGE, Tree};
use crate::turns::Turns;
use crate::writes::Writes;

/// Threads of a kind at one time.
const THREADS: usize = 64;

pub(crate) struct ControlFilesystem {
    inner: Arc<Inner>,
}

struct Inner {
    tree: Tree,
    writes: Arc<Writes>,
    handles: Handles,
    turns: Arc<Turns>,
    /// Threads at work for readers, and for writers: whoever floods the one is none of the others.
    readers: AtomicUsize,
    writers: AtomicUsize,
}

impl ControlFilesystem {
    /// `owner` is whose the files are, user and group.
    pub(crate) fn new(
        source: Arc<dyn Source>,
        writes: Arc<Writes>,
        turns: Arc<Turns>,
        owner: (u32, u32),
    ) -> Self {
        let inner = Inner {
            tree: Tree::new(source, owner),
            writes,
            handles: Handles::default(),
            turns,
            readers: AtomicUsize::new(0),
            writers: AtomicUsize::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// For the thread that is asked, with each request.
    fn inner(&self) -> &Arc<Inner> {
        self.inner.turns.follow();
        &self.inner
    }
}

impl Inner {
    /// Writes to a file; an error number if it refuses.
    fn write(&self, ino: INodeNo, number: u64, text: &[u8]) -> Result<(), i32> {
        let knob = self.tree.knob(ino).ok_or(libc::EACCES)?;
        let value = text::parse(knob, text)?;
        if (knob, value) == (Knob::Run, 2) {
            return self.unmerge(number);
        }
        self.tree.source.set(knob, value).map_err(|error| errno(&error))
    }

    /// Whenever a signal ends it, `run` is 0 then.
    fn unmerge(&self, number: u64) -> Result<(), i32> {
        if !self.writes.begin_to_unmerge(number) {
            self.tree.source.set(Knob::Run, 0).map_err(|error| errno(&error))?;
            return Err(libc::EINTR);
        }
        self.tree.begin_to_unmerge();
        let unmerging = self.turns.unmerging();
        // Nobody waits for this thread but the writer, and all others' answers come before it.
        numerge_topology::take_ordinary_turns();
        let unmerged = self.tree.source.set(Knob::Run, 2);
        drop(unmerging);
        let is_interrupted = self.writes.end_to_unmerge(number);
        match unmerged.map_err(|error| errno(&error)) {
            // All was done when the signal came, which may have set `run` to 0 already.
            Ok(()) if is_interrupted => {
                self.tree.source.interrupt();
                Err(libc::EINTR)
            }
            Err(libc::ECANCELED) if is_interrupted => Err(libc::EINTR),
            unmerged => unmerged,
        }
    }
}

/// Does something in a thread of its own. If no thread can be had, or there are too many of its kind, the answer
/// that was not given is EIO: here nothing may take long, for no other file would answer meanwhile.
fn aside(
    inner: &Arc<Inner>,
    threads: fn(&Inner) -> &AtomicUsize,
    work: impl FnOnce(&Inner) + Send + 'static,
) {
    if threads(inner).fetch_add(1, Ordering::SeqCst) >= THREADS {
        threads(inner).fetch_sub(1, Ordering::SeqCst);
        return;
    }
    let shared = Arc::clone(inner);
    let thread = std::thread::Builder::new().name("control-fs".into()).spawn(move || {
        work(&shared);
        threads(&shared).fetch_sub(1, Ordering::SeqCst);
    });
    if thread.is_err() {
        threads(inner).fetch_sub(1, Ordering::SeqCst);
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
        let inner = self.inner();
        let found = name.to_str().and_then(|name| inner.tree.find(parent, name));
        match found.and_then(|ino| inner.tree.attributes(ino).ok()) {
            Some((kept, attributes)) => {
                let is_run = inner.tree.knob(attributes.ino) == Some(Knob::Run);
                reply.entry(&if is_run { NEVER } else { kept }, &attributes, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.inner().tree.attributes(ino) {
            Ok((kept, attributes)) => reply.attr(&kept, &attributes),
            Err(error) => reply.error(error),
        }
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
            return reply.error(Errno::EPERM);
        }
        match self.inner().tree.attributes(ino) {
            Ok((kept, attributes)) => reply.attr(&kept, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let inner = self.inner();
        let is_knob = inner.tree.knob(ino).is_some();
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
        let Some(begun) = self.inner().handles.begun(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        if let Some(file) = OfProcess::of(ino) {
            return match self.inner().tree.process(file) {
                Ok(process) => reply.data(&bytes(&begun, offset, size, || file.text(&process))),
                Err(error) => reply.error(error),
            };
        }
        let answer = move |inner: &Inner| {
            reply.data(&bytes(&begun, offset, size, || {
                inner.tree.file(ino).read(&*inner.tree.source)
            }));
        };
        match self.inner().tree.file(ino).kind {
            Kind::OfNode(..) => aside(self.inner(), |inner| &inner.readers, answer),
            Kind::Counter(_) | Kind::Knob(_) | Kind::Directory(_) | Kind::Processes => {
                answer(self.inner());
            }
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
        let answer = move |inner: &Inner| match inner.write(ino, number, &text) {
            Ok(()) => reply.written(u32::try_from(text.len()).unwrap_or(0)),
            Err(number) => reply.error(error(number)),
        };
        aside(self.inner(), |inner| &inner.writers, answer);
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
        self.inner().handles.close(handle.0);
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
        let inner = self.inner();
        let Some(inside) = inner.tree.inside(ino) else {
            return reply.error(Errno::ENOTDIR);
        };
        let dots = [(ino, "."), (inner.tree.parent(ino), "..")];
        let dots = dots.map(|(ino, name)| (ino, FileType::Directory, name.to_owned()));
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, (ino, kind, name)) in (1..).zip(dots.into_iter().chain(inside)).skip(skipped) {
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
