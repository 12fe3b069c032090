//! Programs that are known to go past the C library: Go's, where the C library is loaded at all (cgo).
//!
//! Go's runtime maps memory by the C library's functions if it has them, and gives it up, and forks, by
//! instructions of its own, which nobody sees: memory that is merged would read as it was where the runtime
//! takes it for empty. What tells a Go program is the note with its build's number, or what `go version`
//! looks for in the data (`debug/buildinfo` of Go's library); a build may leave out the first.

use std::ffi::{CStr, OsStr, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use libc::dl_phdr_info;

/// A note's owner and type (`ELF_NOTE_GOBUILDID_TAG` of Go's linker).
const OWNER: &[u8] = b"Go\0\0";
const BUILD_ID: u32 = 4;
/// Where the build's information begins, at a multiple of so many bytes.
const INFORMATION: &[u8] = b"\xff Go buildinf:";
const ALIGNMENT: usize = 16;
/// How far into a segment it is looked for: it comes first in its own.
const LOOKED_THROUGH: usize = 1 << 16;

/// A process's objects, as far as they were looked at.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    /// How many were loaded by then, in all.
    loaded: u64,
}

/// What a look finds.
struct Look {
    loaded: u64,
    /// The name of one.
    found: Option<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Objects {
    /// Why nothing is to be merged, if an object that was loaded since the last look, or before the first, is
    /// none that calls the kernel by the C library. Not with anything held that a thread wants which loads one.
    pub(crate) fn new_foreign(&mut self) -> Option<String> {
        let mut look = Look { loaded: self.loaded, found: None, buffer: Vec::new() };
        // SAFETY: `each` gets `look` while it is borrowed here, and unwinds no further: it does not panic.
        unsafe { libc::dl_iterate_phdr(Some(each), (&raw mut look).cast()) };
        self.loaded = look.loaded;
        let name = PathBuf::from(OsStr::from_bytes(&look.found?)).display().to_string();
        let name = if name.is_empty() { "the program".into() } else { name };
        Some(format!("{name} is of Go, whose runtime calls the kernel past the C library, unseen"))
    }
}

/// For each object; not 0 ends it.
extern "C" fn each(info: *mut dl_phdr_info, _: usize, look: *mut c_void) -> c_int {
    // SAFETY: both are lent for the call, the first by the loader, which has filled it in.
    let (info, look) = unsafe { (&*info, &mut *look.cast::<Look>()) };
    if info.dlpi_adds == look.loaded && look.buffer.is_empty() {
        return 1;
    }
    look.loaded = info.dlpi_adds;
    look.buffer.resize(LOOKED_THROUGH, 0);
    if is_foreign(info, &mut look.buffer) {
        // SAFETY: the loader's, with an end.
        let name = unsafe { CStr::from_ptr(info.dlpi_name) };
        look.found = Some(name.to_bytes().to_vec());
        return 1;
    }
    0
}

fn is_foreign(info: &dl_phdr_info, buffer: &mut [u8]) -> bool {
    // SAFETY: the loader's table of this object, of so many entries, which stays while it calls.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    headers.iter().any(|header| {
        let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
        let length = usize::try_from(header.p_memsz).unwrap_or(usize::MAX).min(buffer.len());
        let readable = header.p_flags & libc::PF_R != 0;
        match header.p_type {
            libc::PT_NOTE if readable => has_note(read(start, &mut buffer[..length])),
            libc::PT_LOAD if readable && header.p_flags & libc::PF_X == 0 => {
                has_information(read(start, &mut buffer[..length]))
            }
            _ => false,
        }
    })
}

/// Reads the process's own memory as far as it is there: a program may have unmapped anything.
fn read(start: u64, buffer: &mut [u8]) -> &[u8] {
    let Ok(start) = usize::try_from(start) else { return &[] };
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(start), ..local };
    // SAFETY: writes to `buffer` alone, at most what it holds; the rest is an address, which is not
    // dereferenced here.
    let count = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    &buffer[..usize::try_from(count).unwrap_or(0)]
}

/// Whether one of the notes is a Go build's number.
fn has_note(mut notes: &[u8]) -> bool {
    let padded = |length: u32| (length as usize).next_multiple_of(4);
    while let Some((head, rest)) = notes.split_first_chunk::<12>() {
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (owner, content, kind) = (word(0), word(4), word(8));
        if kind == BUILD_ID && owner as usize == OWNER.len() && rest.starts_with(OWNER) {
            return true;
        }
        let Some(next) = rest.get(padded(owner) + padded(content)..) else { return false };
        notes = next;
    }
    false
}

fn has_information(data: &[u8]) -> bool {
    data.chunks(ALIGNMENT).any(|chunk| chunk.starts_with(INFORMATION))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(owner: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let words = [owner.len(), content.len(), kind as usize];
        let mut bytes: Vec<u8> =
            words.iter().flat_map(|word| u32::try_from(*word).unwrap().to_ne_bytes()).collect();
        for part in [owner, content] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn notes_of_go_are_found_behind_others_and_what_is_cut_off_is_none() {
        let [others, go] = [note(b"GNU\0", 3, b"12345"), note(OWNER, BUILD_ID, b"id/of/build")];
        assert!(has_note(&go) && has_note(&[&others[..], &go].concat()));
        assert!(!has_note(&others) && !has_note(&note(OWNER, 5, b"")));
        assert!(!has_note(&note(b"GNU\0", BUILD_ID, b"Go\0\0")));
        for cut in 0..16 {
            assert!(!has_note(&go[..cut]), "{cut}");
        }
        // Longer than all there is.
        assert!(!has_note(&[0xff; 64]));
    }

    #[test]
    fn this_program_is_not_of_go_and_is_looked_at_once() {
        let mut objects = Objects::default();
        assert_eq!(objects.new_foreign(), None);
        let loaded = objects.loaded;
        assert!(loaded > 0);
        assert_eq!(objects.new_foreign(), None);
        assert_eq!(objects.loaded, loaded);
    }

    #[test]
    fn the_builds_information_is_found_where_it_may_be() {
        let mut data = vec![0; 4096];
        assert!(!has_information(&data));
        data[1024..1024 + INFORMATION.len()].copy_from_slice(INFORMATION);
        assert!(has_information(&data));
        assert!(!has_information(&data[8..]), "not at a multiple of 16");
    }
}
