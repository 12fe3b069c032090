//! The agent as a library to preload (`LD_PRELOAD=libnumerge_agent.so`): the functions that it stands in
//! for, its heap, and its beginning.
//!
//! Only here are these names defined, so that a program that links the agent's crate keeps the C
//! library's.

pub mod atfork;
pub mod exports;
mod heap;
pub mod locks;
pub mod processes;
#[cfg(target_arch = "x86_64")]
pub mod system_calls;

use std::io::Write;

use heap::Heap;

#[global_allocator]
static HEAP: Heap = Heap::new();

/// Run by the dynamic linker, before the program.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

extern "C" fn begin() {
    if let Err(why) = atfork::watch().and_then(|()| numerge_agent::begin(std::env::var_os)) {
        // There is nobody else to tell.
        let _ = writeln!(std::io::stderr(), "numerge: {why}");
    }
}
