//! A small forest, and what must be true of it in the end.

use std::collections::BTreeMap;

use numerge_stable_tree::{
    EntryRef, Fingerprint, Forest, Guard, Handle, Kpfn, Place, Refused, Siblings, Terms, TreeId,
};

/// The tree that the models work on, and another for frames to migrate to.
pub const HERE: TreeId = TreeId(0);
/// See [`HERE`].
pub const THERE: TreeId = TreeId(1);

/// What a page may hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Content {
    /// In the tree from the start.
    A,
    /// Another content with A's fingerprint.
    A2,
    /// Right behind A.
    B,
    /// In the other half of the fingerprints, so in another bucket once there are two.
    C,
}

impl Content {
    /// Its fingerprint.
    #[must_use]
    pub fn fingerprint(self) -> Fingerprint {
        Fingerprint::new(match self {
            Self::A | Self::A2 => 1 << 64,
            Self::B => (1 << 64) + 1,
            Self::C => 1 << 119,
        })
    }

    /// The content of a frame.
    ///
    /// # Panics
    /// If there is no such frame in a model.
    #[must_use]
    pub fn of(kpfn: Kpfn) -> Self {
        match kpfn.0 {
            0..=3 | 7..=9 => Self::A,
            4..=6 => Self::B,
            10..=12 => Self::A2,
            13..=15 => Self::C,
            n => panic!("no frame {n} in a model"),
        }
    }
}

/// How a model begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// A is a regular node: frame 0.
    Regular,
    /// A is a chain: frame 0, and frame 1 with two sharers.
    Chain,
    /// A is a chain of frames 0 and 1 without room.
    Full,
}

/// Limit on sharers in all models.
pub const LIMIT: u32 = 3;
const LIMIT_SHARES: usize = 3;

/// The range of frames that models close.
pub const CLOSED: std::ops::Range<Kpfn> = Kpfn(2)..Kpfn(16);

/// Terms of a lookup that prunes, or does not.
#[must_use]
pub fn terms(prune: bool) -> Terms {
    Terms { limit: LIMIT, now_ms: 5000, prune_ms: if prune { 1000 } else { u32::MAX } }
}

/// Shares: of each a page that is mapped to the frame.
pub type Shares = Vec<Kpfn>;

/// Makes a forest with one share of frame 0 for each of `givers`, at least one.
#[must_use]
pub fn forest(start: Start, givers: usize, queued: bool) -> (Forest, Shares) {
    let forest = Forest::new(2);
    let handle = forest.register();
    let mut shares = vec![];
    {
        let guard = handle.pin();
        let mut enter = |kpfn: u64, count: usize| {
            let kpfn = Kpfn(kpfn);
            shares.extend(std::iter::repeat_n(kpfn, count));
            merge(&forest, &guard, kpfn, u32::try_from(count).expect("few"));
        };
        match start {
            Start::Regular => enter(0, givers.max(1)),
            Start::Chain => {
                enter(0, givers.max(1));
                enter(1, 2);
            }
            Start::Full => {
                enter(0, LIMIT_SHARES);
                enter(1, LIMIT_SHARES);
            }
        }
        if queued {
            enter(2, 1);
            assert!(forest.to_queue(&guard, Kpfn(2)));
        }
    }
    drop(handle);
    (forest, shares)
}

/// The entry among `seen` that holds `content`.
#[must_use]
pub fn equal<'g>(seen: &Siblings<'g>, content: Content) -> Option<EntryRef<'g>> {
    seen.iter().find(|entry| Content::of(entry.kpfn()) == content)
}

/// Makes a frame and puts it where its content belongs, as the engine does.
pub fn merge(forest: &Forest, guard: &Guard<'_>, kpfn: Kpfn, shares: u32) -> bool {
    forest.create(kpfn, shares);
    let content = Content::of(kpfn);
    loop {
        let seen = forest.siblings(HERE, content.fingerprint(), guard);
        let entered = match equal(&seen, content) {
            Some(entry) => forest.add_dup(guard, entry, kpfn),
            None => forest.insert(guard, &seen, kpfn),
        };
        match entered {
            Ok(()) => return true,
            Err(Refused::Changed) => {}
            Err(Refused::Closed) => return false,
            Err(refused) => panic!("{refused:?}"),
        }
    }
}

/// Checks the forest when all threads are done, then empties it and checks that all of it is gone.
/// `open`: no range is closed, so every share that there is room for can be had.
///
/// # Panics
/// If anything is wrong.
pub fn finish(forest: &Forest, mut shares: Shares, created: &[Kpfn], open: bool) {
    let handle = forest.register();
    let mut held = BTreeMap::<u64, u32>::new();
    for kpfn in &shares {
        *held.entry(kpfn.0).or_default() += 1;
    }
    {
        let guard = handle.pin();
        forest.census(&guard).expect("census");
        for &kpfn in created {
            let sharers = held.get(&kpfn.0).copied().unwrap_or(0);
            assert!(sharers <= LIMIT, "{kpfn:?} is over the limit");
            assert_eq!(forest.sharers(kpfn), sharers, "shares of {kpfn:?}");
            let queued = forest.place(&guard, kpfn) == Place::Queued;
            let gone = forest.place(&guard, kpfn) == Place::Gone;
            assert!(gone == (sharers == 0) || (queued && sharers == 0), "{kpfn:?} is lost");
        }
        for tree in [HERE, THERE] {
            for fingerprint in [Content::A, Content::B, Content::C].map(Content::fingerprint) {
                let entries = forest.siblings(tree, fingerprint, &guard);
                let contents = entries.iter().map(|entry| Content::of(entry.kpfn()));
                let mut contents: Vec<_> = contents.collect();
                contents.sort_unstable();
                let all = contents.len();
                contents.dedup();
                assert_eq!(contents.len(), all, "a content has two entries");
                if open {
                    shares.extend(fill(forest, &guard, &entries));
                }
            }
        }
    }
    empty(forest, &handle, shares);
    let mut freed: Vec<_> = std::iter::from_fn(|| forest.freed()).collect();
    freed.sort_unstable();
    assert_eq!(freed, created, "frames that came back");
}

/// Takes every share that is to be had, and checks that there is no room then.
fn fill<'g>(forest: &Forest, guard: &'g Guard<'_>, seen: &Siblings<'g>) -> Shares {
    let mut out = Vec::new();
    for entry in seen.iter() {
        forest.reserve(guard, entry, u64::MAX, terms(false), &mut out);
        assert_eq!(forest.sharers(entry.kpfn()), LIMIT, "room was not found");
    }
    out.iter().flat_map(|&(kpfn, n)| std::iter::repeat_n(kpfn, n as usize)).collect()
}

fn empty(forest: &Forest, handle: &Handle, shares: Shares) {
    let guard = handle.pin();
    for kpfn in shares {
        forest.give_up(&guard, kpfn);
    }
    assert!(forest.take_queued(&guard).is_none(), "a queued frame without sharers");
    let census = forest.census(&guard).expect("census");
    assert_eq!(census, numerge_stable_tree::Census::default());
}
