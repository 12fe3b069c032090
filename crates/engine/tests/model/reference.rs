//! A sequential model of SEMANTICS S2 to S5: what the counters must be after any history.
//!
//! It takes one page after the other, as the kernel does, knows no batches, runs, epochs or
//! records, and keeps everything in maps. Which of several frames with room a page of a batch gets
//! is the engine's to choose; so after each step the model checks that the numbers are its own and
//! that the engine's choice is lawful, and takes the choice over ([`Model::adopt`]).

use std::collections::{BTreeMap, BTreeSet};

/// A page's content; 0 is a page of zeros.
pub(crate) type Content = u64;
/// A node, by its place among the nodes.
pub(crate) type Node = usize;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Untouched,
    Unread,
    Seen(Content),
    Unshared(Class),
    Merged(u64),
    Zero,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    content: Option<Content>,
    node: Node,
    dirty: bool,
    pending: bool,
    state: State,
}

/// The tree of frames that are in none: on the migrate queue.
const QUEUED: Node = usize::MAX;

/// What is merged with each other: equal content, in one tree.
pub(crate) type Class = (Node, Content);

#[derive(Clone, Debug)]
struct Frame {
    class: Class,
    node: Node,
    sharers: BTreeSet<usize>,
}

/// The knobs that the model knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Knobs {
    pub(crate) max_page_sharing: usize,
    pub(crate) merge_across_nodes: bool,
    pub(crate) use_zero_pages: bool,
    pub(crate) prune_ms: u32,
}

/// The counters that the model predicts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Numbers {
    pub(crate) shared: u64,
    pub(crate) sharing: u64,
    pub(crate) unshared: u64,
    pub(crate) volatile: u64,
    pub(crate) zero: u64,
    pub(crate) untouched: u64,
    pub(crate) chains: u64,
    pub(crate) dups: u64,
    pub(crate) full_scans: u64,
}

/// The whole machine and engine.
pub(crate) struct Model {
    pub(crate) knobs: Knobs,
    pub(crate) now_ms: u32,
    pages: Vec<Page>,
    frames: BTreeMap<u64, Frame>,
    chains: BTreeSet<Class>,
    /// When a content that is in a tree was last pruned. One that never was may be at once, once
    /// the engine has run for as long as two prunes are apart.
    pruned_at: BTreeMap<Class, u32>,
    /// The pages of each region, and the node whose shard scans it.
    regions: Vec<(Vec<usize>, Node)>,
    /// Which nodes are online.
    online: Vec<bool>,
    /// Shards that ended a pass of the full scan that is under way.
    ended: Vec<bool>,
    full_scans: u64,
    next_frame: u64,
}

const UNTOUCHED: Page =
    Page { content: None, node: 0, dirty: false, pending: false, state: State::Untouched };

impl Model {
    /// `regions`: for each node, the pages of the region that is at home there.
    pub(crate) fn new(knobs: Knobs, pages: usize, regions: Vec<Vec<usize>>) -> Self {
        Self {
            knobs,
            now_ms: 0,
            pages: vec![UNTOUCHED; pages],
            frames: BTreeMap::new(),
            chains: BTreeSet::new(),
            pruned_at: BTreeMap::new(),
            online: vec![true; regions.len()],
            ended: vec![false; regions.len()],
            regions: regions.into_iter().zip(0..).collect(),
            full_scans: 0,
            next_frame: 0,
        }
    }

    pub(crate) fn content(&self, page: usize) -> Content {
        self.pages[page].content.unwrap_or(0)
    }

    /// The program writes; memory that is new is on `node`.
    pub(crate) fn write(&mut self, page: usize, content: Content, node: Node) {
        let has_own = match self.pages[page].state {
            State::Merged(_) | State::Zero => self.pages[page].dirty,
            _ => self.pages[page].content.is_some(),
        };
        let page = &mut self.pages[page];
        if !has_own {
            page.node = node;
        }
        page.content = Some(content);
        page.dirty = true;
    }

