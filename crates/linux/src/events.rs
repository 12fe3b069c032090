//! A thread that reads a userfaultfd's events, so that nobody sleeps for want of a reader.
//!
//! mremap of a registered range returns only after its event was read, our own mremap (see
//! [`crate::convert`]) as well as the program's. Nothing needs doing about an event but reading it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, epoll, eventfd};

use crate::fork;
use crate::thread::{Thread, start_thread};
use crate::uffd::{MESSAGE_BYTES, Uffd};

/// Events taken in one read.
const BATCH: usize = 16;
/// More than those take.
const STACK_BYTES: usize = 64 << 10;
/// What there may be to read.
const EVENT: epoll::EventData = epoll::EventData::new_u64(0);
const STOP: epoll::EventData = epoll::EventData::new_u64(1);

/// The thread, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct EventReader {
    stop: Arc<OwnedFd>,
    thread: Option<Thread>,
    depth: u64,
}

impl EventReader {
    /// Starts reading.
    pub(crate) fn start(uffd: Arc<Uffd>) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        // Not poll(2), which refuses two files in a process that may have none (RLIMIT_NOFILE): the program
        // may set that any time.
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&ready, uffd.fd(), EVENT, epoll::EventFlags::IN)?;
        epoll::add(&ready, &stop, STOP, epoll::EventFlags::IN)?;
        let stopped = Arc::clone(&stop);
        let thread = start_thread("numerge-events", STACK_BYTES, move || {
            read_until(&uffd, &ready);
            drop(stopped);
        })?;
        Ok(Self { stop, thread: Some(thread), depth: fork::depth() })
    }
}

fn read_until(uffd: &Uffd, ready: &OwnedFd) {
    let mut messages = [0; MESSAGE_BYTES * BATCH];
    let mut found = [epoll::Event { flags: epoll::EventFlags::empty(), data: EVENT }; 2];
    loop {
        let Ok(count) = epoll::wait(ready, &mut found, None) else {
            continue; // interrupted
        };
        if found[..count].iter().any(|event| event.data.u64() == STOP.u64()) {
            return;
        }
        // Faults are read as well. They are answered by who froze the page; read or not, the same
        // call wakes who waits. Nothing there after all (EAGAIN): its waiter was woken meanwhile.
        let _ = rustix::io::read(uffd.fd().as_fd(), &mut messages[..]);
    }
}

impl Drop for EventReader {
    fn drop(&mut self) {
        if self.depth != fork::depth() {
            return; // the thread did not come along into the child
        }
        let stopped = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (stopped, self.thread.take()) {
            thread.join();
        }
    }
}
