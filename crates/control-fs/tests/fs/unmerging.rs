//! `run` = 2 by its file: it takes long, holds up nothing, and can be ended.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use numerge_engine::machine::Vpn;
use numerge_engine::{Counters, Knob, Nid};

use crate::bed::{Bed, NoEngine, mount, until};

/// Enough that unmerging them takes longer than a few other operations.
const PAGES: u64 = 400_000;

fn merged() -> Option<Bed> {
    let bed = Bed::new(PAGES)?;
    (0..PAGES).for_each(|page| bed.machine.write(Vpn(page), 5, Nid(0)));
    bed.source.0.set(Knob::PagesToScan, 1_000_000).unwrap();
    merge(&bed);
    Some(bed)
}

fn merge(bed: &Bed) {
    (0..3).for_each(|_| bed.source.0.full_scan());
    assert_eq!(shares(&bed.source.0.counters()), PAGES);
}

fn shares(c: &Counters) -> u64 {
    c.pages_shared + c.pages_sharing
}

/// Has `end` end the unmerging that `begin` begins, until it comes to it in time, and gives what `begin`
/// gave. What is left is consistent.
fn interrupted<T: Send>(bed: &Bed, begin: impl Fn() -> T + Sync, end: impl Fn() + Sync) -> T {
    for _ in 0..50 {
        let begun = std::thread::scope(|scope| {
            let unmerging = scope.spawn(&begin);
            until("it has begun", || shares(&bed.source.0.counters()) < PAGES - PAGES / 100);
            end();
            unmerging.join().unwrap()
        });
        let left = bed.source.0.counters();
        if shares(&left) > 0 {
            assert_eq!(bed.read("run"), "0\n");
            assert_eq!(bed.number("pages_sharing"), left.pages_sharing);
            return begun;
        }
        merge(bed);
    }
    panic!("never came to it in time");
}

#[test]
fn s5_2_while_all_is_unmerged_every_file_can_be_read_and_written() {
    let Some(bed) = merged() else { return };
    let done = AtomicBool::new(false);
    // On a busy machine all may be unmerged before this thread has its turn: then once more.
    let used = (0..50).any(|_| {
        merge(&bed);
        done.store(false, Ordering::SeqCst);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                bed.write("run", "2\n").unwrap();
                done.store(true, Ordering::SeqCst);
            });
            until("it has begun", || shares(&bed.source.0.counters()) < PAGES);
            for name in ["run", "pages_sharing", "general_profit", "numerge/epoch_lag"] {
                bed.read(name);
            }
            bed.write("sleep_millisecs", "7\n").unwrap();
            assert_eq!(bed.read("sleep_millisecs"), "7\n");
            !done.load(Ordering::SeqCst)
        })
    });
    assert!(used, "unmerging came before all else, always");
    assert_eq!((bed.read("run"), bed.number("pages_shared")), ("2\n".into(), 0));
    assert!((0..PAGES).all(|page| bed.machine.read(Vpn(page)) == 5));
}

#[test]
fn s5_2_writing_0_ends_it_also_as_a_shell_writes() {
    let Some(bed) = merged() else { return };
    let shell = |text: &str| {
        let command = format!("echo {text} > {}", bed.path("run").display());
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (succeeded, errors) = interrupted(
        &bed,
        || shell("2"),
        || {
            let (succeeded, errors) = shell("0");
            assert!(succeeded, "{errors}");
        },
    );
    // With EINTR the shell would have written 2 again.
    assert!(!succeeded, "{errors}");
    bed.write("run", "2").unwrap();
    assert_eq!(bed.number("pages_shared"), 0);
}

#[test]
fn s5_2_a_signal_to_the_writer_ends_it() {
    let Some(bed) = merged() else { return };
    let path = bed.path("run");
    let writer = std::sync::Mutex::new(None);
    let begin = || {
        let mut child = Command::new("dd")
            .args(["if=/dev/stdin", "status=none"])
            .arg(format!("of={}", path.display()))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        *writer.lock().unwrap() = Some(pid);
        child.stdin.take().unwrap().write_all(b"2\n").unwrap();
        let status = child.wait().unwrap();
        *writer.lock().unwrap() = None;
        status
    };
    let end = || {
        if let Some(pid) = *writer.lock().unwrap() {
            // It may have ended, and waits to be waited for.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    };
    let status = interrupted(&bed, begin, end);
    assert_eq!(status.signal(), Some(libc::SIGTERM));
}

/// The kernel takes no answer to that write any more.
#[test]
fn files_taken_away_by_force_while_run_2_unmerges_have_an_end() {
    let Some(mut bed) = merged() else { return };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| bed.write("run", "2"));
        until("it has begun", || shares(&bed.source.0.counters()) < PAGES);
        // It is in use and stays, but nobody who has asked for something waits for it any more.
        let _ = rustix::mount::unmount(bed.directory(), rustix::mount::UnmountFlags::FORCE);
        // On a busy machine it may have been answered before.
        let _ = writer.join().unwrap();
    });
    let end = std::thread::spawn(move || bed.unmount());
    until("they are gone", || end.is_finished());
}

