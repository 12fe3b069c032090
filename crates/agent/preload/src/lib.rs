//! The agent as a library to preload (`LD_PRELOAD=libnumerge_agent.so`): the functions that it stands in
//! for, its heap, and its beginning.
//!
//! Only here are these names defined, so that a program that links the agent's crate keeps the C
//! library's.

pub mod exports;
mod heap;

use std::io::Write;

use heap::Heap;

#[global_allocator]
static HEAP: Heap = Heap::new();

/// Run by the dynamic linker, before the program.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    // First of all handlers, so that the heap is the last to be taken before a fork, and the first to be
    // free after it.
    // SAFETY: the handlers live as long as the program; they take and give up a lock.
    let watching =
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork)) };
    let begun = if watching == 0 {
        numerge_agent::begin(std::env::var_os)
    } else {
        Err("no memory for the handlers of forks".into())
    };
    if let Err(why) = begun {
        // There is nobody else to tell.
        let _ = writeln!(std::io::stderr(), "numerge: {why}");
    }
}

extern "C" fn before_fork() {
    HEAP.begin_fork();
}

extern "C" fn after_fork() {
    HEAP.end_fork();
}
