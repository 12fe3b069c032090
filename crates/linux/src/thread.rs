//! Threads of our own in a program, with stacks that lie out of its way: see [`crate::place`].

use std::ffi::{CString, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

use numerge_engine::machine::PAGE_SIZE;

use crate::fork::Quiet;
use crate::place::place_for;
use crate::sys;

/// A thread. It goes on when this is dropped.
#[derive(Debug)]
pub struct Thread {
    id: libc::pthread_t,
    stack: Stack,
}

/// What the new thread is given.
struct Start {
    name: CString,
    run: Box<dyn FnOnce() + Send>,
}

/// A stack, below it a page that can't be accessed.
#[derive(Debug)]
struct Stack {
    outer: *mut u8,
    bytes: usize,
}

// SAFETY: an address range; only the thread that runs on it uses its content.
unsafe impl Send for Stack {}
// SAFETY: as above.
unsafe impl Sync for Stack {}

impl Stack {
    fn new(bytes: usize) -> io::Result<Self> {
        let outer = bytes.checked_add(PAGE_SIZE).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        let usable = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: asks for memory where nothing is.
        let outer = unsafe { sys::map(place_for(outer), outer, libc::PROT_NONE, flags, -1, 0) }?;
        let stack = Self { outer, bytes };
        // SAFETY: inside the mapping just made, which nobody else knows of.
        let made =
            unsafe { sys::map(stack.start(), bytes, usable, flags | libc::MAP_FIXED, -1, 0) };
        if made.is_err() {
            stack.unmap();
        }
        made.map(|_| stack)
    }

    const fn start(&self) -> *mut u8 {
        self.outer.wrapping_add(PAGE_SIZE)
    }

    /// Only when no thread runs on it.
    fn unmap(&self) {
        // SAFETY: memory of our own, and its last use.
        let _ = unsafe { sys::unmap(self.outer, self.bytes + PAGE_SIZE) };
    }
}

/// Starts a thread that no signal is delivered to, with `bytes` of stack, besides what the C library wants
/// of it. This may call the program's malloc.
///
/// # Errors
/// What the system said; EINVAL for a name with a zero in it.
pub fn start_thread(
    name: &str,
    bytes: usize,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<Thread> {
    let start = Start { name: CString::new(name)?, run: Box::new(run) };
    let stack = Stack::new((bytes + least_stack()).next_multiple_of(PAGE_SIZE))?;
    let argument = Box::into_raw(Box::new(start));
    // A thread inherits this from who starts it.
    let quiet = Quiet::begin();
    let created = create(&stack, argument);
    drop(quiet);
    match created {
        Ok(id) => Ok(Thread { id, stack }),
        Err(error) => {
            stack.unmap();
            // SAFETY: made above, and no thread has got it.
            drop(unsafe { Box::from_raw(argument) });
            Err(error)
        }
    }
}

fn create(stack: &Stack, argument: *mut Start) -> io::Result<libc::pthread_t> {
    let check = |result: i32| match result {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    };
    let mut attributes = MaybeUninit::uninit();
    let mut id = MaybeUninit::uninit();
    // SAFETY: the first call initialises `attributes`, which the last one ends; the stack is memory of
    // that size which nobody else uses and which stays as long as the thread; `id` is initialised when a
    // thread was created, which takes over `argument`.
    unsafe {
        check(libc::pthread_attr_init(attributes.as_mut_ptr()))?;
        let created = check(libc::pthread_attr_setstack(
            attributes.as_mut_ptr(),
            stack.start().cast(),
            stack.bytes,
        ))
        .and_then(|()| {
            check(libc::pthread_create(
                id.as_mut_ptr(),
                attributes.as_ptr(),
                begin,
                argument.cast(),
            ))
        });
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        created.map(|()| id.assume_init())
    }
}

extern "C" fn begin(argument: *mut c_void) -> *mut c_void {
    // SAFETY: from start_thread(), for this thread alone.
    let start = unsafe { Box::from_raw(argument.cast::<Start>()) };
    // SAFETY: a string that lives as long as the call; of a longer name the kernel takes the beginning.
    unsafe { libc::prctl(libc::PR_SET_NAME, start.name.as_ptr()) };
    // A page that this thread has frozen when its turn is over stays frozen until the next.
    numerge_topology::take_short_turns();
    // A panic has been told by then, and ends this thread only.
    let _ = catch_unwind(AssertUnwindSafe(start.run));
    std::ptr::null_mut()
}

/// What the C library puts on a stack itself: the thread-local storage of all that is loaded.
fn least_stack() -> usize {
    // SAFETY: looks a name up; glibc has it, for such as us, since 2.15.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__pthread_get_minstack".as_ptr()) };
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: initialises `attributes`.
    if found.is_null() || unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) } != 0 {
        return libc::PTHREAD_STACK_MIN;
    }
    // SAFETY: its type: it takes attributes, and gives a number of bytes.
    let least: unsafe extern "C" fn(*const libc::pthread_attr_t) -> libc::size_t =
        unsafe { std::mem::transmute(found) };
    // SAFETY: reads the attributes initialised above, which are not used any more afterwards.
    unsafe {
        let bytes = least(attributes.as_ptr());
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        bytes
    }
}

impl Thread {
    /// Waits until it has ended.
    pub(crate) fn join(self) {
        // SAFETY: joined once, for this takes the thread.
        if unsafe { libc::pthread_join(self.id, std::ptr::null_mut()) } == 0 {
            self.stack.unmap();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn runs_until_it_is_joined() {
        let (tell, told) = mpsc::channel();
        let run = move || {
            let here = 0_u8;
            let name = std::fs::read_to_string("/proc/thread-self/comm");
            tell.send((name.ok(), (&raw const here).addr())).expect("somebody listens");
        };
        let thread = start_thread("numerge-test", 1 << 16, run).expect("a thread");
        let (name, address) = told.recv().expect("told");
        assert_eq!(name.as_deref(), Some("numerge-test\n"));
        let stack = thread.stack.start().addr()..thread.stack.start().addr() + thread.stack.bytes;
        assert!(stack.contains(&address), "{address:x} in {stack:x?}");
        thread.join();
    }

    #[test]
    fn a_panic_ends_the_thread_alone() {
        let thread = start_thread("numerge-test", 1 << 16, || panic!("as it must")).expect("one");
        thread.join();
    }
}
