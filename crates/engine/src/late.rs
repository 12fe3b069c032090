//! Merges whose outcome is not known yet: their programs have not answered.
//!
//! Until it is known such a page may be mapped to its frame at any moment, so the share that was
//! reserved for it is kept, and the page is *busy*: nobody else does anything with it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use numerge_stable_tree::{Handle, Kpfn, PageId, PageState};
use parking_lot::Mutex;

use crate::core::Core;
use crate::find::Merge;
use crate::machine::{Outcome, Vpn};
use crate::plan::follows;
use crate::program::Program;
use crate::record::{give_back, record};
use crate::region::Region;
use crate::world::World;

/// The merges, by their pages.
#[derive(Default)]
pub(crate) struct Late(Mutex<BTreeMap<PageId, Merge>>);

impl Late {
    pub(crate) fn add(&self, merge: Merge) {
        self.0.lock().insert(merge.page, merge);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether any of a region's pages has one.
    pub(crate) fn any_in(&self, region: &Region, pages: Range<u64>) -> bool {
        let pages = region.page(pages.start)..region.page(pages.end);
        self.0.lock().range(pages).next().is_some()
    }

    /// Frames that pages are to be mapped to.
    pub(crate) fn frames(&self) -> BTreeSet<Kpfn> {
        self.0.lock().values().filter_map(|merge| merge.kpfn).collect()
    }

    /// Runs that a program may map to frames.
    pub(crate) fn runs_of(&self, world: &World, program: &Arc<Program>) -> u64 {
        let late = self.0.lock();
        let merges: Vec<Merge> = late.values().copied().collect();
        let runs = merges.chunk_by(|a, b| follows(world, a, b));
        let is_its = |run: &&[Merge]| {
            run[0].kpfn.is_some() && Arc::ptr_eq(&world.locate(run[0].page).0.program, program)
        };
        runs.filter(is_its).count() as u64
    }

    /// Takes out those that are answered.
    ///
    /// Nobody else can ask meanwhile: another shard could take the answer, have the page merged again,
    /// and the answer to that would be taken for one that nobody waits for.
    fn take_answered(&self, world: &World) -> (Vec<Merge>, Vec<Outcome>) {
        let mut late = self.0.lock();
        let pages: Vec<PageId> = late.keys().copied().collect();
        let program = |page: &PageId| &world.locate(*page).0.program;
        let (mut merges, mut outcomes) = (Vec::new(), Vec::new());
        // A region's pages are side by side.
        for some in pages.chunk_by(|a, b| Arc::ptr_eq(program(a), program(b))) {
            let vpns: Vec<Vpn> = some.iter().map(|page| world.vpn(*page)).collect();
            let mut answers = Vec::new();
            program(&some[0]).memory.late(&vpns, &mut answers);
            answers.sort_unstable_by_key(|(vpn, _)| *vpn);
            for (page, vpn) in some.iter().zip(&vpns) {
                if let Ok(place) = answers.binary_search_by_key(vpn, |(vpn, _)| *vpn) {
                    merges.extend(late.remove(page));
                    outcomes.push(answers[place].1);
                }
            }
        }
        (merges, outcomes)
    }
}

/// Records what has become known since.
pub(crate) fn collect(core: &Core, world: &World, reader: &Handle) {
    let (merges, outcomes) = core.late.take_answered(world);
    for again in record(core, world, reader, &merges, &outcomes) {
        world.record(again.page).set(PageState::Held(again.fingerprint));
        core.tally.held.add(1);
    }
}

/// Gives up the share of a page that its program has no more.
pub(crate) fn forget(core: &Core, reader: &Handle, page: PageId) {
    let merge = core.late.0.lock().remove(&page);
    if let Some(merge) = merge {
        give_back(core, &reader.pin(), &merge);
    }
}
