//! A daemon that may not have the memory that frames take, by a control group of its own.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::bed::{Bed, By, Daemon, Program, until};

const LIMIT_MIB: u64 = 64;
/// Of each program, and as many frames as that.
const PAGES: u64 = (2 * LIMIT_MIB) << 8;

/// A memory control group, of either version. Removed when it is dropped, by when nobody may be in it.
struct Group(PathBuf);

impl Group {
    /// None, with the reason printed, if there is none to be had here.
    fn new() -> Option<Self> {
        match Self::make() {
            Ok(group) => Some(group),
            Err(error) => {
                println!("SKIPPED: no memory control group can be made: {error}");
                None
            }
        }
    }

    fn make() -> io::Result<Self> {
        let (place, limit) = Self::hierarchy()?;
        let group = Self(place.join(format!("numerge-test-{}", std::process::id())));
        fs::create_dir(&group.0)?;
        fs::write(group.0.join(limit), (LIMIT_MIB << 20).to_string())?;
        Ok(group)
    }

    /// Where groups are made that can be limited, and the name of the limit's file.
    fn hierarchy() -> io::Result<(PathBuf, &'static str)> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let of_kind = |kind: &str, option: Option<&str>| {
            let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            let found = mounts.find(|mount| {
                mount[2] == kind && option.is_none_or(|name| mount[3].split(',').any(|o| o == name))
            });
            found.map(|mount| PathBuf::from(mount[1]))
        };
        if let Some(place) = of_kind("cgroup", Some("memory")) {
            return Ok((place, "memory.limit_in_bytes"));
        }
        let place = of_kind("cgroup2", None).ok_or_else(|| io::Error::other("none is mounted"))?;
        fs::write(place.join("cgroup.subtree_control"), "+memory")?;
        Ok((place, "memory.max"))
    }

    /// A command in this group.
    fn command(&self, inner: &Command) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(self.0.join("cgroup.procs"));
        command.arg(inner.get_program()).args(inner.get_args());
        command
    }

    /// How often the kernel has killed somebody in it.
    fn kills(&self) -> u64 {
        let said = ["memory.oom_control", "memory.events"]
            .map(|file| fs::read_to_string(self.0.join(file)).unwrap_or_default());
        let line = said
            .iter()
            .flat_map(|said| said.lines())
            .find_map(|line| line.strip_prefix("oom_kill "));
        line.unwrap().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Who was killed is in it for a moment still.
        for _ in 0..500 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let left = fs::read_to_string(self.0.join("cgroup.procs"));
        eprintln!("{} is left over, with {left:?}", self.0.display());
    }
}

#[test]
fn s6_a_daemon_that_is_killed_for_its_memory_leaves_programs_theirs() {
    let Some(bed) = Bed::new() else { return };
    // Before the daemon, so that it goes after it.
    let Some(group) = Group::new() else { return };
    let mut daemon = bed.start(group.command(&bed.daemon_command(&[])));
    let mut programs = [(), ()].map(|()| bed.program(&By::me(), PAGES, 1));
    let status = killed(&mut daemon);
    assert_eq!(status, Some(9), "{}", bed.log());
    assert_eq!(group.kills(), 1);
    programs.iter_mut().for_each(Program::is_whole);

    let next = bed.daemon(&[]);
    next.until_merged(PAGES, PAGES);
    programs.iter_mut().for_each(Program::is_whole);
    assert_eq!(programs[0].ask("write 3 77"), "ok");
    programs.iter_mut().for_each(Program::is_whole);
}

/// Waits until the daemon has ended, and gives the signal that ended it.
fn killed(daemon: &mut Daemon) -> Option<i32> {
    let child = std::cell::RefCell::new(&mut daemon.child);
    until(|| child.borrow_mut().try_wait().unwrap().is_some(), || "not killed".into());
    daemon.child.wait().unwrap().signal()
}
