//! What each inode is.
//!
//! **Inode numbers.** The kernel lets nobody truncate a file, as a shell's `>` does first of all, while
//! a write to it is under way. For a write to `run` that unmerges, that could be long, and it is to be
//! ended just by writing to `run`. So from the beginning of such a write on `run` is a new inode: who
//! opens it then waits for nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, INodeNo};
use numerge_engine::Knob;

use crate::files::{File, Files, Kind, ROOT};
use crate::processes::{self, OfProcess};
use crate::source::{Process, Source};

/// The size that all files have, and the most that one write takes in: the kernel's page.
pub(crate) const PAGE: usize = 4096;

/// How long the kernel may keep what it was told about files, which does not change: each question less is
/// one less to wait for on a busy machine.
const LONG: Duration = Duration::from_secs(3600);
/// And which inode `run` is, and what there is of processes, which does.
pub(crate) const NEVER: Duration = Duration::ZERO;

/// All files and directories.
pub(crate) struct Tree {
    pub(crate) source: Arc<dyn Source>,
    files: Files,
    /// How many unmergings have begun.
    unmerged: AtomicU64,
    mounted_at: SystemTime,
    owner: (u32, u32),
}

impl Tree {
    /// `owner` is whose the files are, user and group.
    pub(crate) fn new(source: Arc<dyn Source>, owner: (u32, u32)) -> Self {
        let files = Files::new(&source.nids(), source.processes().is_some());
        let mounted_at = SystemTime::now();
        Self { source, files, unmerged: AtomicU64::new(0), mounted_at, owner }
    }

    /// From now on `run` is another inode.
    pub(crate) fn begin_to_unmerge(&self) {
        self.unmerged.fetch_add(1, Ordering::SeqCst);
    }

    fn number(&self, ino: INodeNo) -> usize {
        let all = self.files.len() as u64;
        usize::try_from(ino.0.wrapping_sub(1) % all).unwrap_or(ROOT)
    }

    pub(crate) fn file(&self, ino: INodeNo) -> &File {
        // A remainder is the number of a file.
        self.files.get(self.number(ino)).expect("every inode is a file's")
    }

    fn is_run(&self, number: usize) -> bool {
        self.files.get(number).is_some_and(|file| matches!(file.kind, Kind::Knob(Knob::Run)))
    }

    pub(crate) fn ino(&self, number: usize) -> INodeNo {
        let changed = if self.is_run(number) { self.unmerged.load(Ordering::SeqCst) } else { 0 };
        INodeNo(1 + number as u64 + changed * self.files.len() as u64)
    }

    /// What has this name in a directory, by its inode; of processes, whether there is one or not.
    pub(crate) fn find(&self, parent: INodeNo, name: &str) -> Option<INodeNo> {
        if let Some(directory) = OfProcess::of(parent) {
            return Some(directory.find(name)?.ino());
        }
        match self.file(parent).kind {
            Kind::Processes => Some(OfProcess::directory(name)?.ino()),
            _ => Some(self.ino(self.files.find(self.number(parent), name)?)),
        }
    }

    pub(crate) fn process(&self, file: OfProcess) -> Result<Process, Errno> {
        self.source.process(file.pid).ok_or(Errno::ESRCH)
    }

    /// The attributes, and how long they may be kept.
    pub(crate) fn attributes(&self, ino: INodeNo) -> Result<(Duration, FileAttr), Errno> {
        if let Some(file) = OfProcess::of(ino) {
            let (kind, perm) = match file.kind {
                processes::Kind::Directory => (FileType::Directory, 0o555),
                _ => (FileType::RegularFile, 0o400),
            };
            let owner = self.process(file)?.owner;
            return Ok((NEVER, self.attributes_of(ino, kind, perm, 0, owner)));
        }
        let (kind, perm) = match self.file(ino).kind {
            Kind::Directory(_) | Kind::Processes => (FileType::Directory, 0o755),
            Kind::Knob(_) => (FileType::RegularFile, 0o644),
            Kind::Counter(_) | Kind::OfNode(..) => (FileType::RegularFile, 0o444),
        };
        let bytes = if kind == FileType::Directory { 0 } else { PAGE as u64 };
        Ok((LONG, self.attributes_of(ino, kind, perm, bytes, self.owner)))
    }

    fn attributes_of(
        &self,
        ino: INodeNo,
        kind: FileType,
        perm: u16,
        size: u64,
        (uid, gid): (u32, u32),
    ) -> FileAttr {
        let at = self.mounted_at;
        FileAttr {
            ino,
            size,
            blocks: 0,
            atime: at,
            mtime: at,
            ctime: at,
            crtime: at,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    pub(crate) fn knob(&self, ino: INodeNo) -> Option<Knob> {
        match self.file(ino).kind {
            Kind::Knob(knob) if OfProcess::of(ino).is_none() => Some(knob),
            _ => None,
        }
    }

    /// What is in a directory.
    pub(crate) fn inside(&self, ino: INodeNo) -> Option<Vec<(INodeNo, FileType, String)>> {
        if let Some(directory) = OfProcess::of(ino) {
            let file = |(name, kind): (&str, _)| {
                let ino = OfProcess { kind, ..directory }.ino();
                (ino, FileType::RegularFile, name.to_owned())
            };
            let is_one = directory.kind == processes::Kind::Directory;
            return is_one.then(|| processes::FILES.map(file).into());
        }
        if let Kind::Processes = self.file(ino).kind {
            let all = self.source.processes().unwrap_or_default();
            let directory = |pid: u32| {
                let ino = OfProcess { pid, kind: processes::Kind::Directory }.ino();
                (ino, FileType::Directory, pid.to_string())
            };
            return Some(all.into_iter().map(directory).collect());
        }
        let listed = |number: &usize| {
            let file = self.files.get(*number)?;
            let kind =
                if file.is_directory() { FileType::Directory } else { FileType::RegularFile };
            Some((self.ino(*number), kind, file.name.clone()))
        };
        Some(self.files.inside(self.number(ino))?.iter().filter_map(listed).collect())
    }

    /// The directory that a directory is in.
    pub(crate) fn parent(&self, ino: INodeNo) -> INodeNo {
        if OfProcess::of(ino).is_some() {
            let own = self.files.find(ROOT, "numerge");
            let all = own.and_then(|own| self.files.find(own, "proc"));
            return self.ino(all.unwrap_or(ROOT));
        }
        self.ino(self.file(ino).parent)
    }
}
