//! Prints what the files of a KSM directory do, one fact a line: modes, what is read, and what each of
//! many values written comes to. The lines of two directories that do the same are equal, but for
//! counters that go on.
//!
//! The last lines are about what can't be set while pages are merged. Two equal pages are offered for that;
//! where the directory is about other memory, there must be two in it.
//!
//! On the kernel's own directory run it below `perf/ksm`, which puts the settings back whatever happens.
//!
//! usage: `ksm-facts [DIRECTORY]` (default: /sys/kernel/mm/ksm)

mod pair;
mod values;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pair::Pair;
use values::{HISTORIES, VALUES, WHILE_MERGED};

/// What is not merged after so long is not going to be.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let directory = std::env::args_os().nth(1).unwrap_or_else(|| "/sys/kernel/mm/ksm".into());
    match Facts::new(Path::new(&directory)).and_then(|facts| facts.print(&mut io::stdout().lock()))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ksm-facts: {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

/// Whose it is, by numbers: no names have to be known.
fn owner(found: &fs::Metadata) -> String {
    format!("user {} group {}", found.uid(), found.gid())
}

/// The files of a directory, and what the knobs were found to be.
struct Facts {
    directory: PathBuf,
    names: Vec<String>,
}

impl Facts {
    fn new(directory: &Path) -> io::Result<Self> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(Self { directory: directory.into(), names })
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let found = fs::metadata(&self.directory)?;
        writeln!(out, "directory: mode {:o}, {}, {}", found.mode(), owner(&found), self.changes())?;
        for name in &self.names {
            let path = self.directory.join(name);
            let found = fs::metadata(&path)?;
            writeln!(
                out,
                "{name}: mode {:o}, {}, {} bytes, {} links",
                found.mode(),
                owner(&found),
                found.len(),
                found.nlink()
            )?;
            if found.mode() & 0o200 == 0 {
                writeln!(out, "{name}: read-only: {}", read_only(&path))?;
                continue;
            }
            let default = value(&read(&path));
            writeln!(out, "{name}: reads {:?}", read(&path))?;
            writeln!(out, "{name}: descriptors: {}", descriptors(&path))?;
            for text in VALUES {
                writeln!(out, "{name}: {}", written(&path, text))?;
                put(&path, &default);
            }
            for length in [4095, 4096, 4097, 8192, 200_000, 2_000_000] {
                let mut text = vec![b'0'; length];
                text[..2].copy_from_slice(b"00");
                text[length.min(4096) - 1] = b'2';
                writeln!(out, "{name}: {length} bytes, 2 in the end: {}", write(&path, &text))?;
                put(&path, &default);
            }
        }
        for history in HISTORIES {
            self.history(history, out)?;
        }
        self.while_merged(out)
    }

    /// Settings while pages are merged, and when they are not any more.
    fn while_merged(&self, out: &mut impl Write) -> io::Result<()> {
        let run = self.directory.join("run");
        let sharing = self.directory.join("pages_sharing");
        let found = read(&run);
        let pair = Pair::new()?;
        put(&run, "1\n");
        let began = Instant::now();
        while read(&sharing) == "0\n" && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
        put(&run, "0\n");
        let is_merged = read(&sharing) != "0\n";
        writeln!(out, "then, while pages are merged, pages_sharing: above 0 {is_merged}")?;
        let is_there = |name: &str| self.directory.join(name).exists();
        for (name, texts) in WHILE_MERGED.iter().filter(|(name, _)| is_there(name)) {
            for text in *texts {
                let fact = written(&self.directory.join(name), text.as_bytes());
                writeln!(out, "then, while pages are merged, {name}: {fact}")?;
            }
        }
        put(&run, "2\n");
        drop(pair);
        for (name, texts) in WHILE_MERGED.iter().filter(|(name, _)| is_there(name)) {
            let path = self.directory.join(name);
            let default = value(&read(&path));
            let fact = written(&path, texts[1].as_bytes());
            writeln!(out, "then, unmerged, {name}: {fact}")?;
            put(&path, &default);
        }
        put(&run, &found);
        Ok(())
    }

    /// A few knobs set in order, and what they are then.
    fn history(&self, history: &[(&str, &str)], out: &mut impl Write) -> io::Result<()> {
        let named = |name: &str| self.directory.join(name);
        if history.iter().any(|(name, _)| !named(name).exists()) {
            return Ok(());
        }
        let before: Vec<String> =
            history.iter().map(|(name, _)| value(&read(&named(name)))).collect();
        for (name, text) in history {
            write!(out, "then {name}: {}", written(&named(name), text.as_bytes()))?;
            let others = history.iter().map(|(other, _)| *other).filter(|other| other != name);
            let mut others: Vec<&str> = others.collect();
            if others.contains(&"advisor_mode") || *name == "advisor_mode" {
                others.push("pages_to_scan");
            }
            others.sort_unstable();
            others.dedup();
            for other in others {
                write!(out, ", {other} {:?}", read(&named(other)))?;
            }
            writeln!(out)?;
        }
        // The last written first: what depends on another knob comes after it.
        for ((name, _), before) in history.iter().zip(&before).rev() {
            put(&named(name), before);
        }
        Ok(())
    }

    /// What changes to the directory come to.
    fn changes(&self) -> String {
        let new = self.directory.join("new");
        let old = self.directory.join("run");
        let create = OpenOptions::new().write(true).create_new(true).open(&new).map(drop);
        format!(
            "create {}, mkdir {}, unlink {}, rename {}, symlink {}, link {}, look up {}",
            outcome(create),
            outcome(fs::create_dir(&new)),
            outcome(fs::remove_file(&old)),
            outcome(fs::rename(&old, &new)),
            outcome(std::os::unix::fs::symlink("run", &new)),
            outcome(fs::hard_link(&old, &new)),
            outcome(fs::metadata(&new).map(drop)),
        )
    }
}

