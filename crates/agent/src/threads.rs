//! The agent's own threads.
//!
//! Their stacks are mapped by the C library, whose calls do not come by here, so they are never merged.
//! All signals are kept from them: the program's handlers are for its own threads.

use std::io;

use numerge_linux::AddressSpace;

/// What the deepest path needs, many times over.
const STACK_BYTES: usize = 256 << 10;

/// Starts a thread that lives as long as the process.
pub(crate) fn start(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // Signals are held back while this is held, and a thread inherits that from who starts it.
    let _held = AddressSpace::hold();
    start_held(name, run)
}

/// The same for who holds [`AddressSpace`] already.
pub(crate) fn start_held(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let builder = std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES);
    builder.spawn(run).map(|_| ())
}

/// Whether the C library's `calloc` is its own. Making a thread calls it; a `calloc` of the program's
/// may be what calls us just now, with its locks held.
pub(crate) fn can_start_anywhere() -> bool {
    let object = |function: *const libc::c_void| {
        let mut found = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: asks for the object that a function is in, and fills `found` unless it gives 0; all
        // bits zero are a valid Dl_info.
        unsafe {
            let known = libc::dladdr(function, found.as_mut_ptr()) != 0;
            known.then(|| found.assume_init().dli_fbase)
        }
    };
    let calloc = object(libc::calloc as *const libc::c_void);
    calloc.is_some() && calloc == object(libc::gnu_get_libc_version as *const libc::c_void)
}
