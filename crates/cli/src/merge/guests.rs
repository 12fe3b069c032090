//! The guests: copies of the images in registered memory, and what each byte of them must be.

use std::thread;

use numerge::{AllocateError, MemoryError, Merger, PagesByNode, Region};

use super::images::{Image, ImageError, PAGE};

/// Bytes copied and compared at once.
const PIECE: usize = 1 << 20;

/// Bytes that a write to a page changes, in its middle.
const PATCH: usize = 64;
const PATCH_AT: usize = PAGE / 2;

/// One page in this many is written to.
const WRITTEN_ONE_IN: u64 = 8;

/// Why guests could not be loaded, or are not as they must be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    #[error(
        "out of memory: {needed_mib} MiB more are needed and {available_mib} MiB are available; \
         load less, or fewer copies"
    )]
    OutOfMemory { needed_mib: u64, available_mib: u64 },
    #[error("VERIFICATION FAILED: guest {guest} differs from its files in page {page}")]
    Differs { guest: usize, page: usize },
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// One copy of an image.
struct Guest<'a> {
    image: &'a Image,
    region: Region,
    number: usize,
}

/// All copies of all images.
pub(crate) struct Guests<'a> {
    guests: Vec<Guest<'a>>,
    /// Whether one page in [`WRITTEN_ONE_IN`] has been written to.
    written: bool,
}

impl<'a> Guests<'a> {
    /// Loads `copies` copies of each image.
    pub(crate) fn load(
        merger: &Merger,
        images: &'a [Image],
        copies: usize,
        mut progress: impl FnMut(usize),
    ) -> Result<Self, GuestError> {
        let mut guests = Vec::new();
        for image in images {
            for _ in 0..copies {
                expect_memory(image.bytes)?;
                let region = merger.allocate(image.bytes)?;
                for part in &image.parts {
                    for (piece, at) in part.content()?.chunks(PIECE).zip((0..).step_by(PIECE)) {
                        region.write(part.offset + at, piece)?;
                        progress(piece.len());
                    }
                }
                guests.push(Guest { image, region, number: guests.len() });
            }
        }
        Ok(Self { guests, written: false })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.guests.iter().map(|guest| guest.region.len() as u64).sum()
    }

    /// Each guest's bytes, and on which nodes they are.
    pub(crate) fn places(&self) -> Result<Vec<(u64, PagesByNode)>, MemoryError> {
        let place = |guest: &Guest<'_>| {
            guest.region.pages_by_node().map(|pages| (guest.region.len() as u64, pages))
        };
        self.guests.iter().map(place).collect()
    }

    /// Writes to one page in eight of every guest, while it is merged.
    pub(crate) fn write(&mut self) -> Result<u64, GuestError> {
        self.written = true;
        let mut count = 0;
        for guest in &self.guests {
            for page in (0..guest.region.len() / PAGE).filter(|page| guest.is_written(*page)) {
                guest.region.write(page * PAGE + PATCH_AT, &guest.patch(page))?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Compares every byte of every guest with what it must be.
    pub(crate) fn verify(&self) -> Result<(), GuestError> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(4);
        let check = |thread| {
            let mut mine = self.guests.iter().skip(thread).step_by(threads);
            mine.try_for_each(|guest| guest.verify(self.written))
        };
        thread::scope(|scope| {
            let checks: Vec<_> =
                (0..threads).map(|thread| scope.spawn(move || check(thread))).collect();
            let resume = |panic| std::panic::resume_unwind(panic);
            checks.into_iter().try_for_each(|check| check.join().unwrap_or_else(resume))
        })
    }
}

/// Linux hands out more memory than it has and kills who uses it: better to ask first.
fn expect_memory(bytes: usize) -> Result<(), GuestError> {
    let needed = bytes as u64 + (bytes as u64) / 16;
    let available = numerge_linux::available_bytes()?;
    if needed > available {
        return Err(GuestError::OutOfMemory {
            needed_mib: needed >> 20,
            available_mib: available >> 20,
        });
    }
    Ok(())
}

/// A number that looks random, and is the same every time.
fn scramble(value: u64) -> u64 {
    let mixed = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
}

impl Guest<'_> {
    fn is_written(&self, page: usize) -> bool {
        scramble(self.seed(page)).is_multiple_of(WRITTEN_ONE_IN)
    }

    fn seed(&self, page: usize) -> u64 {
        (self.number as u64) << 40 | page as u64
    }

    fn patch(&self, page: usize) -> [u8; PATCH] {
        let mut patch = [0; PATCH];
        for (word, place) in patch.chunks_exact_mut(8).zip(1..) {
            word.copy_from_slice(&scramble(self.seed(page) ^ place << 56).to_le_bytes());
        }
        patch
    }

    fn verify(&self, written: bool) -> Result<(), GuestError> {
        let mut found = vec![0; PIECE];
        let mut expected = vec![0; PIECE];
        for part in &self.image.parts {
            let content = part.content()?;
            for (piece, at) in content.chunks(PIECE).zip((0..).step_by(PIECE)) {
                let bytes = piece.len().next_multiple_of(PAGE);
                let (found, expected) = (&mut found[..bytes], &mut expected[..bytes]);
                expected[..piece.len()].copy_from_slice(piece);
                expected[piece.len()..].fill(0);
                let first = (part.offset + at) / PAGE;
                if written {
                    for (page, bytes) in (first..).zip(expected.chunks_exact_mut(PAGE)) {
                        if self.is_written(page) {
                            bytes[PATCH_AT..PATCH_AT + PATCH].copy_from_slice(&self.patch(page));
                        }
                    }
                }
                self.region.read(part.offset + at, found)?;
                if found != expected {
                    let pages = found.chunks_exact(PAGE).zip(expected.chunks_exact(PAGE));
                    let page = first + pages.take_while(|(a, b)| a == b).count();
                    return Err(GuestError::Differs { guest: self.number, page });
                }
            }
        }
        Ok(())
    }
}
