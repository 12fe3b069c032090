//! What the tests share: a merger on a machine with nodes, and memory whose every byte is known.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use numerge::{Counters, Knob, Merger, Nid, NodeReport, Options, Region};
use numerge_topology::Topology;

use crate::{kernel, sums};

pub(crate) const PAGE: usize = 4096;

/// The longest that anything is waited for; guests are emulated.
const PATIENCE: Duration = Duration::from_secs(120);

/// Contents that writers choose from.
const CONTENTS: u64 = 5;

/// A merger, and the machine that it is on.
pub(crate) struct Bed {
    pub(crate) merger: Merger,
    pub(crate) topology: Topology,
}

/// What a test may count on to the page: `pages_shared`, `pages_sharing`, `stable_node_chains` and
/// `stable_node_dups`.
pub(crate) type Figures = [u64; 4];

impl Bed {
    /// Scans only when told to.
    pub(crate) fn by_hand() -> Self {
        Self::with(Options { background: false, ..Options::default() })
    }

    /// Scans by its threads, once it is started.
    pub(crate) fn at_work() -> Self {
        Self::with(Options::default())
    }

    /// Starts scanning, and waits until merging is under way.
    pub(crate) fn start(&self) {
        self.merger.set(Knob::Run, 1).unwrap();
        self.wait_for_scans(4);
        assert!(self.merger.counters().pages_shared > 0);
    }

    pub(crate) fn with(options: Options) -> Self {
        let topology = kernel::quiet();
        let merger = Merger::new(options).unwrap();
        merger.set(Knob::PagesToScan, 100_000).unwrap();
        merger.set(Knob::SleepMillisecs, 0).unwrap();
        merger.set(Knob::StableNodeChainsPruneMillisecs, 0).unwrap();
        merger.set(Knob::MergeAcrossNodes, 0).unwrap();
        Self { merger, topology }
    }

    /// The nodes that memory can be on.
    pub(crate) fn memory_nodes(&self) -> Vec<Nid> {
        let nodes = self.topology.nodes().iter().filter(|node| node.memory_bytes > 0);
        nodes.map(|node| node.nid).collect()
    }

    /// The first and the last of them.
    pub(crate) fn two_nodes(&self) -> (Nid, Nid) {
        let nodes = self.memory_nodes();
        (nodes[0], nodes[nodes.len() - 1])
    }

    /// Registers pages that hold what `content` says, on a node.
    pub(crate) fn guest(&self, nid: Nid, pages: usize, content: impl Fn(usize) -> u64) -> Guest {
        let guest = Guest::new(&self.merger, pages);
        (0..pages).for_each(|page| guest.write(page, content(page)));
        guest.place(0..pages, nid);
        guest
    }

    /// Registers pages all of which are equal, on a node.
    pub(crate) fn equal(&self, nid: Nid, pages: usize, content: u64) -> Guest {
        self.guest(nid, pages, |_| content)
    }

    /// Scans until scans change nothing any more, and checks that everything adds up.
    pub(crate) fn settle(&self) -> Counters {
        self.settle_with(|| self.merger.full_scan())
    }

    /// Waits until the threads find nothing to change any more, and checks that everything adds up.
    pub(crate) fn come_to_rest(&self) -> Counters {
        self.settle_with(|| self.wait_for_scans(1))
    }

    /// Waits for full scans by the threads.
    pub(crate) fn wait_for_scans(&self, count: u64) {
        let goal = self.merger.counters().full_scans + count;
        wait_for("full scans", || self.merger.counters().full_scans >= goal);
    }

    fn settle_with(&self, scan: impl Fn()) -> Counters {
        let key = |c: &Counters| {
            (
                (c.pages_shared, c.pages_sharing, c.pages_unshared, c.pages_broken),
                (c.stable_node_chains, c.stable_node_dups, c.stable_nodes_replaced),
            )
        };
        let mut last = self.merger.counters();
        let mut quiet = 0;
        for _ in 0..200 {
            scan();
            let now = self.merger.counters();
            let at_rest = now.pages_volatile == now.pages_held + now.pages_over_budget
                && now.stable_nodes_queued == 0;
            quiet = if at_rest && key(&now) == key(&last) { quiet + 1 } else { 0 };
            last = now;
            if quiet == 3 {
                self.check_sums();
                return now;
            }
        }
        panic!("never at rest: {last:?}, {:?}", self.merger.nodes())
    }

