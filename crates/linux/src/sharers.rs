//! Who else maps a pool's frames: other processes' /proc/PID/maps, read until the answer holds.
//!
//! Pages that are merged lie in private mappings. A shared one is a client's *view* of a whole file, through
//! which it compares its pages with frames before it maps them. As long as the client is served, the engine knows of
//! which frames that may be. Afterwards it does not: the client may be in the midst of a merge that it was asked
//! for before, and maps the frame only then. So its view keeps all frames from being given back.
//!
//! A process can keep whoever wants its list of mappings waiting for ever. Those of processes that may mean harm are
//! read by a thread that is left behind then (`Reader`).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::sync::Arc;

use crate::maps::Mapping;
use crate::num::PAGE_SHIFT;

mod reader;

pub(crate) use reader::Unanswered;

use reader::Reader;

/// Root's number.
const ROOT: u32 = 0;
/// Passes over all processes before giving up on an answer that holds.
const PASSES: u32 = 5;

/// A file as /proc/PID/maps names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FileId {
    /// Major and minor number in hexadecimal.
    pub(crate) device: String,
    /// Number on that device.
    pub(crate) inode: u64,
}

/// Frames of a file that another process maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Shared {
    /// Place of the file in the list asked about.
    pub(crate) file: usize,
    /// Pages of the file.
    pub(crate) frames: Range<u64>,
}

/// A process, which no later one of its number is taken for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ProcessId {
    pid: u32,
    start_ticks: u64,
}

impl ProcessId {
    /// The process that has this number now.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_ticks: Stat::of(pid)?.start_ticks })
    }

    /// Whether it is there still.
    pub(crate) fn lives(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }
}

/// Who need not be asked.
#[derive(Clone, Default, Debug)]
pub(crate) struct Exempt {
    /// When the files were made, in clock ticks since boot ([`now_ticks`]): a process older than they
    /// are can't have inherited them, so it does not matter if its maps can't be read.
    pub(crate) since_ticks: u64,
    /// Processes of which it is known otherwise what they map.
    pub(crate) known: Vec<ProcessId>,
    /// Processes that are served, so that only their private mappings count.
    pub(crate) viewers: Vec<ProcessId>,
    /// Processes that were given the files, at any time, and live still.
    pub(crate) given: Vec<ProcessId>,
    /// The users of all processes that ever had the files, if it is known who they are. A process that
    /// is forked belongs to one of them, unless one of them is root.
    pub(crate) users: Option<BTreeSet<u32>>,
}

impl Exempt {
    fn is_known(&self, pid: u32) -> bool {
        is_among(&self.known, pid)
    }

    /// Which mappings of a process count.
    fn counted(&self, pid: u32) -> Counted {
        if is_among(&self.viewers, pid) { Counted::Private } else { Counted::All }
    }

    /// Whether a process whose maps can't be read has none of the files for certain.
    ///
    /// Who has executed a program since it was made has none of its maker's mappings, and the files are
    /// closed when a program is executed: it has none unless it was given them. (Or was handed them by
    /// who was, in breach of the rules, which harms nobody but itself.)
    fn is_stranger(&self, pid: u32) -> io::Result<bool> {
        let stat = Stat::of(pid)?;
        // Older than the files, as a client may be, or not.
        if self.given.contains(&ProcessId { pid, start_ticks: stat.start_ticks }) {
            return Ok(false);
        }
        if stat.start_ticks < self.since_ticks || stat.has_executed {
            return Ok(true);
        }
        let Some(users) = self.users.as_ref().filter(|users| !users.contains(&ROOT)) else {
            return Ok(false);
        };
        Ok(users_of(pid)?.iter().all(|user| !users.contains(user)))
    }
}

fn is_among(processes: &[ProcessId], pid: u32) -> bool {
    processes.iter().any(|process| process.pid == pid && process.lives())
}

/// Which mappings count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Counted {
    Private,
    All,
}

/// What a process that is going to be served maps of `files`, but for the view it may have.
pub(crate) fn of_process(pid: u32, files: &[FileId]) -> io::Result<Vec<Shared>> {
    let mut shared = Vec::new();
    read_maps(pid, files, Counted::Private, &mut shared)?;
    Ok(shared)
}