    /// The program unmaps a page, and the engine is told.
    pub(crate) fn vanish(&mut self, number: usize) {
        if let State::Merged(frame) = self.pages[number].state {
            self.unshare(number, frame);
        }
        let node = self.pages[number].node;
        self.pages[number] = Page { node, ..UNTOUCHED };
    }

    /// The operating system moves a page's own memory.
    pub(crate) fn move_page(&mut self, page: usize, node: Node) {
        self.pages[page].node = node;
    }

    /// The operating system moves a frame.
    pub(crate) fn move_frame(&mut self, frame: u64, node: Node) {
        self.frames.get_mut(&frame).expect("a frame in use").node = node;
    }

    pub(crate) fn frames(&self) -> Vec<u64> {
        self.frames.keys().copied().collect()
    }

    fn tree(&self, node: Node) -> Node {
        if self.knobs.merge_across_nodes { 0 } else { node }
    }

    /// Every page is visited once.
    pub(crate) fn full_scan(&mut self) {
        (0..self.online.len()).for_each(|shard| {
            self.scan(shard);
        });
    }

    /// Every page of a shard is visited once. When all shards have done that, a full scan is over.
    /// False, and nothing is done, if the node is offline.
    pub(crate) fn scan(&mut self, shard: usize) -> bool {
        if !self.online[shard] {
            return false;
        }
        self.give_away(shard);
        if !self.knobs.merge_across_nodes && self.online.len() > 1 {
            self.migrate(shard);
        }
        let pages: Vec<usize> = self
            .regions
            .iter()
            .filter(|(_, home)| *home == shard)
            .flat_map(|(r, _)| r.clone())
            .collect();
        for &page in &pages {
            self.drop_if_moved(page);
        }
        let candidates: Vec<usize> = pages.into_iter().filter(|page| self.judge(*page)).collect();
        let mut looked_up = BTreeSet::new();
        for page in candidates {
            self.merge(page, &mut looked_up);
        }
        self.ended[shard] = true;
        if self.ended.iter().zip(&self.online).all(|(ended, online)| *ended || !online) {
            self.ended.fill(false);
            self.full_scans += 1;
        }
        true
    }

    /// The node that does a node's work: itself, or the first that is online, for all are as near.
    fn shard_for(&self, node: Node) -> Node {
        if self.online[node] {
            return node;
        }
        self.online.iter().position(|online| *online).expect("one is online")
    }

    /// Regions most of whose own memory is elsewhere are scanned from there from now on.
    fn give_away(&mut self, shard: usize) {
        if self.online.len() == 1 {
            return;
        }
        for region in 0..self.regions.len() {
            let (pages, home) = &self.regions[region];
            if *home != shard {
                continue;
            }
            let mut count = vec![0; self.online.len()];
            for page in pages.iter().map(|page| &self.pages[*page]) {
                let own = !matches!(page.state, State::Merged(_) | State::Zero);
                if own && page.content.is_some() {
                    count[self.shard_for(page.node)] += 1;
                }
            }
            let most = (0..count.len()).max_by_key(|node| (count[*node], *node == shard));
            self.move_home(region, most.expect("there are nodes"));
        }
    }

    fn move_home(&mut self, region: usize, home: Node) {
        if self.regions[region].1 != home {
            self.regions[region].1 = home;
            self.ended[home] = false;
        }
    }

    /// A candidate whose memory was moved off its tree's node is none any more (S4.1).
    fn drop_if_moved(&mut self, number: usize) {
        let page = self.pages[number];
        if let State::Unshared((tree, _)) = page.state
            && self.tree(page.node) != tree
        {
            self.pages[number].state = State::Unread;
            self.pages[number].pending = true;
        }
    }

    /// A node goes offline; false: it is the last.
    pub(crate) fn offline(&mut self, node: Node) -> bool {
        if self.online[node] {
            if self.online.iter().filter(|online| **online).count() == 1 {
                return false;
            }
            self.online[node] = false;
            self.ended[node] = false;
            for region in 0..self.regions.len() {
                if self.regions[region].1 == node {
                    self.move_home(region, self.shard_for(node));
                }
            }
        }
        let there: Vec<u64> = self
            .frames
            .iter()
            .filter(|(_, frame)| frame.node == node)
            .map(|(number, _)| *number)
            .collect();
        for frame in there {
            for page in self.frames[&frame].sharers.clone() {
                self.unshare(page, frame);
                let page = &mut self.pages[page];
                if !page.dirty {
                    page.node = node;
                }
                page.state = State::Unread;
                page.pending = true;
            }
        }
        true
    }

