//! When a thread has its turns on a CPU, and how long they are.

/// The shortest turn that the kernel takes; from sched_setattr(2).
const SHORTEST_NANOSECONDS: u64 = 100_000;
/// The length that the kernel chooses.
const KERNELS: u64 = 0;

/// `nice` of threads that are to be first: each step is a tenth of a CPU more where several want it.
const FIRST: i32 = -10;

/// Asks the scheduler for short turns for the calling thread, and those it starts from now on, but soon ones:
/// for threads that somebody waits for, and that do little at a time. Linux 6.12; else nothing changes.
pub fn take_short_turns() {
    set(None, SHORTEST_NANOSECONDS);
}

/// The same, and before others' if this process may have that (CAP_SYS_NICE): for threads that do next to
/// nothing, and must not wait where others do much.
pub fn take_first_turns() {
    if !set(Some(FIRST), SHORTEST_NANOSECONDS) {
        take_short_turns();
    }
}

/// Has the calling thread have turns as any: for work that takes long, of a thread that comes from one with
/// others.
pub fn take_ordinary_turns() {
    set(Some(0), KERNELS);
}

/// False if the kernel refuses that.
fn set(nice: Option<i32>, turn: u64) -> bool {
    // struct sched_attr of include/uapi/linux/sched/types.h: size and policy; flags; nice and priority;
    // then the turn, two more times and a clamp.
    let mut attributes = [0_u64; 7];
    let bytes = size_of_val(&attributes);
    // SAFETY: the kernel writes no more than so many bytes, and reads as many as it has said to be there.
    unsafe {
        if libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), bytes, 0) != 0 {
            return false;
        }
        if let Some(nice) = nice {
            // The lower half; there is no priority but for threads of real time.
            attributes[2] = u64::from(nice.cast_unsigned());
        }
        attributes[3] = turn;
        libc::syscall(libc::SYS_sched_setattr, 0, attributes.as_ptr(), 0) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nice() -> i32 {
        // SAFETY: asks for a number.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[test]
    fn first_turns_are_given_up_again() {
        let thread = std::thread::spawn(|| {
            take_first_turns();
            let first = nice();
            let inherited = std::thread::spawn(nice).join().unwrap();
            take_ordinary_turns();
            (first, inherited, nice())
        });
        let (first, inherited, ordinary) = thread.join().unwrap();
        assert_eq!((inherited, ordinary), (first, 0));
        // SAFETY: asks for a number.
        let may = unsafe { libc::geteuid() } == 0;
        if may {
            assert_eq!(first, FIRST);
        } else {
            println!("SKIPPED: turns before others' need CAP_SYS_NICE");
        }
    }
}
