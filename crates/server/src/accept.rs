//! Accepting clients: each has a place in the list of them, and a thread.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use numerge_protocol::{Listener, Reason, Socket};
use rustix::event::{PollFd, PollFlags};

use crate::client;
use crate::host::Host;
use crate::link::Link;
use crate::rejection::Rejection;

/// How long to wait when resources for another client have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A place in the list of clients, given up when the connection's thread ends.
struct Place {
    host: Arc<Host>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.host.dismiss(self.number);
    }
}

/// Accepts clients until the server stops.
pub(crate) fn accept_all(host: &Arc<Host>, listener: &Listener) {
    let mut number = 0;
    loop {
        let mut polled = [
            PollFd::new(host.stop_signal(), PollFlags::IN),
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        ];
        let _ = rustix::event::poll(&mut polled, None);
        if !polled[0].revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok(socket) => {
                number += 1;
                admit(host, number, socket);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Descriptors or memory have run out, and who waits, waits.
            Err(error) => {
                host.on_behalf_of(rustix::process::geteuid().as_raw(), |unsaid| {
                    tracing::warn!(%error, unsaid, "no other client can be accepted now");
                });
                host.waits_to_stop(ACCEPT_RETRY);
            }
        }
    }
}

/// Starts a client's thread, if there may be another.
fn admit(host: &Arc<Host>, number: u64, socket: Socket) {
    let Ok(peer) = socket.peer() else { return };
    if !host.admit(number, peer.uid) {
        let rejection = Rejection::new(Reason::TooManyClients, "as many clients as allowed");
        host.log_rejected(&socket, &rejection);
        turn_away(socket, &rejection);
        return;
    }
    let place = Place { host: Arc::clone(host), number };
    let serve = move || client::serve(&place.host, place.number, socket);
    let thread = std::thread::Builder::new().name("numerge-client".into()).spawn(serve);
    if let Err(error) = thread {
        // The connection has ended by this.
        host.on_behalf_of(peer.uid, |unsaid| {
            tracing::warn!(uid = peer.uid, %error, unsaid, "no thread for another client");
        });
    }
}

fn turn_away(socket: Socket, rejection: &Rejection) {
    if let Ok(link) = Link::new(socket) {
        // If there is no room for it in a socket that is new, it learns of it by the end.
        let _ = link.send(&rejection.message());
    }
}