    /// A node is back.
    pub(crate) fn online(&mut self, node: Node) {
        self.online[node] = true;
    }

    /// Whether the page is a candidate now. On a node that is offline nothing is merged.
    fn judge(&mut self, number: usize) -> bool {
        let seen_twice = self.is_seen_twice(number);
        let online = self.online[self.pages[number].node];
        self.pages[number].pending |= seen_twice && !online;
        seen_twice && online
    }

    /// Looks at a page (S3.1).
    fn is_seen_twice(&mut self, number: usize) -> bool {
        let page = self.pages[number];
        let Some(content) = page.content else { return false };
        let was_pending = page.pending;
        self.pages[number].dirty = false;
        self.pages[number].pending = false;
        if page.dirty {
            match page.state {
                State::Seen(known) if known == content => return true,
                State::Unshared((_, known)) if known == content => return false,
                State::Merged(frame) => self.unshare(number, frame),
                _ => {}
            }
            self.pages[number].state = State::Seen(content);
            self.pages[number].pending = true;
            return false;
        }
        match page.state {
            State::Seen(_) if was_pending => true,
            State::Unread | State::Untouched if was_pending => {
                self.pages[number].state = State::Seen(content);
                self.pages[number].pending = true;
                false
            }
            _ => false,
        }
    }

    fn unshare(&mut self, page: usize, frame: u64) {
        let known = self.frames.get_mut(&frame).expect("a sharer's frame is in use");
        assert!(known.sharers.remove(&page));
        if known.sharers.is_empty() {
            let class = known.class;
            self.frames.remove(&frame);
            self.last_of(class);
        }
    }

    /// An empty chain is freed at once (S2.5).
    fn last_of(&mut self, class: Class) {
        if self.frames_of(class).next().is_none() {
            self.chains.remove(&class);
            self.pruned_at.remove(&class);
        }
    }

    fn frames_of(&self, class: Class) -> impl Iterator<Item = (u64, &Frame)> {
        self.frames
            .iter()
            .filter(move |(_, frame)| frame.class == class)
            .map(|(number, frame)| (*number, frame))
    }

    /// S3.2, for one page.
    fn merge(&mut self, number: usize, looked_up: &mut BTreeSet<Class>) {
        let page = self.pages[number];
        let content = page.content.expect("a candidate has content");
        if content == 0 && self.knobs.use_zero_pages {
            self.pages[number].state = State::Zero;
            return;
        }
        let class = (self.tree(page.node), content);
        if looked_up.insert(class) {
            self.prune(class);
        }
        let limit = self.knobs.max_page_sharing;
        let fullest = self
            .frames_of(class)
            .filter(|(_, frame)| frame.sharers.len() < limit)
            .max_by_key(|(_, frame)| frame.sharers.len())
            .map(|(number, _)| number);
        if let Some(frame) = fullest {
            self.share(number, frame);
            return;
        }
        while let Some(partner) = self.partner(class, number) {
            if self.tree(self.pages[partner].node) != class.0
                || self.pages[partner].content != Some(content)
            {
                // Its memory was moved off the tree's node (S4.1), or was written to.
                self.pages[partner].state = State::Unread;
                self.pages[partner].pending = true;
                continue;
            }
            let frame = self.next_frame;
            self.next_frame += 1;
            self.frames.insert(frame, Frame { class, node: page.node, sharers: BTreeSet::new() });
            if self.frames_of(class).count() == 2 {
                self.chains.insert(class);
            }
            self.pages[partner].dirty = false;
            self.share(partner, frame);
            self.share(number, frame);
            return;
        }
        self.pages[number].state = State::Unshared(class);
    }

    fn partner(&self, class: Class, number: usize) -> Option<usize> {
        (0..self.pages.len())
            .find(|page| *page != number && self.pages[*page].state == State::Unshared(class))
    }

