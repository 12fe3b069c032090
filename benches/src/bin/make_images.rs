//! Makes files that look like the memory of guests that run the same system: `make_images DIR COUNT
//! MIB`.
//!
//! An image is made of this machine's own files below /usr/lib and /usr/bin, each on page
//! boundaries as in a page cache. All images hold the same files, in an order of their own; one
//! page in fifty is altered, and one in ten is zeros. The same machine gives the same images.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use numerge_benches::Random;
use numerge_engine::machine::PAGE_SIZE;

const SOURCES: [&str; 2] = ["/usr/lib", "/usr/bin"];
/// Of 100 pages, so many are from files; the others are zeros.
const FILE_PERCENT: u64 = 90;
/// One page from a file in so many is altered.
const ALTERED_ONE_IN: u64 = 50;
/// Zeros come in runs of up to so many pages.
const ZERO_RUN_PAGES: u64 = 64;
/// No file takes more than this part of an image, lest one decides everything.
const LARGEST_FILE: u64 = 8;
const PAGE: u64 = PAGE_SIZE as u64;

struct Source {
    path: PathBuf,
    pages: u64,
}

/// All plain files below `dir`, in an order that is the same every time.
fn collect(dir: &Path, largest_pages: u64, out: &mut Vec<Source>) {
    // What can't be read is left out: any files will do.
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        // Neither follows links, so nothing comes twice but for hard links, which are few.
        let (Ok(kind), Ok(about)) = (entry.file_type(), entry.metadata()) else { continue };
        let pages = about.len().div_ceil(PAGE);
        if kind.is_dir() {
            collect(&entry.path(), largest_pages, out);
        } else if kind.is_file() && (1..=largest_pages).contains(&pages) {
            out.push(Source { path: entry.path(), pages });
        }
    }
}

/// As many files as fit `pages`, picked at random, and how many pages they have.
fn pick(mut sources: Vec<Source>, pages: u64) -> (Vec<Source>, u64) {
    Random::new(0).shuffle(&mut sources);
    let mut total = 0;
    sources.retain(|source| {
        let fits = total + source.pages <= pages && File::open(&source.path).is_ok();
        total += if fits { source.pages } else { 0 };
        fits
    });
    (sources, total)
}

struct Image {
    file: BufWriter<File>,
    random: Random,
    pages: u64,
    altered: u64,
    zeros: u64,
}

impl Image {
    fn zeros(&mut self, pages: u64) -> io::Result<()> {
        io::copy(&mut io::repeat(0).take(pages * PAGE), &mut self.file)?;
        self.zeros += pages;
        self.pages += pages;
        Ok(())
    }

    /// Appends a file, padded to whole pages; one that has become shorter counts as long as it was.
    fn source(&mut self, source: &Source) -> io::Result<()> {
        let length = source.pages * PAGE;
        let mut content = Vec::new();
        File::open(&source.path)?.take(length).read_to_end(&mut content)?;
        content.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
        for page in content.chunks_exact_mut(PAGE_SIZE) {
            if self.random.below(ALTERED_ONE_IN) == 0 {
                page[..8].copy_from_slice(&self.random.next().to_ne_bytes());
                self.altered += 1;
            }
        }
        self.file.write_all(&content)?;
        self.pages += source.pages;
        Ok(())
    }
}

fn write_image(path: &Path, number: u64, sources: &mut [Source], pages: u64) -> io::Result<Image> {
    let file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let random = Random::new(number + 1);
    let mut image = Image { file, random, pages: 0, altered: 0, zeros: 0 };
    image.random.shuffle(sources);
    let file_pages: u64 = sources.iter().map(|source| source.pages).sum();
    let mut zeros_left = pages - file_pages;
    let zeros_each = (2 * zeros_left / sources.len() as u64).clamp(1, ZERO_RUN_PAGES);
    for source in sources {
        image.source(source)?;
        let run = image.random.below(zeros_each + 1).min(zeros_left);
        image.zeros(run)?;
        zeros_left -= run;
    }
    image.zeros(zeros_left)?;
    image.file.flush()?;
    Ok(image)
}

fn make(dir: &Path, count: u64, mib: u64) -> io::Result<()> {
    let wanted = mib * (1 << 20) / PAGE;
    let mut sources = Vec::new();
    for source in SOURCES {
        collect(Path::new(source), wanted / LARGEST_FILE, &mut sources);
    }
    let (mut sources, file_pages) = pick(sources, wanted * FILE_PERCENT / 100);
    if sources.is_empty() {
        let message =
            format!("{} have no files that fit an image of {mib} MiB", SOURCES.join(" and "));
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    // Little to choose from gives smaller images of the same kind. Seldom does what there is fit to
    // the page, so zeros may fill a little more than their share.
    let is_enough = file_pages * 100 >= wanted * (FILE_PERCENT - 5);
    let pages = if is_enough { wanted } else { file_pages * 100 / FILE_PERCENT };
    if !is_enough {
        println!(
            "{} hold only {} MiB of fitting files: the images get {} MiB each instead of {mib}",
            SOURCES.join(" and "),
            (file_pages * PAGE) >> 20,
            (pages * PAGE) >> 20,
        );
    }
    for number in 0..count {
        let path = dir.join(format!("image-{number}"));
        let image = write_image(&path, number, &mut sources, pages)?;
        println!(
            "{}: {} MiB, {} files, {} pages altered, {} pages of zeros",
            path.display(),
            (image.pages * PAGE) >> 20,
            sources.len(),
            image.altered,
            image.zeros
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, count, mib] = arguments.as_slice() else {
        eprintln!("usage: make_images DIR COUNT MIB");
        return ExitCode::from(2);
    };
    let (Ok(count @ 1..=1024), Ok(mib @ 1..=65536)) = (count.parse(), mib.parse()) else {
        eprintln!("make_images: COUNT is 1 to 1024, MIB 1 to 65536");
        return ExitCode::from(2);
    };
    match make(Path::new(dir), count, mib) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("make_images: {error}");
            ExitCode::FAILURE
        }
    }
}
