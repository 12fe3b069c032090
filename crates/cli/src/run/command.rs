//! Running a command as if it had been started directly: signals go to it, its end is ours.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};

use libc::{
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGPWR, SIGQUIT, SIGSTKFLT, SIGTERM, SIGUSR1,
    SIGUSR2, SIGVTALRM, SIGWINCH,
};
use rustix::process::{DumpableBehavior, Pid, WaitId, WaitIdOptions};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin};

/// Passed on to the command, beside the real-time signals: of each at most five that wait, and without the value that
/// may come with one. The rest does what it always does: what stops a terminal's foreground stops both.
const PASSED_ON: [i32; 14] = [
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO,
    SIGCONT, SIGWINCH, SIGPWR, SIGSTKFLT,
];

/// Come from a terminal to all of its foreground's processes, the copies too.
const OF_TERMINALS: [i32; 3] = [SIGINT, SIGQUIT, SIGWINCH];

/// Variables, and what they are set to, if at all.
pub(crate) type Environment = Vec<(&'static str, Option<OsString>)>;

/// What ends as this program is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// With an exit status.
    Status(u8),
    /// By a signal.
    Signal(i32),
}

/// Copies of a command that are running.
pub(crate) struct Copies {
    children: Vec<Child>,
    /// Process numbers that can't be anybody else's.
    alive: Arc<Mutex<Vec<Pid>>>,
    signals: signal_hook::iterator::Handle,
}

impl Copies {
    /// Starts `count` copies. If one can't be started, those that were are killed.
    pub(crate) fn start(
        command: &[OsString],
        environment: &Environment,
        count: u32,
    ) -> io::Result<Self> {
        let (program, arguments) =
            command.split_first().ok_or_else(|| io::Error::other("no command"))?;
        let alive = Arc::new(Mutex::new(Vec::new()));
        // Before the first copy is there: a signal that comes now is not lost.
        let signals = pass_on(&alive)?;
        let mut copies = Self { children: Vec::new(), alive, signals };
        let started = copies.start_all(count, || {
            let mut command = Command::new(program);
            command.args(arguments);
            for (name, value) in environment {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
            command
        });
        match started {
            Ok(()) => Ok(copies),
            Err(error) => {
                copies.kill();
                Err(error)
            }
        }
    }

    fn start_all(&mut self, count: u32, command: impl Fn() -> Command) -> io::Result<()> {
        // A copy may have somebody signal us before its number is here: that signal waits for it.
        let mut numbers = alive(&self.alive);
        for _ in 0..count {
            let child = command().spawn()?;
            numbers.extend(i32::try_from(child.id()).ok().and_then(Pid::from_raw));
            self.children.push(child);
        }
        Ok(())
    }

    /// Waits for all copies. Gives the end of the first, in the order in which they were started, that
    /// did not end well.
    pub(crate) fn wait(mut self) -> io::Result<End> {
        let mut ends = Vec::new();
        for child in &mut self.children {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                while let Err(error) = rustix::process::waitid(WaitId::Pid(pid), options) {
                    if error != rustix::io::Errno::INTR {
                        return Err(error.into());
                    }
                }
                // It is a zombie still, so its number is nobody else's.
                alive(&self.alive).retain(|other| *other != pid);
            }
            ends.push(end(child.wait()?));
        }
        self.signals.close();
        let first_bad = ends.iter().find(|end| **end != End::Status(0));
        Ok(first_bad.copied().unwrap_or(End::Status(0)))
    }

    fn kill(&mut self) {
        alive(&self.alive).clear();
        for child in &mut self.children {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.signals.close();
    }
}

fn alive(alive: &Mutex<Vec<Pid>>) -> std::sync::MutexGuard<'_, Vec<Pid>> {
    // Only numbers are put in and taken out.
    alive.lock().unwrap_or_else(PoisonError::into_inner)
}

fn end(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Status(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, Some(signal)) => End::Signal(signal),
        (None, None) => End::Status(u8::MAX),
    }
}

/// Has signals go to the copies from now on.
fn pass_on(copies: &Arc<Mutex<Vec<Pid>>>) -> io::Result<signal_hook::iterator::Handle> {
    // What is ignored (nohup) the command is to ignore too, and a handler would not be passed on.
    let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
    let wanted = PASSED_ON.into_iter().chain(real_time).filter(|signal| !is_ignored(*signal));
    let mut signals = SignalsInfo::<WithOrigin>::new(wanted)?;
    let handle = signals.handle();
    let copies = Arc::clone(copies);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for origin in signals.forever() {
            let Origin { signal, cause, .. } = origin;
            if matches!(cause, Cause::Kernel) && OF_TERMINALS.contains(&signal) {
                continue;
            }
            for pid in alive(&copies).iter() {
                // SAFETY: signals a child that has not been waited for, and touches no memory. It may have ended
                // just now. rustix has no names for real-time signals.
                unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) };
            }
        }
    })?;
    Ok(handle)
}

fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: only asks; the kernel fills the structure in if it succeeds.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Ends this program by a signal, as the command ended. Returns if the signal does not do that.
pub(crate) fn end_by(signal: i32) {
    // The command's core is the one of interest.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // SAFETY: gives the signal its default, and lets it come; nothing is to be done here any more. What is not a
    // signal is refused.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        let mut set = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::raise(signal);
    }
}
