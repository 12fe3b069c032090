//! How long a thread's turns on its CPU are.

/// Asks the scheduler for short turns for the calling thread, and those it starts from now on, but soon ones:
/// for threads that somebody waits for, and that do little at a time. Linux 6.12; else nothing changes.
pub fn take_short_turns() {
    /// The shortest that the kernel takes; from sched_setattr(2).
    const TURN_NANOSECONDS: u64 = 100_000;
    // struct sched_attr of include/uapi/linux/sched/types.h: size and policy; flags; nice and priority;
    // then the turn, two more times and a clamp.
    let mut attributes = [0_u64; 7];
    let bytes = size_of_val(&attributes);
    // SAFETY: the kernel writes no more than so many bytes, and reads as many as it has said to be there.
    unsafe {
        if libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), bytes, 0) == 0 {
            attributes[3] = TURN_NANOSECONDS;
            libc::syscall(libc::SYS_sched_setattr, 0, attributes.as_ptr(), 0);
        }
    }
}
