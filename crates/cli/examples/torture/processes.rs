//! Other programs, executed in the ways there are, and children that end.

use std::ffi::{CStr, c_int, c_void};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use rustix::process::{Pid, WaitOptions, waitpid};

const TRUE: &CStr = c"/bin/true";

/// The standard library's own way: posix_spawn(3).
pub(crate) fn spawn() {
    let ended = Command::new("true").status().expect("true");
    assert!(ended.success());
}

/// By fork(3), which the standard library takes when there is something to do in between.
pub(crate) fn fork_and_exec() {
    let mut command = Command::new("true");
    // SAFETY: does nothing in the child.
    unsafe { command.pre_exec(|| Ok(())) };
    assert!(command.status().expect("true").success());
}

extern "C" fn execute(_: *mut c_void) -> c_int {
    let (arguments, environment) = ([TRUE.as_ptr(), ptr::null()], [ptr::null()]);
    // SAFETY: both lists end with a null pointer. The child, in its parent's memory, does nothing else but
    // end if that fails.
    unsafe {
        libc::execve(TRUE.as_ptr(), arguments.as_ptr(), environment.as_ptr());
        libc::_exit(1)
    }
}

/// What vfork(2) is, but for a stack of the child's own: Rust has no functions that return twice. Gives whether
/// there was a child.
pub(crate) fn vfork_and_exec() -> bool {
    let mut stack = vec![0_u128; 4096];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is aligned and large enough for `execute`, and lives until the child has executed
    // another program or ended, for this thread is not running before.
    let child = unsafe {
        let top = stack.as_mut_ptr_range().end.cast();
        libc::clone(execute, top, flags, ptr::null_mut())
    };
    let child = Pid::from_raw(child.max(0));
    child.inspect(|child| reap(*child)).is_some()
}

/// Waits for a child that has to end well.
pub(crate) fn reap(child: Pid) {
    let ended = loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            ended => break ended.expect("waitpid").expect("a child").1,
        }
    };
    assert_eq!(ended.exit_status(), Some(0), "a child found wrong content, or failed: {ended:?}");
}
