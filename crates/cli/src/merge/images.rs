//! The memory images: which files, and how they lie in memory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

/// Bytes of a page; every file begins at a page boundary.
pub(crate) const PAGE: usize = 4096;

/// Why an image can't be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: is empty, there is nothing to load", .0.display())]
    Empty(PathBuf),
    #[error("{}: is neither a file nor a directory", .0.display())]
    NotAFile(PathBuf),
    #[error("{}: there are no files with content below it", .0.display())]
    NoFiles(PathBuf),
    #[error("{}: was made shorter while it was read", .0.display())]
    Shrunk(PathBuf),
}

/// One file of an image.
pub(crate) struct Part {
    path: PathBuf,
    map: Mmap,
    /// Where it begins in the image.
    pub(crate) offset: usize,
}

/// What one path stands for: a file, or all files below a directory, each padded with zeros to
/// whole pages.
pub(crate) struct Image {
    pub(crate) parts: Vec<Part>,
    /// Length with padding.
    pub(crate) bytes: usize,
    pub(crate) padded_files: usize,
    pub(crate) skipped_files: usize,
}

impl Part {
    /// The file's content.
    ///
    /// # Errors
    /// If the file has shrunk since it was opened, for touching what is gone would be fatal.
    pub(crate) fn content(&self) -> Result<&[u8], ImageError> {
        let now = std::fs::metadata(&self.path)
            .map_err(|source| ImageError::Io { path: self.path.clone(), source })?;
        if now.len() < self.map.len() as u64 {
            return Err(ImageError::Shrunk(self.path.clone()));
        }
        Ok(&self.map)
    }
}

impl Image {
    /// Opens what `path` stands for.
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let mut image = Self { parts: Vec::new(), bytes: 0, padded_files: 0, skipped_files: 0 };
        let error = |source| ImageError::Io { path: path.to_owned(), source };
        let kind = std::fs::metadata(path).map_err(error)?;
        if kind.is_dir() {
            image.add_directory(path)?;
            if image.parts.is_empty() {
                return Err(ImageError::NoFiles(path.to_owned()));
            }
        } else if kind.is_file() {
            if kind.len() == 0 {
                return Err(ImageError::Empty(path.to_owned()));
            }
            image.add_file(path)?;
        } else {
            return Err(ImageError::NotAFile(path.to_owned()));
        }
        Ok(image)
    }

    /// Adds the files below a directory, by name. Links, special files and empty files are passed
    /// over.
    fn add_directory(&mut self, path: &Path) -> Result<(), ImageError> {
        let error = |source| ImageError::Io { path: path.to_owned(), source };
        let mut entries = std::fs::read_dir(path)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(error)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.metadata().map_err(error)?;
            if kind.is_dir() {
                self.add_directory(&entry.path())?;
            } else if kind.is_file() && kind.len() > 0 {
                self.add_file(&entry.path())?;
            } else {
                self.skipped_files += 1;
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ImageError> {
        let error = |source| ImageError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(error)?;
        // SAFETY: needed to read files larger than a buffer without a copy. What another program
        // writes to the file meanwhile shows in the map; it is only ever copied and compared as
        // bytes, for which any value will do, and a difference is reported as one.
        let map = unsafe { Mmap::map(&file) }.map_err(error)?;
        if map.len() % PAGE != 0 {
            self.padded_files += 1;
        }
        let offset = self.bytes;
        self.bytes += map.len().next_multiple_of(PAGE);
        self.parts.push(Part { path: path.to_owned(), map, offset });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_below_a_directory_lie_page_by_page_in_the_order_of_their_names() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("b")).unwrap();
        std::fs::write(root.path().join("c"), [3; PAGE]).unwrap();
        std::fs::write(root.path().join("b/x"), [2; PAGE + 1]).unwrap();
        std::fs::write(root.path().join("a"), [1; 5]).unwrap();
        std::fs::write(root.path().join("empty"), []).unwrap();
        std::os::unix::fs::symlink("a", root.path().join("link")).unwrap();
        let image = Image::open(root.path()).unwrap();
        let parts: Vec<(usize, u8)> =
            image.parts.iter().map(|part| (part.offset, part.content().unwrap()[0])).collect();
        assert_eq!(parts, [(0, 1), (PAGE, 2), (3 * PAGE, 3)]);
        assert_eq!((image.bytes, image.padded_files, image.skipped_files), (4 * PAGE, 2, 2));
    }

    #[test]
    fn what_can_not_be_loaded_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = |name: &str| Image::open(&root.path().join(name)).err().unwrap().to_string();
        assert!(error("missing").contains("missing: No such file"));
        std::fs::write(root.path().join("empty"), []).unwrap();
        assert!(error("empty").contains("empty: is empty"));
        std::fs::create_dir(root.path().join("nothing")).unwrap();
        assert!(error("nothing").contains("no files with content"));
        assert!(Image::open(Path::new("/dev/null")).err().unwrap().to_string().contains("neither"));
    }
}
