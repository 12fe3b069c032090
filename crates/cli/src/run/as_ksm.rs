//! `--as-ksm`: a mount namespace in which the control files are seen where the kernel's are.

use std::io;
use std::path::Path;

use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

/// Where the kernel has its own.
pub(crate) const DIRECTORY: &str = "/sys/kernel/mm/ksm";

/// The share of its mappings that a program may use before merging stops adding to them, in percent. The
/// kernel has no such limit, so users of KSM may merge in ways that take many.
pub(crate) const MAPPING_SHARE_PERCENT: u64 = 90;

/// Why there is no such namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AsKsmError {
    #[error("--as-ksm: this kernel has no {DIRECTORY} to show the files at")]
    NoPlace,
    #[error("--as-ksm: can't have a mount namespace: {call}: {source} (root is needed)")]
    Namespace { call: &'static str, source: io::Error },
}

/// Puts the calling thread, and what it starts from now on, into a mount namespace of its own. What is
/// mounted there nobody else sees. To be called before there is another thread.
pub(crate) fn enter_namespace() -> Result<(), AsKsmError> {
    let failed =
        |call| move |errno: rustix::io::Errno| AsKsmError::Namespace { call, source: errno.into() };
    if !Path::new(DIRECTORY).is_dir() {
        return Err(AsKsmError::NoPlace);
    }
    // SAFETY: takes away no descriptor: only what the thread's paths lead to is its own from now on.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(failed("unshare"))?;
    // What others mount and unmount comes in, so that nothing stays busy for us.
    let inwards = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", inwards).map_err(failed("mount MS_SLAVE"))
}
