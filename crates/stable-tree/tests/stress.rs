//! Threads that do everything at once, and a census when they are done.
#![cfg(not(loom))]

use std::sync::atomic::{AtomicU32, Ordering};

use numerge_stable_tree::{
    EntryRef, Fingerprint, Forest, Guard, Kpfn, Refused, Siblings, Terms, TreeId,
};

const THREADS: u64 = 4;
const TREES: u16 = 2;
/// Few, so that threads meet; three share each fingerprint.
const CONTENTS: u32 = 24;
const LIMIT: u32 = 3;

/// What the frames of a thread's own numbers hold. A frame's content is written before the frame is
/// shared, and again only when it came out of `freed`, so it must not be seen to change.
struct Frames {
    contents: Vec<AtomicU32>,
}

impl Frames {
    fn content(&self, kpfn: Kpfn) -> &AtomicU32 {
        &self.contents[usize::try_from(kpfn.0).expect("few frames")]
    }
}

struct Random(u64);

impl Random {
    /// xorshift64: anything below `n`.
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 % u64::from(n)).expect("below n")
    }
}

struct Worker<'f> {
    forest: &'f Forest,
    frames: &'f Frames,
    random: Random,
    /// Numbers of frames to use, never used or freed.
    free: Vec<Kpfn>,
    shares: Vec<Kpfn>,
    clock_ms: u32,
}

fn fingerprint(content: u32) -> Fingerprint {
    Fingerprint::new(u128::from(content / 3) << 115)
}

impl Worker<'_> {
    fn equal<'g>(&self, seen: &Siblings<'g>, content: u32) -> Option<EntryRef<'g>> {
        seen.iter().find(|entry| {
            let found = self.frames.content(entry.kpfn()).load(Ordering::Relaxed);
            assert_eq!(fingerprint(found), fingerprint(content), "a frame was reused too early");
            found == content
        })
    }

    fn tree(&mut self) -> TreeId {
        TreeId(if self.random.below(2) == 0 { 0 } else { 1 })
    }

    fn merge(&mut self, guard: &Guard<'_>, content: u32) {
        let Some(kpfn) = self.free.pop().or_else(|| self.forest.freed()) else { return };
        self.frames.content(kpfn).store(content, Ordering::Relaxed);
        self.forest.create(kpfn, 1);
        self.shares.push(kpfn);
        let tree = self.tree();
        loop {
            let seen = self.forest.siblings(tree, fingerprint(content), guard);
            let entered = match self.equal(&seen, content) {
                Some(entry) => self.forest.add_dup(guard, entry, kpfn),
                None => self.forest.insert(guard, &seen, kpfn),
            };
            match entered {
                Err(Refused::Changed) => {}
                // In a closed range: the frame stays detached.
                Ok(()) | Err(Refused::Closed) => return,
                Err(why) => panic!("{why:?}"),
            }
        }
    }

    fn look(&mut self, guard: &Guard<'_>, content: u32) {
        self.clock_ms += 1;
        let terms = Terms { limit: LIMIT, now_ms: self.clock_ms, prune_ms: 20 };
        let tree = self.tree();
        let seen = self.forest.siblings(tree, fingerprint(content), guard);
        if let Some(entry) = self.equal(&seen, content) {
            let mut out = Vec::new();
            self.forest.reserve(guard, entry, 2, terms, &mut out);
            self.shares.extend(out.iter().flat_map(|&(kpfn, n)| vec![kpfn; n as usize]));
        }
    }

    fn give_up(&mut self, guard: &Guard<'_>) {
        if !self.shares.is_empty() {
            let index = self.random.below(1 << 16) as usize % self.shares.len();
            let kpfn = self.shares.swap_remove(index);
            assert!(self.forest.sharers(kpfn) > 0, "a share was lost");
            self.forest.give_up(guard, kpfn);
        }
    }

    fn place(&mut self, guard: &Guard<'_>) {
        let Some(mut queued) = self.forest.take_queued(guard) else { return };
        let tree = self.tree();
        let content = self.frames.content(queued.kpfn());
        let content = content.load(Ordering::Relaxed);
        loop {
            let seen = self.forest.siblings(tree, fingerprint(content), guard);
            let placed = match self.equal(&seen, content) {
                Some(entry) => self.forest.place_dup(guard, entry, queued),
                None => self.forest.place_new(guard, &seen, queued),
            };
            match placed {
                Ok(()) => return,
                Err((back, Refused::Changed)) => queued = back,
                Err((back, Refused::Closed)) if self.random.below(2) == 0 => {
                    return self.forest.detach(guard, back);
                }
                Err((back, Refused::Closed)) => return self.forest.requeue(back),
                Err((_, why)) => panic!("{why:?}"),
            }
        }
    }

    fn take_offline(&mut self, guard: &Guard<'_>) {
        let first = u64::from(self.random.below(64));
        let range = Kpfn(first)..Kpfn(first + 8);
        let closing = self.forest.close(guard, range.clone());
        let mut found = Vec::new();
        let mut from = Some(Fingerprint::new(0));
        while let Some(next) = from {
            from = self.forest.collect(guard, self.tree(), &range, next, 2, &mut found);
        }
        assert!(found.iter().all(|kpfn| range.contains(kpfn)));
        self.forest.open(closing);
    }

    fn step(&mut self, guard: &Guard<'_>) {
        let content = self.random.below(CONTENTS);
        match self.random.below(100) {
            0..20 => self.merge(guard, content),
            20..50 => self.look(guard, content),
            50..85 => self.give_up(guard),
            85..92 => {
                if let Some(&kpfn) = self.shares.last() {
                    self.forest.to_queue(guard, kpfn);
                }
            }
            92..99 => self.place(guard),
            _ => self.take_offline(guard),
        }
    }
}

fn run(seed: u64, rounds: u64) {
    let forest = Forest::new(TREES);
    let frames = Frames { contents: (0..THREADS * 16).map(|_| AtomicU32::new(0)).collect() };
    let workers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|me| {
                let mut worker = Worker {
                    forest: &forest,
                    frames: &frames,
                    random: Random(seed * THREADS + me + 1),
                    free: (me * 16..me * 16 + 16).map(Kpfn).collect(),
                    shares: Vec::new(),
                    clock_ms: 0,
                };
                scope.spawn(move || {
                    let handle = worker.forest.register();
                    for _ in 0..rounds {
                        let guard = handle.pin();
                        for _ in 0..=worker.random.below(4) {
                            worker.step(&guard);
                        }
                    }
                    (worker.shares, worker.free)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker")).collect()
    });

    let handle = forest.register();
    let never_used: usize = workers.iter().map(|(_, free)| free.len()).sum();
    {
        let guard = handle.pin();
        forest.census(&guard).expect("census");
        for &kpfn in workers.iter().flat_map(|(shares, _)| shares) {
            forest.give_up(&guard, kpfn);
        }
        assert!(forest.take_queued(&guard).is_none());
        assert_eq!(forest.census(&guard).expect("census"), numerge_stable_tree::Census::default());
    }
    while forest.epoch_lag() > 0 {
        handle.flush();
    }
    let came_back = std::iter::from_fn(|| forest.freed()).count();
    assert_eq!(came_back + never_used, frames.contents.len());
}

#[test]
fn everything_at_once() {
    for seed in 1..=20 {
        run(seed, 20_000);
    }
}