    fn share(&mut self, page: usize, frame: u64) {
        let known = self.frames.get_mut(&frame).expect("a frame in use");
        known.sharers.insert(page);
        assert!(known.sharers.len() <= self.knobs.max_page_sharing);
        self.pages[page].state = State::Merged(frame);
    }

    /// S2.5, at a lookup.
    fn prune(&mut self, class: Class) {
        let pruned_at = self.pruned_at.entry(class).or_default();
        if !self.chains.contains(&class)
            || self.now_ms.wrapping_sub(*pruned_at) < self.knobs.prune_ms
        {
            return;
        }
        *pruned_at = self.now_ms;
        let sharers: Vec<usize> =
            self.frames_of(class).map(|(_, frame)| frame.sharers.len()).collect();
        if let [one] = sharers[..]
            && one < self.knobs.max_page_sharing
        {
            self.chains.remove(&class);
        }
    }

    /// S4.3 and S4.4: what the operating system moved is put in the right trees, at the beginning of
    /// a shard's pass. A lone sharer waits for the pass of the shard that scans it.
    fn migrate(&mut self, shard: usize) {
        let mut moved: Vec<(u64, Class)> = self
            .frames
            .iter()
            .filter(|(_, frame)| frame.node != frame.class.0)
            .map(|(number, frame)| (*number, frame.class))
            .collect();
        for (frame, class) in &moved {
            // Out of all trees first: nothing is placed beside what is itself misplaced.
            self.frames.get_mut(frame).expect("in use").class = (QUEUED, class.1);
            self.last_of(*class);
        }
        // Lone sharers last: they are better merged into another frame.
        moved.sort_by_key(|(number, _)| (self.frames[number].sharers.len() == 1, *number));
        for (number, (_, content)) in moved {
            let frame = self.frames[&number].clone();
            let class = (frame.node, content);
            let resident = self.frames_of(class).next().is_some();
            if resident && frame.sharers.len() == 1 {
                let home = |page: &usize| {
                    self.regions
                        .iter()
                        .find(|(pages, _)| pages.contains(page))
                        .map(|(_, home)| *home)
                };
                if !frame.sharers.iter().all(|page| home(page) == Some(shard)) {
                    continue;
                }
                self.prune(class);
                let room = self
                    .frames_of(class)
                    .filter(|(_, frame)| frame.sharers.len() < self.knobs.max_page_sharing)
                    .max_by_key(|(_, frame)| frame.sharers.len())
                    .map(|(number, _)| number);
                if let Some(target) = room {
                    let page = *frame.sharers.first().expect("one");
                    self.frames.remove(&number);
                    if self.pages[page].dirty && self.pages[page].content != Some(content) {
                        // Written to meanwhile: it has its own copy, which the next look finds.
                        self.pages[page].state = State::Unread;
                        self.pages[page].pending = true;
                    } else {
                        self.pages[page].dirty = false;
                        self.share(page, target);
                    }
                    continue;
                }
            }
            self.frames.get_mut(&number).expect("in use").class = class;
            if resident {
                self.chains.insert(class);
            }
        }
    }

    /// `run=2`: what was seen of the pages is forgotten too, and scanning begins anew.
    pub(crate) fn unmerge(&mut self) {
        for page in &mut self.pages {
            if let State::Merged(frame) = page.state
                && !page.dirty
            {
                page.node = self.frames[&frame].node;
            }
            if page.state != State::Untouched {
                page.state = State::Untouched;
                page.pending = true;
            }
        }
        self.frames.clear();
        self.chains.clear();
        self.pruned_at.clear();
    }

    /// `max_page_sharing` or `merge_across_nodes`; false: EBUSY.
    pub(crate) fn set(&mut self, max_page_sharing: usize, merge_across_nodes: bool) -> bool {
        let same = max_page_sharing == self.knobs.max_page_sharing
            && merge_across_nodes == self.knobs.merge_across_nodes;
        if !self.frames.is_empty() {
            return same;
        }
        self.knobs.max_page_sharing = max_page_sharing;
        if merge_across_nodes != self.knobs.merge_across_nodes {
            self.knobs.merge_across_nodes = merge_across_nodes;
            for page in &mut self.pages {
                if matches!(page.state, State::Unshared(_)) {
                    page.state = State::Unread;
                    page.pending = true;
                }
            }
        }
        true
    }

