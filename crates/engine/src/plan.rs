//! Fifth stage: runs, long ones first, within each program's mapping budget.

use std::sync::Arc;

use crate::find::Merge;
use crate::late::Late;
use crate::machine::{MemoryError, Run, Target};
use crate::program::{Leave, Program};
use crate::world::World;

/// What one program is asked to merge, and the pages of it in the order of the runs.
pub(crate) struct Plan {
    pub(crate) program: Arc<Program>,
    pub(crate) runs: Vec<Run>,
    pub(crate) merges: Vec<Merge>,
}

/// Plans for all programs, and the merges that no mappings are left for.
#[derive(Default)]
pub(crate) struct Planned {
    pub(crate) plans: Vec<Plan>,
    pub(crate) over_budget: Vec<Merge>,
    /// Of programs whose mappings nobody can count at the moment.
    pub(crate) deferred: Vec<Merge>,
    /// Why mappings could not be counted.
    pub(crate) errors: Vec<MemoryError>,
}

/// Cuts merges into runs: pages side by side in one region, mapped to frames side by side.
pub(crate) fn plan(world: &World, late: &Late, now_ms: u32, mut merges: Vec<Merge>) -> Planned {
    merges.sort_unstable_by_key(|merge| merge.page);
    let mut by_program: Vec<(Arc<Program>, Vec<&[Merge]>)> = Vec::new();
    for run in merges.chunk_by(|a, b| follows(world, a, b)) {
        let program = &world.locate(run[0].page).0.program;
        match by_program.iter_mut().find(|(known, _)| Arc::ptr_eq(known, program)) {
            Some((_, runs)) => runs.push(run),
            None => by_program.push((Arc::clone(program), vec![run])),
        }
    }
    let mut planned = Planned::default();
    for (program, mut runs) in by_program {
        // Pages mapped to the page of zeros stay in the mapping they are in.
        let wanted = runs.iter().filter(|run| run[0].kpfn.is_some()).count() as u64;
        let late = || late.runs_of(world, &program);
        let leave = program.take_runs(wanted, now_ms, late, &mut planned.errors);
        let Leave::Runs(allowed) = leave else {
            planned.deferred.extend(runs.iter().copied().flatten());
            continue;
        };
        if allowed < wanted {
            runs.sort_by_key(|run| (run[0].kpfn.is_some(), std::cmp::Reverse(run.len())));
            let left_out = usize::try_from(wanted - allowed).expect("fewer than there are runs");
            planned.over_budget.extend(runs.drain(runs.len() - left_out..).flatten());
        }
        let merges = runs.iter().copied().flatten().copied().collect();
        let runs = runs.iter().map(|run| to_run(world, run)).collect();
        planned.plans.push(Plan { program, runs, merges });
    }
    planned
}

/// Whether a page can be in one run with the page before.
pub(crate) fn follows(world: &World, a: &Merge, b: &Merge) -> bool {
    b.page.0 == a.page.0 + 1
        && match (a.kpfn, b.kpfn) {
            (Some(a), Some(b)) => a.plus(1) == b,
            (None, None) => true,
            _ => false,
        }
        && world.pages.locate(a.page).0 == world.pages.locate(b.page).0
}

fn to_run(world: &World, merges: &[Merge]) -> Run {
    let (region, index) = world.locate(merges[0].page);
    let pages = region.vpn(index)..region.vpn(index + merges.len() as u64);
    Run { pages, target: merges[0].kpfn.map_or(Target::Zero, Target::Frames) }
}