/// Of a list of choices, the one in brackets.
fn value(text: &str) -> String {
    match (text.find('['), text.find(']')) {
        (Some(from), Some(to)) if from < to => text[from + 1..to].into(),
        _ => text.into(),
    }
}

/// What is in a file, or why it can't be read.
fn read(path: &Path) -> String {
    fs::read(path).map_or_else(|error| name(&error), |text| String::from_utf8_lossy(&text).into())
}

fn put(path: &Path, value: &str) {
    if self::value(&read(path)) != value {
        // What can't be put back, the next line shows.
        let _ = fs::write(path, value);
    }
}

/// A value written, and what is read then.
fn written(path: &Path, text: &[u8]) -> String {
    format!("\"{}\" {}", text.escape_ascii(), write(path, text))
}

fn write(path: &Path, text: &[u8]) -> String {
    let file = OpenOptions::new().write(true).truncate(true).open(path);
    let written = file.and_then(|mut file| file.write(text));
    format!("gives {}, reads {:?}", count(written), read(path))
}

/// Unusual ways to read and write one.
fn descriptors(path: &Path) -> String {
    let default = value(&read(path)).into_bytes();
    let open = |options: &mut OpenOptions| options.open(path);
    let mut facts = Vec::new();
    let mut fact = |name: &str, found: io::Result<String>| {
        facts.push(format!("{name} {}", found.unwrap_or_else(|error| self::name(&error))));
    };
    fact("bytewise", File::open(path).and_then(|file| bytewise(&file)));
    fact(
        "again",
        File::open(path).and_then(|mut file| {
            let (mut first, mut second) = (String::new(), String::new());
            file.read_to_string(&mut first)?;
            file.seek(SeekFrom::Start(0))?;
            file.read_to_string(&mut second)?;
            Ok((first == second && !first.is_empty()).to_string())
        }),
    );
    for at in [1, 100, 4096, 1 << 40] {
        let mut buffer = [0; 64];
        let pread = File::open(path).and_then(|file| file.read_at(&mut buffer, at));
        fact(
            &format!("pread at {at}"),
            pread.map(|count| {
                let expected =
                    read(path).len().saturating_sub(usize::try_from(at).unwrap_or(usize::MAX));
                (if count == expected { "the rest" } else { "something else" }).to_owned()
            }),
        );
    }
    fact(
        "end at",
        File::open(path).and_then(|mut file| Ok(file.seek(SeekFrom::End(0))?.to_string())),
    );
    fact(
        "two writes",
        open(OpenOptions::new().write(true)).map(|mut file| {
            format!("{} {}", count(file.write(b"bad")), count(file.write(&default)))
        }),
    );
    fact(
        "pwrite at 100",
        open(OpenOptions::new().write(true)).map(|file| count(file.write_at(&default, 100))),
    );
    fact(
        "append",
        open(OpenOptions::new().append(true)).map(|mut file| count(file.write(&default))),
    );
    fact(
        "writev",
        open(OpenOptions::new().write(true)).map(|mut file| {
            let (head, tail) = default.split_at(default.len() / 2);
            count(file.write_vectored(&[IoSlice::new(head), IoSlice::new(tail)]))
        }),
    );
    fact(
        "write and read",
        open(OpenOptions::new().read(true).write(true)).and_then(|mut file| {
            let mut rest = String::new();
            let before = read(path);
            file.write_all(&default)?;
            file.read_to_string(&mut rest)?;
            Ok((before.get(default.len()..) == Some(&rest) || rest == before[before.len()..])
                .to_string())
        }),
    );
    fact(
        "write after read",
        open(OpenOptions::new().read(true).write(true)).and_then(|mut file| {
            let mut rest = String::new();
            file.read_to_string(&mut rest)?;
            Ok(count(file.write(&default)))
        }),
    );
    fact(
        "read of a writer",
        open(OpenOptions::new().write(true))
            .and_then(|mut file| file.read(&mut [0; 8]).map(|count| count.to_string())),
    );
    fact("write of a reader", File::open(path).map(|mut file| count(file.write(&default))));
    fact("create", open(OpenOptions::new().write(true).create(true)).map(|_| "ok".into()));
    fact("exclusive", open(OpenOptions::new().write(true).create_new(true)).map(|_| "ok".into()));
    fact(
        "as a directory",
        open(OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY)).map(|_| "ok".into()),
    );
    fact(
        "set length",
        open(OpenOptions::new().write(true)).and_then(|file| {
            file.set_len(7)?;
            Ok(file.metadata()?.len().to_string())
        }),
    );
    facts.join(", ")
}

