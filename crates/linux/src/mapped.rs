//! Through what this process has mapped a device could be writing to its memory, open or not: the rings of
//! an io_uring and of what io_setup(2) makes are mapped, and a device may be that was closed.

use std::os::fd::AsFd;

use crate::lookup;
use crate::maps::Attributes;
use crate::pins::{FILES, HARMLESS_DEVICES, Pins, open, pins_of_kind};
use crate::ranges::Ranges;

/// The worst of what is mapped with MAP_SHARED, as rings and devices are; it need not be open any more. None
/// if that can't be told.
pub(crate) fn mapped(registered: &Ranges<Attributes>) -> Option<Pins> {
    let maps = open(c"/proc/thread-self/maps")?;
    let (mut worst, mut seen) = (Pins::None, 0);
    let each = |name: &[u8]| {
        worst = worst.max(pins_of_mapped(name));
        seen += 1;
        seen <= FILES && worst != Pins::ByDevices
    };
    match lookup::shared_files(maps.as_fd(), registered, each) {
        Ok(()) => (seen <= FILES).then_some(worst),
        // Before Linux 6.11 all mappings would have to be read, of which there may be tens of thousands: it may
        // have such.
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Some(Pins::ByFiles),
        Err(_) => None,
    }
}

fn pins_of_mapped(name: &[u8]) -> Pins {
    // How /proc says that no directory has it any more.
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    if name == b"/[aio]" {
        return Pins::ByFiles;
    }
    if let Some(kind) = name.strip_prefix(b"anon_inode:") {
        return pins_of_kind(kind);
    }
    let is_device = name.starts_with(b"/dev/") && !name.starts_with(b"/dev/shm/");
    let harmless = !is_device || HARMLESS_DEVICES.iter().any(|known| known.as_bytes() == name);
    if harmless && !name.starts_with(b"socket:") { Pins::None } else { Pins::ByDevices }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::ops::Range;

    use numerge_engine::machine::Vpn;

    use super::*;
    use crate::num::{PAGE_SHIFT, count, pointer, size};
    use crate::pins::possible;
    use crate::sys;

    /// Memory in so many mappings, a page each.
    struct Mappings {
        pages: Range<Vpn>,
    }

    impl Mappings {
        fn new(number: u64, start: Vpn) -> Self {
            let pages = start..start.plus(number);
            let (at, len) = (pointer(start), size(number << PAGE_SHIFT));
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let new = flags | libc::MAP_FIXED_NOREPLACE;
            // SAFETY: memory where nothing is.
            unsafe { sys::map(at, len, libc::PROT_NONE, new, -1, 0) }.expect("mapped");
            for n in (0..number).step_by(2) {
                let (page, len) = (pointer(pages.start.plus(n)), size(1 << PAGE_SHIFT));
                let flags = flags | libc::MAP_FIXED;
                // SAFETY: of the memory that was made here.
                unsafe { sys::map(page, len, libc::PROT_READ, flags, -1, 0) }.expect("mapped");
            }
            Self { pages }
        }
    }

    impl Drop for Mappings {
        fn drop(&mut self) {
            let len = size(count(&self.pages) << PAGE_SHIFT);
            // SAFETY: memory made by new(), to which nothing points.
            unsafe { sys::unmap(pointer(self.pages.start), len) }.expect("unmapped");
        }
    }

    #[test]
    fn what_is_mapped_and_closed_is_found() {
        let mut registered = Ranges::new();
        assert_eq!(mapped(&registered), Some(Pins::None));
        let mut context: libc::c_ulong = 0;
        // SAFETY: gives a number.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) };
        assert_eq!(made, 0, "{}", io::Error::last_os_error());
        assert_eq!(mapped(&registered), Some(Pins::ByFiles));
        assert!(possible(&registered) >= Pins::ByFiles);
        // Its number is its address. This is far before it, where nothing is.
        let mappings = Mappings::new(4096, Vpn((context >> PAGE_SHIFT) - (1 << 24)));
        assert_eq!(mapped(&registered), Some(Pins::ByFiles), "not one by one");
        registered.insert(mappings.pages.clone(), Attributes::default());
        assert_eq!(mapped(&registered), Some(Pins::ByFiles), "behind what is registered");
        drop(mappings);
        // SAFETY: the one made here.
        let ended = unsafe { libc::syscall(libc::SYS_io_destroy, context) };
        assert_eq!(ended, 0);
        assert_eq!(mapped(&registered), Some(Pins::None));
        for (name, pins) in [
            ("/dev/zero (deleted)", Pins::None),
            ("/dev/shm/a", Pins::None),
            ("/memfd:numerge-frames (deleted)", Pins::None),
            ("/usr/lib/libc.so.6", Pins::None),
            ("anon_inode:[io_uring]", Pins::ByFiles),
            ("anon_inode:[perf_event]", Pins::None),
            ("/dev/infiniband/uverbs0", Pins::ByDevices),
            ("socket:[7]", Pins::ByDevices),
        ] {
            assert_eq!(pins_of_mapped(name.as_bytes()), pins, "{name}");
        }
    }
}
