//! The kernel's side: ksmd on the memory of a process that offers it with `MADV_MERGEABLE`.

use std::fs;
use std::io::{self, Read, Write};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::report::Scanned;

const POLL: Duration = Duration::from_millis(10);
const TIMEOUT: Duration = Duration::from_secs(3600);
/// In its next scan ksmd takes each page out of its tree and puts it back, so not all may be there
/// at the moment of a look.
const IN_HAND_PAGES: u64 = 16;

/// Reads a file of /sys/kernel/mm/ksm.
pub(crate) fn knob(name: &str) -> io::Result<u64> {
    let path = format!("/sys/kernel/mm/ksm/{name}");
    let text = fs::read_to_string(&path).map_err(|error| named(&path, &error))?;
    text.trim().parse().map_err(|_| io::Error::other(format!("{path} is not a number")))
}

fn set(name: &str, value: &str) -> io::Result<()> {
    let path = format!("/sys/kernel/mm/ksm/{name}");
    fs::write(&path, value).map_err(|error| named(&path, &error))
}

fn named(path: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// The process number of the kernel's thread.
fn find_ksmd() -> io::Result<u32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm == "ksmd\n") {
            return Ok(pid);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "no ksmd among the processes seen from here"))
}

/// CPU seconds a process has used: utime and stime of its stat.
fn cpu_s(pid: u32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything; what follows are fields 3 and up.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: Vec<u32> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100);
    match ticks[..] {
        [user, system] => Ok((f64::from(user) + f64::from(system)) / f64::from(per_second)),
        _ => Err(io::Error::other("/proc/PID/stat is not as expected")),
    }
}

fn wait(what: &str, done: impl Fn() -> io::Result<bool>) -> io::Result<()> {
    let began = Instant::now();
    while !done()? {
        if began.elapsed() > TIMEOUT {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("ksmd: {what} took too long"),
            ));
        }
        sleep(POLL);
    }
    Ok(())
}

/// The process whose memory ksmd scans; gone when this is.
struct Offer(Child);

impl Offer {
    fn new(pages: usize) -> io::Result<Self> {
        let mut command = crate::itself("ksmd-part", pages)?;
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut offer = Self(child);
        let mut ready = [0];
        let said = offer.0.stdout.as_mut().map_or(Ok(0), |out| out.read(&mut ready))?;
        if said == 0 {
            return Err(io::Error::other("the part that offers memory to ksmd failed"));
        }
        Ok(offer)
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        // It may be gone already; there is nothing else that could fail here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has ksmd judge `pages` unique pages of another process.
///
/// Leaves `run` at 0 and the other knobs changed: `perf/cold` puts them back.
pub(crate) fn measure(pages: usize) -> io::Result<Scanned> {
    for counter in ["pages_shared", "pages_unshared", "pages_volatile"] {
        if knob(counter)? > 0 {
            return Err(io::Error::other(format!(
                "KSM is at work on this machine ({counter} is not 0): its memory would be measured too"
            )));
        }
    }
    let ksmd = find_ksmd()?;
    set("run", "0")?;
    // Kernels before 6.8 have no advisor; a later one's would set pages_to_scan itself.
    if fs::exists("/sys/kernel/mm/ksm/advisor_mode")? {
        set("advisor_mode", "none")?;
    }
    set("pages_to_scan", "100000")?;
    set("sleep_millisecs", "0")?;
    let offer = Offer::new(pages)?;
    let (began, before) = (Instant::now(), cpu_s(ksmd)?);
    set("run", "1")?;
    let all = (pages as u64).saturating_sub(IN_HAND_PAGES).max(1);
    wait("judging", || Ok(knob("pages_unshared")? >= all))?;
    let (cpu, seconds) = (cpu_s(ksmd)? - before, began.elapsed().as_secs_f64());

    // The pass under way is a part of one; the one after it is whole.
    let passes = knob("full_scans")?;
    wait("ending a scan", || Ok(knob("full_scans")? > passes))?;
    let before = cpu_s(ksmd)?;
    wait("one more scan", || Ok(knob("full_scans")? > passes + 1))?;
    let idle_scan_cpu_s = cpu_s(ksmd)? - before;
    // Takes the pages out of ksmd's trees; with its process gone before, they would stay counted.
    set("run", "2")?;
    set("run", "0")?;
    drop(offer);
    Ok(Scanned { cpu_s: cpu, seconds, idle_scan_cpu_s })
}

/// Offers `pages` unique pages to ksmd until standard input ends.
pub(crate) fn part(pages: usize) -> io::Result<()> {
    crate::end_with_parent()?;
    let region = crate::unique_memory(pages)?;
    // SAFETY: the kernel keeps the content of what it merges; the range is this region's.
    unsafe {
        rustix::mm::madvise(
            region.as_ptr().cast(),
            region.len(),
            rustix::mm::Advice::LinuxMergeable,
        )?;
    }
    io::stdout().write_all(b"!")?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
