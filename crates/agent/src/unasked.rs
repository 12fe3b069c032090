//! Which mappings that the program makes are wanted without being asked for, one by one.
//!
//! The kernel hands PR_SET_MEMORY_MERGE on to the programs that a process executes, which know nothing of an
//! agent that was in it. But they have its environment, or no agent. So what is set is said there, by a
//! variable that is there from the beginning (`numerge run`), in place: a program that keeps a pointer to its
//! environment hands that on. One that has made a copy of the text before, hands on what it was then.

use std::ffi::{CStr, OsString};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::config::MEMORY_MERGE;

static UNASKED: AtomicU8 = AtomicU8::new(Unasked::None as u8);

/// Which new private anonymous mappings are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Unasked {
    /// None.
    None = 0,
    /// Those of [`LARGE_BYTES`] and more.
    Large = 1,
    /// All (PR_SET_MEMORY_MERGE).
    All = 2,
}

/// What counts as large.
const LARGE_BYTES: usize = 1 << 20;

/// Whether a new mapping of this length and flags is wanted.
pub(crate) fn is_wanted(len: usize, flags: i32) -> bool {
    // Relaxed: the program orders its own prctl with its own mmap.
    let unasked = UNASKED.load(Ordering::Relaxed);
    let all = unasked == Unasked::All as u8;
    let large = unasked == Unasked::Large as u8 && len >= LARGE_BYTES;
    let special = libc::MAP_GROWSDOWN | libc::MAP_STACK | libc::MAP_HUGETLB;
    (all || large)
        && flags & libc::MAP_TYPE == libc::MAP_PRIVATE
        && flags & libc::MAP_ANONYMOUS != 0
        && flags & special == 0
}

pub(crate) fn set(unasked: Unasked) {
    // Relaxed: as in is_wanted().
    UNASKED.store(unasked as u8, Ordering::Relaxed);
}

/// Whether all new mappings are wanted.
pub(crate) fn wants_all() -> bool {
    // Relaxed: as in is_wanted().
    UNASKED.load(Ordering::Relaxed) == Unasked::All as u8
}

/// Whether who executed this program has set PR_SET_MEMORY_MERGE.
///
/// # Errors
/// A line for people that names the value, and what is allowed.
pub(crate) fn inherited(
    variable: impl Fn(&'static str) -> Option<OsString>,
) -> Result<bool, String> {
    let value = variable(MEMORY_MERGE);
    match value.as_deref().map(|value| value.to_str()) {
        None | Some(Some("0")) => Ok(false),
        Some(Some("1")) => Ok(true),
        Some(_) => {
            let value = value.unwrap_or_default();
            Err(format!("{MEMORY_MERGE}={value:?}: `0` and `1` are allowed"))
        }
    }
}

/// Says it to the programs that this process executes, if it was itself told by the environment.
pub(crate) fn bequeath(on: bool) {
    // SAFETY: the C library's variable, a pointer that is read as getenv(3) does.
    let mut entry = unsafe { (&raw const libc::environ).read() };
    if entry.is_null() {
        return;
    }
    loop {
        // SAFETY: not past the null pointer that ends the list.
        let text = unsafe { entry.read() };
        if text.is_null() {
            return;
        }
        // SAFETY: the list's entries are strings.
        if let Some(value) = value_in(unsafe { CStr::from_ptr(text) }) {
            let new = if on { b'1' } else { b'0' };
            let local = libc::iovec { iov_base: (&raw const new).cast_mut().cast(), iov_len: 1 };
            let at = text.wrapping_add(value).cast();
            let remote = libc::iovec { iov_base: at, iov_len: 1 };
            // SAFETY: a byte within the string, which another thread finds the old or the new. By the kernel,
            // which refuses where a program has made its environment read-only.
            unsafe {
                libc::process_vm_writev(
                    libc::getpid(),
                    &raw const local,
                    1,
                    &raw const remote,
                    1,
                    0,
                )
            };
            return;
        }
        entry = entry.wrapping_add(1);
    }
}

/// Where the value begins, if this is the variable with a value of one byte.
fn value_in(entry: &CStr) -> Option<usize> {
    let entry = entry.to_bytes();
    let value = entry.strip_prefix(MEMORY_MERGE.as_bytes())?.strip_prefix(b"=")?;
    (value.len() == 1).then(|| entry.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_0_or_1_is_named() {
        let inherited = |value: Option<&str>| inherited(|_| value.map(Into::into));
        assert_eq!((inherited(None), inherited(Some("0"))), (Ok(false), Ok(false)));
        assert_eq!(inherited(Some("1")), Ok(true));
        let error = inherited(Some("yes")).expect_err("refused");
        assert!(error.contains("NUMERGE_MEMORY_MERGE=\"yes\"") && error.contains("`0`"), "{error}");
    }

    #[test]
    fn the_variable_is_found_and_no_other() {
        assert_eq!(value_in(c"NUMERGE_MEMORY_MERGE=0"), Some(21));
        for other in
            [c"NUMERGE_MEMORY_MERGE=", c"NUMERGE_MEMORY_MERGE=10", c"NUMERGE_MEMORY=1", c"X=0"]
        {
            assert_eq!(value_in(other), None, "{other:?}");
        }
    }
}