/// What other processes map of `files`; None if it can't be told now, so anything may be mapped.
///
/// Processes fork and exit while they are looked at, so a pass counts only if no process vanished
/// meanwhile, and two such passes are needed: a child made behind the back of the first pass is
/// there for the second.
pub(crate) fn others(files: &[FileId], exempt: &Exempt) -> Option<Vec<Shared>> {
    look_twice(exempt, &mut |pid, counted, shared| read_maps(pid, files, counted, shared))
}

/// The same where some of the processes may mean harm.
pub(crate) fn others_unheld(
    files: Vec<FileId>,
    exempt: &Exempt,
    unanswered: &Arc<Unanswered>,
) -> Option<Vec<Shared>> {
    let reader = Reader::new(files, Arc::clone(unanswered));
    look_twice(exempt, &mut |pid, counted, shared| {
        shared.append(&mut reader.read(pid, counted)?);
        Ok(())
    })
}

/// Appends what a process maps.
type Read<'a> = dyn FnMut(u32, Counted, &mut Vec<Shared>) -> io::Result<()> + 'a;

fn look_twice(exempt: &Exempt, read: &mut Read<'_>) -> Option<Vec<Shared>> {
    let mut calm = 0;
    let mut shared = Vec::new();
    for _ in 0..PASSES {
        match pass(exempt, read, &mut shared) {
            Pass::Calm => calm += 1,
            Pass::Vanished => calm = 0,
            Pass::Unreadable => return None,
        }
        if calm == 2 {
            return Some(shared);
        }
    }
    None
}

enum Pass {
    Calm,
    Vanished,
    Unreadable,
}

fn pass(exempt: &Exempt, read: &mut Read<'_>, shared: &mut Vec<Shared>) -> Pass {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Pass::Unreadable;
    };
    let mut result = Pass::Calm;
    for entry in entries {
        let Ok(entry) = entry else {
            return Pass::Unreadable;
        };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() || exempt.is_known(pid) {
            continue;
        }
        match read(pid, exempt.counted(pid), shared) {
            Ok(()) => {}
            Err(error) if gone(&error) => result = Pass::Vanished,
            Err(_) => match exempt.is_stranger(pid) {
                Ok(true) => {}
                Err(error) if gone(&error) => result = Pass::Vanished,
                _ => return Pass::Unreadable,
            },
        }
    }
    result
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// A process whose first thread has ended shows no mappings by its own number, while its other threads
/// go on: then theirs are looked at.
fn read_maps(
    pid: u32,
    files: &[FileId],
    counted: Counted,
    shared: &mut Vec<Shared>,
) -> io::Result<()> {
    if read_maps_of(&format!("/proc/{pid}/maps"), files, counted, shared)? {
        return Ok(());
    }
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path().join("maps");
        if read_maps_of(&path.to_string_lossy(), files, counted, shared)? {
            return Ok(());
        }
    }
    // It has no memory: it is ending, or the kernel's.
    Ok(())
}

/// False if nothing is mapped at all.
fn read_maps_of(
    path: &str,
    files: &[FileId],
    counted: Counted,
    shared: &mut Vec<Shared>,
) -> io::Result<bool> {
    let mut maps = BufReader::with_capacity(1 << 16, File::open(path)?);
    let mut line = Vec::new();
    let mut any = false;
    loop {
        line.clear();
        if maps.read_until(b'\n', &mut line)? == 0 {
            return Ok(any);
        }
        any = true;
        let text = String::from_utf8_lossy(&line);
        let Some(mapping) = Mapping::parse(&text) else {
            continue;
        };
        if counted == Counted::Private && !mapping.permissions.ends_with('p') {
            continue;
        }
        let file = files
            .iter()
            .position(|file| file.inode == mapping.inode && file.device == mapping.device);
        if let Some(file) = file {
            let first = mapping.offset >> PAGE_SHIFT;
            let pages = (mapping.bytes.end - mapping.bytes.start) >> PAGE_SHIFT;
            shared.push(Shared { file, frames: first..first + pages });
        }
    }
}

/// The kernel's PF_FORKNOEXEC: forked, and has executed nothing since.
const FORKED_ONLY: u64 = 0x40;

/// What everybody may know of a process.
struct Stat {
    /// When it started, in clock ticks since boot.
    start_ticks: u64,
    /// Whether it has executed a program since it was made.
    has_executed: bool,
}

