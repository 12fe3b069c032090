//! The operations of the stable tree, each ready to be run against each.

use loom::sync::Arc;
use loom::thread;

use numerge_stable_tree::{Fingerprint, Forest, Guard, Handle, Kpfn, Place, Refused, TreeId};

use crate::world::{
    CLOSED, Content, HERE, LIMIT, Shares, Start, THERE, equal, finish, forest, merge, terms,
};

/// One operation. In the comments, the row of the table of linearization points that it stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Lookup of A, and one share of what is found (lookup, hit; take one share).
    Hit,
    /// Lookup of B, between A and the end (lookup, miss).
    Miss,
    /// One share of frame 0 by its number (take one share).
    Take,
    /// A new content right behind A (insert if absent).
    Insert,
    /// A new content with A's fingerprint (insert if absent).
    InsertSibling,
    /// A new frame with A's content (add a dup; insert, if A has gone).
    AddDup,
    /// A share of frame 0, its last where nobody takes one (give up; remove a dup; erase).
    GiveUp,
    /// A lookup of A when a prune is due (chain to regular; the best dup first).
    Prune,
    /// Frame 0 goes to the migrate queue (remove a dup; erase).
    ToQueue,
    /// Frame 2 comes from the migrate queue and joins A (place from the queue).
    Place,
    /// Whatever is queued goes to the other tree (place from the queue).
    PlaceThere,
    /// The range of all frames but 0 and 1 is closed and walked (remove a range).
    Collect,
    /// A new content in the other half: the table doubles (double the table).
    Grow,
    /// Lookup of C, which uses bucket 1 if there is one (first use of a bucket).
    FirstUse,
    /// One share of A, given up again (give up the last share, of whatever the others left).
    Visit,
    /// A new frame with A's content, gone at once (add a dup, remove it, erase).
    Brief,
    /// A frame that came back is used again (grace period of frames).
    Reuse,
}

/// All of them.
pub const ALL: [Op; 17] = [
    Op::Hit,
    Op::Miss,
    Op::Take,
    Op::Insert,
    Op::InsertSibling,
    Op::AddDup,
    Op::GiveUp,
    Op::Prune,
    Op::ToQueue,
    Op::Place,
    Op::PlaceThere,
    Op::Collect,
    Op::Grow,
    Op::FirstUse,
    Op::Visit,
    Op::Brief,
    Op::Reuse,
];

/// What a thread did.
#[derive(Default)]
struct Done {
    taken: Shares,
    given: Shares,
    created: Vec<Kpfn>,
    /// The frames that a settled walk found.
    collected: Option<Vec<Kpfn>>,
}

impl Op {
    fn run(self, me: u64, forest: &Forest) -> Done {
        let mut done = Done::default();
        let handle = forest.register();
        // Before the guard, which would hold frames back.
        let reused = if self == Self::Reuse { forest.freed() } else { None };
        let guard = handle.pin();
        let mut enter = |kpfn| {
            merge(forest, &guard, kpfn, 1);
            done.created.push(kpfn);
            done.taken.push(kpfn);
        };
        match self {
            Self::Insert => enter(Kpfn(4 + me)),
            Self::AddDup | Self::Brief => enter(Kpfn(7 + me)),
            Self::InsertSibling => enter(Kpfn(10 + me)),
            Self::Grow => enter(Kpfn(13 + me)),
            Self::Reuse => reused.into_iter().for_each(enter),
            Self::Hit | Self::Visit => done.taken = lookup(forest, &guard, false),
            Self::Prune => done.taken = lookup(forest, &guard, true),
            Self::Miss => miss(forest, &guard, Content::B),
            Self::FirstUse => miss(forest, &guard, Content::C),
            Self::Take => {
                if forest.take_share(Kpfn(0), LIMIT) {
                    done.taken.push(Kpfn(0));
                }
            }
            Self::GiveUp => done.given.push(Kpfn(0)),
            Self::ToQueue => {
                forest.to_queue(&guard, Kpfn(0));
            }
            Self::Place => place(forest, &guard, HERE),
            Self::PlaceThere => place(forest, &guard, THERE),
            Self::Collect => {
                drop(guard);
                done.collected = collect(forest, &handle);
                return done;
            }
        }
        if matches!(self, Self::Visit | Self::Brief) {
            done.given.clone_from(&done.taken);
        }
        for &kpfn in &done.given {
            forest.give_up(&guard, kpfn);
        }
        done
    }
}

