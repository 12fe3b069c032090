//! What a client has said that its worker has not carried out yet, in order.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use numerge_engine::machine::Vpn;
use numerge_protocol::RegionId;
use numerge_protocol::limits::REGION_MESSAGES;
use parking_lot::{Condvar, Mutex};

/// How long a reader waits for room before it takes the client for one that floods. Answers wait behind
/// it, so it must come to an end.
const ROOM_WAIT: Duration = Duration::from_secs(5);

/// What a worker is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    Register(RegionId, Range<Vpn>),
    Gone(Range<Vpn>),
    Unregister(RegionId),
}

#[derive(Default)]
struct Waiting {
    orders: VecDeque<Order>,
    /// One was taken, and the next was not asked for.
    is_at_work: bool,
    is_closed: bool,
}

/// The orders of one client.
#[derive(Default)]
pub(crate) struct Inbox {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Inbox {
    /// Adds an order, when there is room; false if there is none for long.
    pub(crate) fn push(&self, order: Order) -> bool {
        let mut waiting = self.waiting.lock();
        let is_full =
            |waiting: &mut Waiting| waiting.orders.len() >= REGION_MESSAGES && !waiting.is_closed;
        self.changed.wait_while_for(&mut waiting, is_full, ROOM_WAIT);
        if is_full(&mut waiting) {
            return false;
        }
        waiting.orders.push_back(order);
        self.changed.notify_all();
        true
    }

    /// Takes the next order, when there is one; None once it is closed, whatever waits still.
    pub(crate) fn next(&self) -> Option<Order> {
        let mut waiting = self.waiting.lock();
        waiting.is_at_work = false;
        self.changed
            .wait_while(&mut waiting, |waiting| waiting.orders.is_empty() && !waiting.is_closed);
        if waiting.is_closed {
            return None;
        }
        let order = waiting.orders.pop_front();
        waiting.is_at_work = order.is_some();
        self.changed.notify_all();
        order
    }

    /// Whether all orders were carried out. Not once it is closed: how far its client's end is, others
    /// know.
    pub(crate) fn is_idle(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.orders.is_empty() && !waiting.is_at_work && !waiting.is_closed
    }

    /// Nothing more is to be done.
    pub(crate) fn close(&self) {
        self.waiting.lock().is_closed = true;
        self.changed.notify_all();
    }
}