fn bytewise(mut file: &File) -> io::Result<String> {
    let (mut byte, mut text) = ([0], Vec::new());
    while file.read(&mut byte)? == 1 {
        text.push(byte[0]);
    }
    Ok(format!("{:?}", String::from_utf8_lossy(&text)))
}

/// A counter: whether it reads as a number, and what writing to it comes to.
fn read_only(path: &Path) -> String {
    let text = read(path);
    let number = text.strip_suffix('\n').is_some_and(|text| text.parse::<i64>().is_ok());
    let opened = |options: &mut OpenOptions| outcome(options.open(path).map(drop));
    let c_path = CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
    // SAFETY: a path that ends with a NUL.
    let truncated = match unsafe { libc::truncate(c_path.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    format!(
        "a number and a newline {number}, to write {}, to read and write {}, to truncate {}, truncate {}",
        opened(OpenOptions::new().write(true)),
        opened(OpenOptions::new().read(true).write(true)),
        opened(OpenOptions::new().write(true).truncate(true)),
        outcome(truncated),
    )
}

fn count(result: io::Result<usize>) -> String {
    result.map_or_else(|error| name(&error), |count| count.to_string())
}

fn outcome(result: io::Result<()>) -> String {
    result.map_or_else(|error| name(&error), |()| "ok".into())
}

/// The name of an error number.
fn name(error: &io::Error) -> String {
    let names = [
        (libc::E2BIG, "E2BIG"),
        (libc::EACCES, "EACCES"),
        (libc::EBADF, "EBADF"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::EINVAL, "EINVAL"),
        (libc::EIO, "EIO"),
        (libc::EISDIR, "EISDIR"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOENT, "ENOENT"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::ENOTSUP, "ENOTSUP"),
        (libc::EPERM, "EPERM"),
        (libc::ERANGE, "ERANGE"),
        (libc::EROFS, "EROFS"),
    ];
    let known = names.iter().find(|(number, _)| error.raw_os_error() == Some(*number));
    known.map_or_else(|| error.to_string(), |(_, name)| (*name).to_owned())
}