/// One share of A, if it is there.
fn lookup(forest: &Forest, guard: &Guard<'_>, prune: bool) -> Shares {
    let mut out = Vec::new();
    let seen = forest.siblings(HERE, Content::A.fingerprint(), guard);
    if let Some(entry) = equal(&seen, Content::A) {
        forest.reserve(guard, entry, 1, terms(prune), &mut out);
    }
    out.into_iter().map(|(kpfn, _)| kpfn).collect()
}

/// A lookup of what nobody else has the fingerprint of.
fn miss(forest: &Forest, guard: &Guard<'_>, content: Content) {
    let seen = forest.siblings(HERE, content.fingerprint(), guard);
    assert!(seen.len() <= 1);
    assert!(seen.iter().all(|entry| Content::of(entry.kpfn()) == content));
}

/// Takes one frame from the queue and puts it into a tree.
fn place(forest: &Forest, guard: &Guard<'_>, tree: TreeId) {
    let Some(mut queued) = forest.take_queued(guard) else { return };
    let content = Content::of(queued.kpfn());
    assert_eq!(queued.fingerprint(), content.fingerprint());
    loop {
        let seen = forest.siblings(tree, content.fingerprint(), guard);
        let placed = match equal(&seen, content) {
            Some(entry) => forest.place_dup(guard, entry, queued),
            None => forest.place_new(guard, &seen, queued),
        };
        match placed {
            Ok(()) => return,
            Err((back, Refused::Closed)) => return forest.requeue(back),
            Err((back, _)) => queued = back,
        }
    }
}

/// Closes most frames. What a walk finds then, if everyone knew that they were closed.
fn collect(forest: &Forest, handle: &Handle) -> Option<Vec<Kpfn>> {
    let closing = forest.close(&handle.pin(), CLOSED);
    let settled = closing.is_settled();
    let mut found = Vec::new();
    let guard = handle.pin();
    let mut from = Some(Fingerprint::new(0));
    while let Some(next) = from {
        from = forest.collect(&guard, HERE, &CLOSED, next, 1, &mut found);
    }
    // Left closed to the end of the model.
    std::mem::forget(closing);
    settled.then_some(found)
}

/// Runs operations against each other, each in a thread of its own.
pub fn run(start: Start, ops: &[Op]) {
    let givers = ops.iter().filter(|&&op| op == Op::GiveUp).count();
    let queued = ops.iter().any(|op| matches!(op, Op::Place | Op::PlaceThere));
    let (forest, mut shares) = forest(start, givers, queued);
    let mut created: Vec<_> = shares.clone();
    let forest = Arc::new(forest);
    let threads: Vec<_> = (1..)
        .zip(&ops[1..])
        .map(|(me, &op)| {
            let forest = Arc::clone(&forest);
            thread::spawn(move || op.run(me, &forest))
        })
        .collect();
    let mut all = vec![ops[0].run(0, &forest)];
    all.extend(threads.into_iter().map(|thread| thread.join().expect("a model's thread")));

    for done in &all {
        shares.extend(&done.taken);
        created.extend(&done.created);
    }
    for given in all.iter().flat_map(|done| &done.given) {
        let index = shares.iter().position(|kpfn| kpfn == given).expect("given, so it was held");
        shares.swap_remove(index);
    }
    created.sort_unstable();
    created.dedup();
    for found in all.iter().filter_map(|done| done.collected.as_ref()) {
        let handle = forest.register();
        let guard = handle.pin();
        for kpfn in created.iter().filter(|kpfn| CLOSED.contains(kpfn)) {
            let inside =
                matches!(forest.place(&guard, *kpfn), Place::Regular(HERE) | Place::Dup(HERE));
            assert!(!inside || found.contains(kpfn), "{kpfn:?} entered a closed range");
        }
    }
    finish(&forest, shares, &created, !ops.contains(&Op::Collect));
}
