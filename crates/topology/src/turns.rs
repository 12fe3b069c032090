//! When a thread has its turns on a CPU, and how long they are.

use libc::sched_attr;

/// The shortest turn that the kernel takes; from sched_setattr(2).
const SHORTEST_NANOSECONDS: u64 = 100_000;
/// The length that the kernel chooses.
const KERNELS: u64 = 0;

/// Asks the scheduler for short turns for the calling thread, and those it starts from now on, but soon ones:
/// for threads that somebody waits for, and that do little at a time. Linux 6.12; else nothing changes.
pub fn take_short_turns() {
    set(|attributes| attributes.sched_runtime = SHORTEST_NANOSECONDS);
}

/// Has the calling thread, and those it starts from now on, run whenever there is something for it to do, before
/// all threads but those of real time, as the last of which it runs. For what must not wait where others do
/// much, does little, and not for long. Short turns where the process may not have that (CAP_SYS_NICE or
/// RLIMIT_RTPRIO).
pub fn take_first_turns() {
    let is_first = set(|attributes| {
        attributes.sched_policy = libc::SCHED_RR.cast_unsigned();
        attributes.sched_priority = 1;
        attributes.sched_runtime = KERNELS;
    });
    if !is_first {
        take_short_turns();
    }
}

/// Has the calling thread have turns as any: for work that takes long, of a thread that comes from one with
/// others.
pub fn take_ordinary_turns() {
    // SAFETY: asks for a number.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    set(|attributes| {
        attributes.sched_policy = libc::SCHED_OTHER.cast_unsigned();
        attributes.sched_nice = nice;
        attributes.sched_priority = 0;
        attributes.sched_runtime = KERNELS;
    });
}

/// False if the kernel refuses that.
fn set(change: impl FnOnce(&mut sched_attr)) -> bool {
    // SAFETY: numbers only, of which zero is one.
    let mut attributes: sched_attr = unsafe { std::mem::zeroed() };
    let bytes = size_of_val(&attributes);
    // SAFETY: the kernel writes no more than so many bytes, and reads as many as it has said to be there.
    unsafe {
        let read = libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, bytes, 0);
        change(&mut attributes);
        read == 0 && libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> i32 {
        // SAFETY: asks for a number.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn threads_are_first_with_those_they_start_and_ordinary_again() {
        let thread = std::thread::spawn(|| {
            take_short_turns();
            let short = policy();
            take_first_turns();
            let first = policy();
            let inherited = std::thread::spawn(policy).join().unwrap();
            take_ordinary_turns();
            (short, first, inherited, policy())
        });
        let (short, first, inherited, ordinary) = thread.join().unwrap();
        assert_eq!((short, ordinary), (libc::SCHED_OTHER, libc::SCHED_OTHER));
        assert_eq!(inherited, first);
        if first != libc::SCHED_RR {
            println!("SKIPPED: turns before others' need CAP_SYS_NICE");
        }
    }
}