/// Has a signal do nothing, but that calls end with EINTR or, by SA_RESTART, are made again. No other test of
/// this program sends it.
fn catch(signal: i32, flags: i32) {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: all zeros is a value of it, with no flags and no signals blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    action.sa_flags = flags;
    // SAFETY: the handler does nothing, which it may at any time.
    let set = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}

/// A thread while it writes, to be sent signals.
#[derive(Default)]
struct Writer(std::sync::Mutex<Option<libc::pthread_t>>);

impl Writer {
    /// Writes once: who writes by `fs::write` does so again after a signal.
    fn write(&self, path: &Path, text: &str) -> io::Result<usize> {
        let mut file = File::options().write(true).open(path)?;
        // SAFETY: asks who it is.
        *self.0.lock().unwrap() = Some(unsafe { libc::pthread_self() });
        let written = file.write(text.as_bytes());
        *self.0.lock().unwrap() = None;
        written
    }

    fn signal(&self, signal: i32) {
        if let Some(thread) = *self.0.lock().unwrap() {
            // SAFETY: the thread has not ended, for it takes itself out before, and the signal is caught.
            unsafe { libc::pthread_kill(thread, signal) };
        }
    }
}

/// With the kernel's file, one that is to restart calls goes on unmerging. A file system can't ask for that: what
/// FUSE passes on to programs is EINTR.
#[test]
fn s5_2_a_writer_that_catches_the_signal_gets_eintr() {
    let Some(bed) = merged() else { return };
    for (signal, flags) in [(libc::SIGUSR1, 0), (libc::SIGUSR2, libc::SA_RESTART)] {
        catch(signal, flags);
        merge(&bed);
        let writer = Writer::default();
        let begin = || writer.write(&bed.path("run"), "2\n");
        let error = interrupted(&bed, begin, || writer.signal(signal)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINTR), "flags {flags}: {error}");
        bed.write("run", "2").unwrap();
        assert_eq!(bed.number("pages_shared"), 0);
    }
    assert!((0..PAGES).all(|page| bed.machine.read(Vpn(page)) == 5));
}

/// Sets what a thread waits for to end, also where a test fails.
struct EndsWith<'a>(&'a AtomicBool);

impl Drop for EndsWith<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// However early the signal comes.
#[test]
fn s5_2_run_is_0_after_each_write_that_a_signal_ended() {
    let Some(bed) = Bed::new(10) else { return };
    catch(libc::SIGURG, 0);
    let (writer, done) = (Writer::default(), AtomicBool::new(false));
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                writer.signal(libc::SIGURG);
                std::thread::yield_now();
            }
        });
        let _storm = EndsWith(&done);
        let mut ended = 0;
        for _ in 0..500 {
            bed.write("run", "1").unwrap();
            match writer.write(&bed.path("run"), "2") {
                Ok(_) => assert_eq!(bed.read("run"), "2\n"),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EINTR), "{error}");
                    assert_eq!(bed.read("run"), "0\n");
                    ended += 1;
                }
            }
        }
        ended
    });
    assert!(ended > 0, "no signal came in time");
}

#[test]
fn s5_2_where_memory_runs_out_the_writer_is_told_and_what_is_merged_stays() {
    let Some(bed) = merged() else { return };
    bed.machine.limit(0, PAGES / 2);
    let error = bed.write("run", "2\n").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{error}");
    assert_eq!(bed.read("run"), "0\n");
    let left = bed.number("pages_shared") + bed.number("pages_sharing");
    assert!((PAGES / 2..PAGES).contains(&left), "{left}");
    assert!((0..PAGES).all(|page| bed.machine.read(Vpn(page)) == 5));
    bed.machine.limit(u64::MAX, u64::MAX);
    bed.write("run", "2\n").unwrap();
    assert_eq!((bed.read("run"), bed.number("pages_sharing")), ("2\n".into(), 0));
}

#[test]
fn s5_2_where_programs_do_not_answer_the_writer_is_to_try_again() {
    let place = tempfile::tempdir().unwrap();
    let silent = NoEngine { is_silent: true, ..NoEngine::default() };
    let Some(files) = mount(&place.path().join("ksm"), Arc::new(silent)) else { return };
    let error = fs::write(files.path().join("run"), "2\n").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN), "{error}");
}

#[test]
fn s5_2_two_writers_may_unmerge_at_a_time() {
    let Some(bed) = merged() else { return };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut file = File::options().write(true).open(bed.path("run")).unwrap();
                file.write_all(b"2").unwrap();
            });
        }
    });
    assert_eq!(bed.number("pages_shared"), 0);
}

#[test]
fn what_can_not_be_set_while_frames_are_shared_is_busy() {
    let Some(bed) = merged() else { return };
    for name in ["max_page_sharing", "merge_across_nodes"] {
        let value = bed.read(name);
        let other = if name == "max_page_sharing" { "9" } else { "0" };
        let error = bed.write(name, other).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "{name}: {error}");
        assert_eq!(fs::read_to_string(bed.path(name)).unwrap(), value);
        bed.write(name, &value).unwrap();
    }
}