    pub(crate) fn numbers(&self) -> Numbers {
        let count = |wanted: fn(&State) -> bool| {
            self.pages.iter().filter(|page| wanted(&page.state)).count() as u64
        };
        let merged = count(|state| matches!(state, State::Merged(_)));
        let shared = self.frames.len() as u64;
        Numbers {
            shared,
            sharing: merged - shared,
            unshared: count(|state| matches!(state, State::Unshared(_))),
            volatile: count(|state| matches!(state, State::Seen(_) | State::Unread)),
            zero: count(|state| *state == State::Zero),
            untouched: count(|state| *state == State::Untouched),
            chains: self.chains.len() as u64,
            dups: self.chains.iter().map(|class| self.frames_of(*class).count() as u64).sum(),
            full_scans: self.full_scans,
        }
    }

    /// Takes over which page is mapped to which frame, after checking that the engine may choose
    /// so: for every content and tree as many pages merged, into as many frames, as in the model;
    /// no frame over the limit, none on another node than its tree's, each with one content.
    ///
    /// `frame_of`: for each page, the frame it is mapped to and the node that frame is on.
    pub(crate) fn adopt(&mut self, frame_of: &[Option<(u64, Node)>]) {
        type Counts = BTreeMap<Class, (usize, usize)>;
        let mut ours = Counts::new();
        let mut theirs = Counts::new();
        let mut frames: BTreeMap<u64, Frame> = BTreeMap::new();
        let one_tree = self.knobs.merge_across_nodes;
        for (number, page) in self.pages.iter().enumerate() {
            let settled = match page.state {
                State::Merged(frame) => {
                    let class = self.frames[&frame].class;
                    ours.entry(class).or_default().0 += 1;
                    Some(class)
                }
                State::Unshared(class) => {
                    ours.entry(class).or_default().1 += 1;
                    Some(class)
                }
                _ => None,
            };
            // A merged page that was written to is merged until that is noticed.
            let merged = match page.state {
                State::Merged(frame) if page.dirty => Some((frame, self.frames[&frame].node)),
                _ => frame_of[number],
            };
            let Some((frame, node)) = merged else {
                if let Some(class) = settled {
                    theirs.entry(class).or_default().1 += 1;
                }
                continue;
            };
            let Some(class) = settled else {
                panic!("page {number} is merged, and has no right to be: {page:?}")
            };
            theirs.entry(class).or_default().0 += 1;
            let known = frames.entry(frame).or_insert_with(|| Frame {
                class,
                node,
                sharers: BTreeSet::new(),
            });
            assert_eq!(known.class, class, "one frame, one content, one tree");
            let in_place = one_tree || class.0 == QUEUED || node == class.0;
            assert!(in_place, "frame {frame} is on node {node}: {class:?}");
            known.sharers.insert(number);
            assert!(known.sharers.len() <= self.knobs.max_page_sharing, "over the limit");
        }
        assert_eq!(theirs, ours, "(merged, unshared) pages by tree and content");
        for (number, page) in self.pages.iter_mut().enumerate() {
            let class = match page.state {
                State::Merged(_) if page.dirty => continue,
                State::Merged(frame) => self.frames[&frame].class,
                State::Unshared(class) => class,
                _ => continue,
            };
            page.state = match frame_of[number] {
                Some((frame, _)) => State::Merged(frame),
                None => State::Unshared(class),
            };
        }
        let by_class = |frames: &BTreeMap<u64, Frame>| {
            let mut counts = BTreeMap::<Class, usize>::new();
            frames.values().for_each(|frame| *counts.entry(frame.class).or_default() += 1);
            counts
        };
        assert_eq!(by_class(&frames), by_class(&self.frames), "frames by tree and content");
        self.next_frame = frames.keys().last().map_or(0, |last| last + 1);
        self.frames = frames;
    }
}
