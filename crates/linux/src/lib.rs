//! This process's memory, frames and nodes, as the engine wants them: every system call of numerge,
//! and no policy.
//!
//! Bird's-eye view. A userfaultfd in asynchronous write-protect mode tracks what the program writes
//! (`uffd`), and `PAGEMAP_SCAN` tells it (`pagemap`). Frames are pages of memfds (`pool`). A merge
//! moves a run of pages out of the program's view, compares it with its frames, and maps the frames
//! in its place (`merge`); whoever touches the run meanwhile waits in the kernel. Unmerging puts
//! anonymous memory with the same content back (`unmerge`).
//!
//! Architecture invariants:
//! - Whatever fails, a page is afterwards in the program's view with its content, and nobody waits
//!   for it.
//! - Nothing is allocated, and no lock is taken, while a page is out of view: the memory allocator's
//!   own memory might be what is frozen.
//! - No Rust reference ever points into registered memory.

mod again;
mod area;
mod bitmap;
mod calls;
mod convert;
mod copy;
mod device;
mod error;
mod events;
mod fork;
mod frame_file;
mod frame_view;
mod heap;
mod host;
mod join;
mod kinds;
mod looker;
mod looks;
mod lookup;
mod mapped;
mod maps;
mod memory;
mod mend;
mod merge;
mod nodes;
mod num;
mod pagemap;
mod pin_test;
mod pins;
mod place;
mod pool;
mod pool_file;
mod quarantine;
mod ranges;
mod region;
mod remote;
mod restore;
mod sharers;
mod sys;
mod thread;
mod uffd;
mod unmerge;
mod witness;

pub use calls::{LoosePages, Part, check_mergeable, mappings_in};
pub use device::UffdDevice;
pub use error::Error;
pub use fork::{
    AddressSpace, Quiet, begin_elsewhere, depth as fork_depth, forking, forking_elsewhere,
    watch as watch_forks,
};
pub use frame_file::{FrameRun, FrameSource};
pub use frame_view::FrameView;
pub use heap::{keep_heap_small, trim_heap};
pub use host::{available_bytes, check_kernel, mappings_limit, proportional_bytes};
pub use lookup::{FileNumber, executables};
pub use memory::ProcessMemory;
pub use nodes::Machine;
pub use place::place_for;
pub use pool::{FramePools, Serving};
pub use ranges::{Ranges, in_pieces};
pub use region::AnonymousRegion;
pub use remote::{RemoteError, RemoteProcess};
pub use sys::system_call;
pub use thread::{Thread, start_thread};
