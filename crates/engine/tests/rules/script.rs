//! Hooks that a test sets one by one: what a certain call for certain pages, or frames, is to do.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use numerge_engine::in_memory::Machine;
use numerge_engine::machine::{MemoryError, Outcome, Vpn};
use parking_lot::Mutex;

pub(crate) use crate::hooked::Call;
use crate::hooked::{Hooked, Hooks, broken};

pub(crate) type Scripted = Hooked<Script>;

/// Before or after the machine's own part of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    Before,
    After,
}

pub(crate) use When::{After, Before};

/// Something to be done once.
pub(crate) type Act = Box<dyn FnOnce() + Send>;

/// Something to be done each time: it is told what the call is for.
type Watch = dyn Fn(&[Range<u64>]) + Send + Sync;

enum Then {
    Do(Act),
    Fail { times: u64, error: fn() -> MemoryError },
    Each(Arc<Watch>),
}

struct Step {
    when: When,
    call: Call,
    at: Range<u64>,
    /// So many calls are passed over first.
    skip: u64,
    then: Then,
}

/// The steps that are still to come.
#[derive(Default)]
pub(crate) struct Script {
    steps: Mutex<Vec<Step>>,
    /// Pages that are merged late.
    late: Mutex<BTreeSet<u64>>,
}

pub(crate) fn scripted(machine: &Arc<Machine>) -> Arc<Scripted> {
    Hooked::new(machine, Script::default())
}

impl Scripted {
    /// The next such call that meets `at` does this as well.
    pub(crate) fn on(&self, when: When, call: Call, at: u64, act: impl FnOnce() + Send + 'static) {
        self.on_later(when, call, at, 0, Box::new(act));
    }

    /// The same after so many others.
    pub(crate) fn on_later(&self, when: When, call: Call, at: u64, skip: u64, act: Act) {
        self.push(when, call, at..at + 1, skip, Then::Do(act));
    }

    /// The next such calls fail.
    pub(crate) fn fail(&self, when: When, call: Call, at: Range<u64>, times: u64) {
        self.push(when, call, at, 0, Then::Fail { times, error: broken });
    }

    /// The next such calls come to nothing for the moment.
    pub(crate) fn no_answer(&self, when: When, call: Call, at: Range<u64>, times: u64) {
        self.push(when, call, at, 0, Then::Fail { times, error: || MemoryError::NoAnswer });
    }

    /// Every such call does this as well from now on.
    pub(crate) fn each(&self, call: Call, act: impl Fn(&[Range<u64>]) + Send + Sync + 'static) {
        self.push(After, call, 0..u64::MAX, 0, Then::Each(Arc::new(act)));
    }

    fn push(&self, when: When, call: Call, at: Range<u64>, skip: u64, then: Then) {
        self.hooks.steps.lock().push(Step { when, call, at, skip, then });
    }

    /// Takes out all steps. Gives how many were still to come.
    pub(crate) fn clear(&self) -> usize {
        std::mem::take(&mut *self.hooks.steps.lock()).len()
    }

    /// From now on these pages, and no others, are merged when [`Self::answer`] says so.
    pub(crate) fn be_late(&self, pages: impl IntoIterator<Item = u64>) {
        *self.hooks.late.lock() = pages.into_iter().collect();
    }
}

impl Script {
    fn run(&self, when: When, call: Call, at: &[Range<u64>]) -> Result<(), MemoryError> {
        let meets = |step: &Range<u64>| {
            at.is_empty() || at.iter().any(|at| at.start < step.end && step.start < at.end)
        };
        let mut steps = self.steps.lock();
        let due = steps.iter_mut().position(|step| {
            let meets = step.when == when && step.call == call && meets(&step.at);
            let due = meets && step.skip == 0;
            step.skip -= u64::from(meets && !due);
            due
        });
        let Some(place) = due else { return Ok(()) };
        match &mut steps[place].then {
            Then::Fail { times, error } => {
                let error = error();
                *times -= 1;
                if *times == 0 {
                    steps.remove(place);
                }
                return Err(error);
            }
            Then::Each(act) => {
                let act = Arc::clone(act);
                drop(steps);
                act(at);
            }
            Then::Do(_) => {
                let Then::Do(act) = steps.remove(place).then else { return Ok(()) };
                // What it does may meet other steps.
                drop(steps);
                act();
            }
        }
        Ok(())
    }
}

impl Hooks for Script {
    fn before(&self, call: Call, at: &[Range<u64>]) -> Result<(), MemoryError> {
        self.run(Before, call, at)
    }

    fn after(&self, call: Call, at: &[Range<u64>]) -> Result<(), MemoryError> {
        self.run(After, call, at)
    }

    fn outcome(&self, page: Vpn) -> Option<Outcome> {
        self.late.lock().contains(&page.0).then_some(Outcome::Late)
    }
}