    /// S5.6, for the machine and for each node. Only at rest.
    pub(crate) fn check_sums(&self) {
        let (c, nodes) = self.counted();
        let all = c.pages_shared
            + c.pages_sharing
            + c.pages_unshared
            + c.pages_volatile
            + c.ksm_zero_pages
            + c.pages_untouched;
        assert_eq!(c.pages_registered, all, "{c:?}");
        assert_eq!(c.stable_nodes_queued, 0, "{c:?}");
        sums::nodes_add_up(&c, &nodes);
        let frames = self.merger.pools().into_iter().flat_map(|pool| pool.frames.into_values());
        assert_eq!(c.pages_shared, frames.sum::<u64>());
        let errors = self.merger.take_errors();
        assert!(errors.is_empty(), "{errors:?}");
    }

    /// Counters and what they are by node, of one moment: at rest, too, a scan may end between two questions.
    fn counted(&self) -> (Counters, Vec<NodeReport>) {
        // By hand, it may be 2, and to set that again would unmerge all.
        let is_at_work = self.merger.knob(Knob::Run) == 1;
        if is_at_work {
            self.merger.set(Knob::Run, 0).unwrap();
        }
        let scans = |counters: &Counters| (counters.full_scans, counters.pages_scanned);
        let (mut before, mut nodes);
        while {
            (before, nodes) = (self.merger.counters(), self.merger.nodes());
            scans(&self.merger.counters()) != scans(&before)
        } {}
        if is_at_work {
            self.merger.set(Knob::Run, 1).unwrap();
        }
        (before, nodes)
    }

    /// A node's report.
    pub(crate) fn node(&self, nid: Nid) -> NodeReport {
        let mut nodes = self.merger.nodes().into_iter();
        nodes.find(|node| node.nid == nid).unwrap()
    }

    /// What a node's frames add up to.
    pub(crate) fn figures(&self, nid: Nid) -> Figures {
        let node = self.node(nid);
        [node.pages_shared, node.pages_sharing, node.stable_node_chains, node.stable_node_dups]
    }

    /// Where the frames of a node's pool are.
    pub(crate) fn pool(&self, nid: Nid) -> BTreeMap<Nid, u64> {
        let mut pools = self.merger.pools().into_iter();
        pools.find(|pool| pool.nid == nid).unwrap().frames
    }

    /// Unmerges everything, and checks that no frame is left and that the guests are whole.
    pub(crate) fn unmerge(&self, guests: &[&Guest]) {
        self.merger.set(Knob::Run, 2).unwrap();
        let c = self.merger.counters();
        assert_eq!((c.pages_shared, c.pages_sharing, c.stable_node_chains), (0, 0, 0), "{c:?}");
        assert!(self.merger.pools().iter().all(|pool| pool.frames.is_empty()));
        guests.iter().for_each(|guest| guest.check());
    }
}

/// Waits for something that must come.
pub(crate) fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(start.elapsed() < PATIENCE, "{what}: waited for in vain");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Registered memory, and what each page of it must hold.
pub(crate) struct Guest {
    pub(crate) region: Region,
    holds: Vec<AtomicU64>,
}

