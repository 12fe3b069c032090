//! The few functions of libnuma that numerge calls, as declared in `<numa.h>` and described in
//! numa(3) of libnuma 2.0.
//!
//! The published crate of this name (0.0.9) builds on no current toolchain, and the C library is
//! used for only two questions: on which node is a CPU, and how far are two nodes apart. Nothing
//! here is safe or has an opinion; `numerge-topology` has the safe face.
//!
//! libnuma fills its tables when first asked and does so without locks, and numa(3) promises no
//! thread safety. So **callers must not be in two of these functions at the same time**.

#![no_std]

use core::ffi::c_int;

unsafe extern "C" {
    /// Whether the other functions may be used: 0 or more if so, -1 if this system has no NUMA
    /// support or forbids asking (a container's seccomp filter may).
    ///
    /// "Before any other calls in this library can be used `numa_available()` must be called. If it
    /// returns -1, all other functions in this library are undefined" - numa(3).
    pub fn numa_available() -> c_int;

    /// The node of a CPU as the kernel counts it, or -1 with errno EINVAL for a CPU there is not.
    pub fn numa_node_of_cpu(cpu: c_int) -> c_int;

    /// The distance from one node to another as the firmware's SLIT table has it: 10 is local, 20
    /// twice as far. 0 if it can't be told.
    pub fn numa_distance(node1: c_int, node2: c_int) -> c_int;
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    extern crate std;

    use super::*;
    use std::println;

    #[test]
    fn the_library_links_and_answers() {
        // SAFETY: foreign functions need it; this is the crate's only test, so nothing else is in
        // libnuma, and the others are called only after `numa_available` allowed it.
        unsafe {
            if numa_available() < 0 {
                println!("SKIPPED: numa_available() says that this system has no NUMA support");
                return;
            }
            assert_eq!(numa_node_of_cpu(c_int::MAX), -1);
            let node = numa_node_of_cpu(0);
            assert!(node >= 0, "CPU 0 is on a node");
            assert_eq!(numa_distance(node, node), 10);
        }
    }
}
