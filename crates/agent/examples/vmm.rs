//! What a monitor of virtual machines does that links the agent: two guests' memory, merged while they run.
//!
//! usage: vmm SOCKET, where an engine listens: `numerge daemon --socket SOCKET`

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use numerge_agent::Agent;

const PAGE: usize = 4096;
const GUEST_PAGES: usize = 1024;
const GUEST_BYTES: usize = GUEST_PAGES * PAGE;
/// An engine that has much else to do may take a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest's memory.
struct Ram(*mut u8);

impl Ram {
    fn map() -> std::io::Result<Self> {
        let usable = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: new memory at a place of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), GUEST_BYTES, usable, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            Err(std::io::Error::last_os_error())
        } else {
            Ok(Self(at.cast()))
        }
    }

    /// Memory that a guest writes to is never behind a Rust reference.
    fn write(&self, page: usize, byte: u8) {
        assert!(page < GUEST_PAGES);
        // SAFETY: a page of this memory.
        unsafe { self.0.add(page * PAGE).write_bytes(byte, PAGE) };
    }

    fn holds(&self, page: usize, byte: u8) -> bool {
        assert!(page < GUEST_PAGES);
        // SAFETY: bytes of a page of this memory.
        (0..PAGE).all(|n| unsafe { self.0.add(page * PAGE + n).read_volatile() } == byte)
    }
}

/// What the guests' image has at a page: the same in both.
fn content(page: usize) -> u8 {
    u8::try_from(page % 250 + 1).unwrap_or(1)
}

fn wait(what: &str, holds: impl Fn() -> bool) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > PATIENCE {
            return Err(format!("{what}: not after {} s", PATIENCE.as_secs()).into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn check(guests: &[Ram], page_of: impl Fn(usize) -> u8) -> Result<(), Box<dyn Error>> {
    for guest in guests {
        if let Some(page) = (0..GUEST_PAGES).find(|page| !guest.holds(*page, page_of(*page))) {
            return Err(format!("page {page} changed").into());
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args_os().nth(1).ok_or("usage: vmm SOCKET")?;
    let agent = Agent::connect(Path::new(&socket), None)?;

    let guests = [Ram::map()?, Ram::map()?];
    for guest in &guests {
        (0..GUEST_PAGES).for_each(|page| guest.write(page, content(page)));
    }
    let mut regions = Vec::new();
    for guest in &guests {
        // SAFETY: mapped above, used by the guest only; what else is done to it goes by the agent.
        regions.push(unsafe { agent.register(guest.0, GUEST_BYTES) }?);
    }
    let all = 2 * GUEST_PAGES as u64;
    wait("merged", || agent.status().pages_merged == all)?;
    println!("{}", agent.status());
    check(&guests, content)?;

    // The guests run: what one writes the other does not see.
    guests[0].write(7, 255);
    if !guests[0].holds(7, 255) || !guests[1].holds(7, content(7)) {
        return Err("a write is not where it was made".into());
    }
    guests[0].write(7, content(7));

    // A balloon takes the upper half of each, which reads as zeros when the guest takes it back.
    let half = GUEST_BYTES / 2;
    for guest in &guests {
        // SAFETY: the guest has given this half up.
        unsafe { agent.madvise(guest.0.add(half), half, libc::MADV_DONTNEED) }?;
    }
    let ballooned = |page| if page < GUEST_PAGES / 2 { content(page) } else { 0 };
    check(&guests, ballooned)?;

    for region in regions {
        region.unregister()?;
    }
    check(&guests, ballooned)?;
    println!("{}", agent.status());
    for guest in guests {
        // SAFETY: nobody uses it any more.
        unsafe { agent.munmap(guest.0, GUEST_BYTES) }?;
    }
    println!("fine");
    Ok(())
}