impl Stat {
    fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold anything; what follows the last one is the state and then
        // numbers, of which the flags are the 6th and the start time is the 19th.
        let mut rest = stat.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace());
        let mut number = |skipped| rest.as_mut()?.nth(skipped)?.parse::<u64>().ok();
        match (number(6), number(12)) {
            (Some(flags), Some(start_ticks)) => {
                Ok(Self { start_ticks, has_executed: flags & FORKED_ONLY == 0 })
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// The users a process is of: real, effective, saved, and for files.
fn users_of(pid: u32) -> io::Result<Vec<u32>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let users = users.map(|users| users.split_ascii_whitespace().map(str::parse).collect());
    match users {
        Some(Ok(users)) => Ok(users),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// This moment, in clock ticks since boot, rounded down.
pub(crate) fn now_ticks() -> u64 {
    // SAFETY: sysconf reads a number and touches no memory of ours.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * per_second + nanoseconds * per_second / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_started_before_now() {
        let start = Stat::of(std::process::id()).expect("stat").start_ticks;
        assert!(start <= now_ticks());
        assert!(start > 0);
    }

    #[test]
    fn nobody_else_maps_a_file_that_is_not_there() {
        let file = FileId { device: "00:00".into(), inode: u64::MAX };
        let exempt = Exempt { since_ticks: now_ticks(), ..Exempt::default() };
        assert_eq!(others(&[file], &exempt).unwrap_or_default(), []);
    }

    #[test]
    fn a_process_is_known_by_more_than_its_number() {
        let me = ProcessId::of(std::process::id()).expect("stat");
        let known = |process| Exempt { known: vec![process], ..Exempt::default() };
        assert!(known(me).is_known(me.pid));
        let before = ProcessId { start_ticks: me.start_ticks + 1, ..me };
        assert!(!known(before).is_known(me.pid), "a later process of the same number");
    }

    #[test]
    fn a_stranger_is_older_or_another_user() {
        let child = Forked::new();
        let its = ProcessId::of(child.0).expect("stat");
        let mine = users_of(child.0).expect("status");
        let users = |users: &[u32]| Some(users.iter().copied().collect());
        let younger = Exempt { since_ticks: its.start_ticks, ..Exempt::default() };
        let is_stranger = |exempt: &Exempt| exempt.is_stranger(child.0).expect("proc");
        assert!(!is_stranger(&younger), "nothing known of users");
        assert!(is_stranger(&Exempt { since_ticks: its.start_ticks + 1, ..Exempt::default() }));
        assert!(is_stranger(&Exempt { users: users(&[4242]), ..younger.clone() }));
        assert!(!is_stranger(&Exempt { users: users(&[4242, mine[0]]), ..younger.clone() }));
        assert!(!is_stranger(&Exempt { users: users(&[4242, ROOT]), ..younger }));
    }

    #[test]
    fn who_executed_a_program_has_what_it_was_given_only() {
        let me = ProcessId::of(std::process::id()).expect("stat");
        let younger = Exempt { since_ticks: me.start_ticks, ..Exempt::default() };
        assert!(younger.is_stranger(me.pid).expect("proc"));
        let given = Exempt { given: vec![me], ..younger };
        assert!(!given.is_stranger(me.pid).expect("proc"));
        let older = Exempt { since_ticks: me.start_ticks + 1, ..given };
        assert!(!older.is_stranger(me.pid).expect("proc"), "given by whoever is younger");
    }

    /// A child that has executed nothing; killed when it is dropped.
    struct Forked(u32);

    impl Forked {
        fn new() -> Self {
            // SAFETY: the child makes system calls only, and ends when it is killed.
            match unsafe { libc::fork() } {
                0 => loop {
                    // SAFETY: waits for a signal.
                    unsafe { libc::pause() };
                },
                pid => Self(pid.unsigned_abs()),
            }
        }
    }

    impl Drop for Forked {
        fn drop(&mut self) {
            // SAFETY: ends and reaps a child of this process, which nobody else waits for.
            unsafe {
                libc::kill(self.0.cast_signed(), libc::SIGKILL);
                libc::waitpid(self.0.cast_signed(), std::ptr::null_mut(), 0);
            }
        }
    }
}
