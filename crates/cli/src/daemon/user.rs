//! `--user`: started as root, the daemon becomes somebody else and keeps what it serves others with.
//!
//! What that is was tried out: another user's `/proc/PID/maps` takes CAP_SYS_PTRACE, and its
//! `/proc/PID/mem`, whose file belongs to that user, CAP_DAC_READ_SEARCH beside it. Page tables are
//! read by the descriptor that the client passes, and where its pages are is asked with the former.
//! CAP_SYS_NICE would only be needed to move frames that are in use, which the daemon does not do, and for
//! turns on a CPU before others', for which a limit is enough.

use std::error::Error;

use nix::unistd::{Gid, User, setgroups, setresgid, setresuid};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// What is kept.
const KEPT: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);

/// Finds a user that this process can become.
pub(super) fn find(name: &str) -> Result<User, Box<dyn Error>> {
    let found = User::from_name(name).map_err(|error| format!("--user {name}: {error}"))?;
    let found = found.ok_or_else(|| {
        format!("--user {name}: there is no such user; one of /etc/passwd or the like is wanted")
    })?;
    if found.uid.is_root() {
        return Err(format!("--user {name} is root: name another, or leave it out").into());
    }
    if !rustix::process::geteuid().is_root() {
        return Err(format!("--user {name}: only root can become another user").into());
    }
    Ok(found)
}

/// Becomes that user for good, without other groups and with no capability but what is kept. Before any
/// other thread is there: capabilities are each thread's own.
pub(super) fn become_user(user: &User) -> Result<(), Box<dyn Error>> {
    allow_first_turns();
    let name = &user.name;
    let failed = |call: &'static str| {
        move |error: &dyn Error| format!("can't become user {name}: {call}: {error}")
    };
    rustix::thread::set_keep_capabilities(true)
        .map_err(|error| failed("PR_SET_KEEPCAPS")(&error))?;
    setgroups(&[] as &[Gid]).map_err(|error| failed("setgroups")(&error))?;
    setresgid(user.gid, user.gid, user.gid).map_err(|error| failed("setresgid")(&error))?;
    // While it may: whatever this process executed could get these back otherwise.
    let all = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
    for capability in all.filter(|one| !KEPT.contains(*one)) {
        // One that the kernel does not know is in no set.
        if rustix::thread::capability_is_in_bounding_set(capability) == Ok(true) {
            rustix::thread::remove_capability_from_bounding_set(capability)
                .map_err(|error| failed("PR_CAPBSET_DROP")(&error))?;
        }
    }
    setresuid(user.uid, user.uid, user.uid).map_err(|error| failed("setresuid")(&error))?;
    let sets =
        CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(|error| {
        format!(
            "can't become user {name} with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH ({error}): give \
             the daemon both, as by CapabilityBoundingSet="
        )
    })?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| failed("PR_SET_NO_NEW_PRIVS")(&error))?;
    Ok(())
}

/// Allows threads to have their turns before others', as those who answer at control files while all is unmerged.
fn allow_first_turns() {
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Rtprio);
    if current == Some(0) {
        let wanted = Rlimit { current: Some(1), maximum: maximum.map(|most| most.max(1)) };
        // Without it they have short turns.
        let _ = rustix::process::setrlimit(Resource::Rtprio, wanted);
    }
}

/// Keeps other processes of this user from looking into this one, which can look into theirs and has
/// the frames of all domains.
pub(super) fn hide() -> Result<(), Box<dyn Error>> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| format!("PR_SET_DUMPABLE: {error}").into())
}

/// Allows as many descriptors as this process may allow itself: a client takes some.
pub(super) fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
    if current != maximum {
        let wanted = Rlimit { current: maximum, maximum };
        // With what there is fewer clients can be served at one time.
        let _ = rustix::process::setrlimit(Resource::Nofile, wanted);
    }
}
