//! Files of this process's own in `/proc`, where somebody shows them (`numerge run --as-ksm`).
//!
//! They are there when the program begins, and in a child by fork when it begins: programs open them once and
//! read them again and again. Who does not answer in time is not waited for, and the kernel's are there then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use numerge_linux::Quiet;
use numerge_protocol::proc_files::{ANSWER_WAIT, ANY, SOME};
use numerge_protocol::{Socket, SocketError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::agent;
use crate::threads;
use crate::unasked;

/// Between two looks.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// Asks for the files in a child that was just made, unless it shares its maker's table of files.
pub(crate) fn ask_in_child() {
    const KCMP_FILES: libc::c_long = 2;
    if agent::get().is_none_or(|agent| agent.config.proc_files.is_none()) {
        return;
    }
    // SAFETY: compares two processes, and touches no memory.
    let differ =
        unsafe { libc::syscall(libc::SYS_kcmp, libc::getpid(), libc::getppid(), KCMP_FILES, 0, 0) };
    if differ != 0 {
        ask();
    }
}

/// Asks for the files, if there is anybody to ask, and tells what they are to tell. For a thread that is
/// alone in its process, or has files of its own: the descriptor is in its table meanwhile.
pub(crate) fn ask() {
    // The agent's memory is allocated and freed with signal handlers kept away.
    let _quiet = Quiet::begin();
    let Some(path) = agent::get().and_then(|agent| agent.config.proc_files.as_deref()) else {
        return;
    };
    let until = Instant::now() + ANSWER_WAIT;
    let socket = loop {
        match Socket::connect(path) {
            Ok(socket) => break socket,
            // Many ask at a time.
            Err(SocketError::Busy { .. }) if Instant::now() < until => {
                let _ = rustix::thread::nanosleep(&PAUSE);
            }
            Err(_) => return,
        }
    };
    let says = if unasked::wants_all() { ANY } else { SOME };
    if rustix::net::send(&socket, &[says], SendFlags::NOSIGNAL) != Ok(1) {
        return;
    }
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        let mut polled = [PollFd::new(&socket, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Timespec::try_from(left).ok().as_ref()) {
            Ok(0) | Err(Errno::INTR) => {}
            // The connection is closed.
            _ => return,
        }
    }
}

/// Tells what the files are to tell from now on, by a thread that has files of its own, and waits for it.
/// This may call the program's malloc: nothing may be held.
pub(crate) fn tell() {
    if agent::get().is_none_or(|agent| agent.config.proc_files.is_none()) {
        return;
    }
    // The agent's memory is allocated and freed with signal handlers kept away.
    let _quiet = Quiet::begin();
    let told = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&told);
    let tell = move || {
        if threads::leave_programs_files().is_ok() {
            ask();
        }
        done.store(true, Ordering::SeqCst);
    };
    if threads::start("numerge-files", tell).is_err() {
        return;
    }
    let until = Instant::now() + ANSWER_WAIT;
    while !told.load(Ordering::SeqCst) && Instant::now() < until {
        // Not the C library's, at which the program's thread may be cancelled.
        let _ = rustix::thread::nanosleep(&PAUSE);
    }
}