impl Guest {
    /// Memory that nobody has touched yet.
    pub(crate) fn new(merger: &Merger, pages: usize) -> Self {
        let region = merger.allocate(pages * PAGE).unwrap();
        Self { region, holds: (0..pages).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(crate) fn pages(&self) -> usize {
        self.holds.len()
    }

    /// Fills a page so that every byte depends on `content`. A page has one writer at a time.
    pub(crate) fn write(&self, page: usize, content: u64) {
        self.holds[page].store(content, Ordering::SeqCst);
        self.region.write(page * PAGE, &page_of(content)).unwrap();
    }

    /// Compares a page with what it must hold; only its writer may ask while it is written to.
    pub(crate) fn check_page(&self, page: usize) {
        let mut found = [0; PAGE];
        self.region.read(page * PAGE, &mut found).unwrap();
        let content = self.holds[page].load(Ordering::SeqCst);
        assert!(found == page_of(content), "page {page} changed: it held {content}");
    }

    /// Compares all pages with what they must hold.
    pub(crate) fn check(&self) {
        (0..self.pages()).for_each(|page| self.check_page(page));
    }

    /// Addresses of pages.
    pub(crate) fn addresses(&self, pages: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let start = self.region.as_ptr().addr();
        pages.into_iter().map(|page| start + page * PAGE).collect()
    }

    /// Moves pages, or the frames that they are mapped to, to a node.
    pub(crate) fn place(&self, pages: impl IntoIterator<Item = usize>, nid: Nid) {
        let pages: Vec<usize> = pages.into_iter().collect();
        wait_for("moving pages", || {
            // The kernel moves only what is mapped, and a merge may take it away again.
            pages.iter().for_each(|page| self.check_page(*page));
            kernel::move_to(&self.addresses(pages.iter().copied()), nid)
        });
    }

    /// The node of each page, as the kernel says.
    pub(crate) fn nodes(&self) -> Vec<Option<Nid>> {
        self.check();
        kernel::nodes_of(&self.addresses(0..self.pages()))
    }

    /// That all pages are on a node, by three ways to ask.
    pub(crate) fn check_is_on(&self, nid: Nid) {
        assert!(self.nodes().iter().all(|found| *found == Some(nid)), "{:?}", self.nodes());
        let all = BTreeMap::from([(nid, self.pages() as u64)]);
        let start = self.region.as_ptr().addr();
        assert_eq!(kernel::numa_maps(&(start..start + self.region.len())), all);
        assert_eq!(self.region.pages_by_node().unwrap(), all);
    }

    /// How many of the pages are mapped to each page frame of the machine.
    pub(crate) fn page_frames(&self) -> BTreeMap<u64, u64> {
        self.check();
        kernel::page_frames(&self.addresses(0..self.pages()))
    }

    /// The files that its pages are mapped to, by their inodes.
    pub(crate) fn files(&self) -> BTreeSet<u64> {
        kernel::files(&self.addresses(0..self.pages()))
    }
}

/// A page every byte of which depends on `content`.
fn page_of(content: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    for (word, place) in page.chunks_exact_mut(8).zip(1_u64..) {
        let value = (content ^ place << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes());
    }
    page
}

/// Random numbers, the same for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// Does something while two programs, on a node if one is given, keep writing to all pages of the
/// guests and check each page before they write to it. Everything is checked once more afterwards.
pub(crate) fn while_written<T>(
    bed: &Bed,
    guests: &[&Guest],
    nid: Option<Nid>,
    act: impl FnOnce() -> T,
) -> T {
    const WRITERS: usize = 2;
    // Relaxed, below: a flag and a counter; what is read after the threads' end they have published.
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let done = thread::scope(|scope| {
        // Whatever fails below, the threads must end.
        let _stop = StopOnDrop(&stop);
        for writer in 0..WRITERS {
            let (stop, writes) = (&stop, &writes);
            scope.spawn(move || {
                if let Some(nid) = nid {
                    bed.topology.pin_current_thread(nid).unwrap();
                }
                let _stop = StopOnDrop(stop);
                let mut random = Random(writer as u64 + 1);
                while !stop.load(Ordering::Relaxed) {
                    let guest = guests[random.below(guests.len())];
                    let page = random.below(guest.pages() / WRITERS) * WRITERS + writer;
                    guest.check_page(page);
                    guest.write(page, random.below(usize::try_from(CONTENTS).unwrap()) as u64);
                    writes.fetch_add(1, Ordering::Relaxed);
                    if random.below(16) == 0 {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            });
        }
        let before = writes.load(Ordering::Relaxed);
        let done = act();
        wait_for("writes", || {
            stop.load(Ordering::Relaxed) || writes.load(Ordering::Relaxed) > before
        });
        done
    });
    guests.iter().for_each(|guest| guest.check());
    done
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Pages of a guest by number.
pub(crate) fn every(step: usize, from: usize, pages: usize) -> std::iter::StepBy<Range<usize>> {
    (from..pages).step_by(step)
}
