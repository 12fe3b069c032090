//! A page that enters the unstable tree and a frame that enters the stable tree, at a time: at least
//! one of them finds the other. As in `find::take_or_wait` and `supply::wake_waiting` of the engine,
//! each is looked for again after the other has entered.

use loom::sync::Arc;
use loom::thread;

use numerge_stable_tree::{Forest, Guard, Kpfn, PageId, PageState, Record, Records, UnstableTree};

use crate::world::{Content, HERE, LIMIT, Start, equal, finish, forest, merge, terms};

/// The page that waits for a partner.
const PAGE: PageId = PageId(0);

struct Trees {
    forest: Forest,
    unstable: UnstableTree,
    records: [Record; 1],
}

impl Trees {
    fn records(&self) -> &[Record] {
        &self.records
    }

    /// A share of a frame with this content, if there is one with room.
    fn share(&self, guard: &Guard<'_>, content: Content) -> Option<Kpfn> {
        let mut out = Vec::new();
        let seen = self.forest.siblings(HERE, content.fingerprint(), guard);
        let entry = equal(&seen, content)?;
        self.forest.reserve(guard, entry, 1, terms(false), &mut out);
        out.first().map(|(kpfn, _)| *kpfn)
    }

    /// Looks for a frame, then for a partner, and for a frame again. Gives the page's share.
    fn enter(&self, content: Content) -> Option<Kpfn> {
        let handle = self.forest.register();
        let guard = handle.pin();
        if let Some(kpfn) = self.share(&guard, content) {
            return Some(kpfn);
        }
        let print = content.fingerprint();
        assert_eq!(self.unstable.take_or_insert(self.records(), print, PAGE), None);
        let kpfn = self.share(&guard, content)?;
        if self.unstable.take_page(self.records(), PAGE) {
            return Some(kpfn);
        }
        // The other thread has it.
        self.forest.give_up(&guard, kpfn);
        None
    }

    /// Makes a frame for two pages, and for the one that waits, if it is found in time. Gives how many
    /// shares the frame began with, and whether the page was found afterwards.
    fn publish(&self, content: Content, kpfn: Kpfn) -> (u32, bool) {
        let handle = self.forest.register();
        let guard = handle.pin();
        let take = || self.unstable.take(self.records(), content.fingerprint()).is_some();
        let shares = 2 + u32::from(take());
        assert!(merge(&self.forest, &guard, kpfn, shares));
        (shares, shares < LIMIT && take())
    }
}

/// Lets a page with the content of a new frame come when the frame does. `start` and `kpfn` say
/// whether there are frames with that content already.
///
/// # Panics
/// If the page waits though there is room for it.
pub fn run(start: Start, kpfn: Kpfn) {
    let content = Content::of(kpfn);
    let (forest, mut shares) = forest(start, 0, false);
    let mut created: Vec<Kpfn> = shares.clone();
    created.push(kpfn);
    created.sort_unstable();
    created.dedup();
    let (unstable, records) = (UnstableTree::default(), [Record::default()]);
    let trees = Arc::new(Trees { forest, unstable, records });
    let other = Arc::clone(&trees);
    let publishing = thread::spawn(move || other.publish(content, kpfn));
    let shared = trees.enter(content);
    let (published, woken) = publishing.join().expect("a model's thread");

    let merged = shared.is_some() || published == LIMIT;
    assert!(merged || woken, "the page waits, and there is room for it");
    assert!(!(merged && woken), "the page is two threads' at a time");
    let left = trees.records().record(PAGE).state();
    assert!(!matches!(left, PageState::Unshared(_)), "the page is in the tree still");
    assert_eq!(trees.unstable.pages(), 0);
    shares.extend(shared);
    shares.extend((0..published).map(|_| kpfn));
    finish(&trees.forest, shares, &created, true);
}
