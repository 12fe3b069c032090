//! Programs that are known to go past the C library: Go's, where the C library is loaded at all (cgo).
//!
//! Go's runtime maps memory by the C library's functions if it has them, and gives it up, and forks, by
//! instructions of its own, which nobody sees: memory that is merged would read as it was where the runtime
//! takes it for empty. What tells a file of Go's is a section that its linker makes and that stays when symbols
//! are taken out; the names are those of Go's `cmd/link` and `debug/buildinfo`.
//!
//! The loader is not asked: who forks while it is finds it locked in the child, for ever.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use numerge_linux::{FileNumber, executables};

const SECTIONS: [&[u8]; 3] = [b".go.buildinfo", b".note.go.buildid", b".gopclntab"];

/// Files that are remembered as looked at; beyond, some are looked at again.
const FILES: usize = 4096;
/// Most sections of a file, and bytes of their names, that are looked at.
const MOST_SECTIONS: u16 = 1024;
const MOST_NAMES: u64 = 1 << 16;

/// The program itself, whatever has become of its path.
const OWN: &str = "/proc/self/exe";

/// The files that a process executes, as far as they were looked at.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Those that are none of Go's.
    harmless: BTreeSet<(FileNumber, PathBuf)>,
}

impl Files {
    /// Why nothing is to be merged, if the process executes a file that does not call the kernel by the C
    /// library. What can't be read is not known to, and is looked at again the next time.
    ///
    /// # Errors
    /// If it can't be told what it executes.
    pub(crate) fn bypass(&mut self) -> io::Result<Option<String>> {
        if self.harmless.len() > FILES {
            self.harmless.clear();
        }
        let own = self.harmless.is_empty().then(|| (FileNumber::default(), OWN.into()));
        for file in own.into_iter().chain(executables()?) {
            if self.harmless.contains(&file) {
                continue;
            }
            match is_of_go(&file.1) {
                Ok(true) => {
                    let path = file.1.display();
                    let why = "is of Go, whose runtime calls the kernel past the C library, unseen";
                    return Ok(Some(format!("{path} {why}")));
                }
                Ok(false) => drop(self.harmless.insert(file)),
                Err(_) => {}
            }
        }
        Ok(None)
    }
}

/// Whether it is an ELF file of 64 bits with one of the sections.
///
/// # Errors
/// If it can't be read.
fn is_of_go(path: &Path) -> io::Result<bool> {
    // What is there now may be another, and is not opened if that does something.
    if !path.metadata()?.is_file() {
        return Ok(false);
    }
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let header = read(&file, 0, HEADER_BYTES)?;
    if !header.starts_with(b"\x7fELF\x02") {
        return Ok(false);
    }
    let [size, count, names] = [0x3a, 0x3c, 0x3e].map(|at| u16_at(&header, at));
    let count = count.min(MOST_SECTIONS);
    if usize::from(size) != SECTION_BYTES || names >= count {
        return Ok(false);
    }
    let table = read(&file, u64_at(&header, 0x28), usize::from(count) * SECTION_BYTES)?;
    let mut sections = table.chunks_exact(SECTION_BYTES);
    let Some(of_names) = sections.clone().nth(names.into()) else { return Ok(false) };
    let length = u64_at(of_names, 0x20).min(MOST_NAMES);
    let names = read(&file, u64_at(of_names, 0x18), usize::try_from(length).unwrap_or(0))?;
    Ok(sections.any(|section| {
        let start = usize::try_from(u32_at(section, 0)).unwrap_or(usize::MAX);
        let name = names.get(start..).and_then(|rest| rest.split(|byte| *byte == 0).next());
        name.is_some_and(|name| SECTIONS.contains(&name))
    }))
}

/// `Elf64_Ehdr` and `Elf64_Shdr` of elf(5); so are the places of fields above.
const HEADER_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;

fn read(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |found| u16::from_ne_bytes(*found))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |found| u32::from_ne_bytes(*found))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |found| u64::from_ne_bytes(*found))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file with sections of these names, the first of which is that of the names.
    fn elf(sections: &[&str]) -> Vec<u8> {
        let names: Vec<u8> =
            sections.iter().flat_map(|name| [name.as_bytes(), b"\0"]).flatten().copied().collect();
        let mut bytes = b"\x7fELF\x02".to_vec();
        bytes.resize(HEADER_BYTES, 0);
        let table = (HEADER_BYTES + names.len()) as u64;
        bytes[0x28..0x30].copy_from_slice(&table.to_ne_bytes());
        bytes[0x3a..0x3c].copy_from_slice(&64_u16.to_ne_bytes());
        bytes[0x3c..0x3e].copy_from_slice(&u16::try_from(sections.len()).unwrap().to_ne_bytes());
        bytes.extend(&names);
        let mut at = 0_u32;
        for name in sections {
            let mut section = [0; SECTION_BYTES];
            section[..4].copy_from_slice(&at.to_ne_bytes());
            section[0x18..0x20].copy_from_slice(&(HEADER_BYTES as u64).to_ne_bytes());
            section[0x20..0x28].copy_from_slice(&(names.len() as u64).to_ne_bytes());
            bytes.extend(section);
            at += u32::try_from(name.len()).unwrap() + 1;
        }
        bytes
    }

    fn says(bytes: &[u8]) -> io::Result<bool> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        is_of_go(file.path())
    }

    #[test]
    fn files_of_go_are_known_by_their_sections() {
        for of_go in [".go.buildinfo", ".note.go.buildid", ".gopclntab"] {
            assert!(says(&elf(&[".shstrtab", ".text", of_go])).unwrap(), "{of_go}");
        }
        assert!(!says(&elf(&[".shstrtab", ".text", ".go", ".go.buildinfo2"])).unwrap());
        assert!(!says(&elf(&[])).unwrap());
        assert!(!is_of_go(&std::env::current_exe().unwrap()).unwrap());
        assert!(!is_of_go(Path::new("/dev/null")).unwrap());
        assert!(is_of_go(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn whatever_a_file_says_it_is_looked_at_within_bounds() {
        let whole = elf(&[".shstrtab", ".text", ".go.buildinfo"]);
        for length in 0..whole.len() {
            assert!(!says(&whole[..length]).unwrap_or(false), "{length} bytes");
        }
        for at in 0..whole.len() {
            let mut wrong = whole.clone();
            wrong[at] = 0xff;
            let _ = says(&wrong);
        }
    }

    #[test]
    fn what_this_program_executes_is_not_of_go_and_is_looked_at_once() {
        let mut files = Files::default();
        assert_eq!(files.bypass().unwrap(), None);
        let seen = files.harmless.clone();
        assert!(seen.len() > 2, "itself, and the C library: {seen:?}");
        assert_eq!(files.bypass().unwrap(), None);
        assert_eq!(files.harmless, seen);
    }
}
