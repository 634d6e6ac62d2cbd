//! CRIU's images as they arrive: written once, under plain names, within limits.

use ferry_transport::wire::control::ImageFile;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The most image files of one migration.
const MAX_FILES: usize = 1 << 16;

/// Image files under way.
pub(crate) struct ImageIntake {
    directory: PathBuf,
    /// The most bytes that they may have together.
    limit: u64,
    total: u64,
    open: HashMap<String, Partial>,
    complete: u32,
}

struct Partial {
    file: File,
    crc: crc32fast::Hasher,
    at: u64,
    size: u64,
}

impl ImageIntake {
    pub(crate) fn new(directory: &Path, limit: u64) -> ImageIntake {
        ImageIntake { directory: directory.to_owned(), limit, total: 0, open: HashMap::new(), complete: 0 }
    }

    /// Writes a part. Parts of a file come in order; the last has the checksum.
    pub(crate) fn put(&mut self, part: ImageFile) -> Result<(), String> {
        let ImageFile { name, crc, size, offset, data } = part;
        check_name(&name)?;
        if offset == 0 {
            self.total = self
                .total
                .checked_add(size)
                .filter(|total| *total <= self.limit)
                .ok_or_else(|| format!("the images do not fit: more than {} bytes", self.limit))?;
            if self.open.len() + self.complete as usize >= MAX_FILES {
                return Err("too many image files".into());
            }
            let path = self.directory.join(&name);
            let file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(|error| format!("image {name}: {error}"))?;
            let partial = Partial { file, crc: crc32fast::Hasher::new(), at: 0, size };
            if self.open.insert(name.clone(), partial).is_some() {
                return Err(format!("image {name} came twice"));
            }
        }
        let Some(partial) = self.open.get_mut(&name) else {
            return Err(format!("image {name} has no beginning"));
        };
        let end = offset.saturating_add(data.len() as u64);
        if partial.at != offset || partial.size != size || end > size || (data.is_empty() && end < size) {
            return Err(format!("image {name}: part {offset} does not follow {}", partial.at));
        }
        partial.file.write_all_at(&data, offset).map_err(|error| format!("image {name}: {error}"))?;
        partial.crc.update(&data);
        partial.at = end;
        if end == size {
            if partial.crc.clone().finalize() != crc {
                return Err(format!("image {name} was damaged on the way"));
            }
            self.open.remove(&name);
            self.complete += 1;
        }
        Ok(())
    }

    /// Sees that all files are there and whole.
    pub(crate) fn finish(&self, files: u32) -> Result<(), String> {
        if self.complete == files && self.open.is_empty() {
            return Ok(());
        }
        Err(format!("{} of {files} image files are complete", self.complete))
    }
}

/// A plain image name: no way out of the directory, nothing that is not an image.
fn check_name(name: &str) -> Result<(), String> {
    let plain = name.len() <= 128
        && name.ends_with(".img")
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !name.starts_with('.');
    plain.then_some(()).ok_or_else(|| format!("{name:?} is not an image's name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, content: &[u8], offset: usize, len: usize) -> ImageFile {
        let data = content[offset..offset + len].to_vec();
        let crc = crc32fast::hash(&content[..offset + len]);
        ImageFile { name: name.into(), crc, size: content.len() as u64, offset: offset as u64, data }
    }

    #[test]
    fn parts_become_files() {
        let directory = tempfile::tempdir().unwrap();
        let mut intake = ImageIntake::new(directory.path(), 100);
        intake.put(part("mm-1.img", b"hello world", 0, 5)).unwrap();
        assert!(intake.finish(1).is_err());
        intake.put(part("mm-1.img", b"hello world", 5, 6)).unwrap();
        intake.put(part("empty.img", b"", 0, 0)).unwrap();
        intake.finish(2).unwrap();
        assert_eq!(std::fs::read(directory.path().join("mm-1.img")).unwrap(), b"hello world");
    }

    #[test]
    fn what_an_honest_source_never_sends_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["../x.img", "/x.img", "x", ".x.img", "a/b.img", "", "x.img\0"] {
            assert!(ImageIntake::new(directory.path(), 100).put(part(name, b"x", 0, 1)).is_err(), "{name}");
        }
        let mut intake = ImageIntake::new(directory.path(), 10);
        assert!(intake.put(part("big.img", b"more than ten", 0, 1)).is_err(), "over the limit");
        assert!(intake.put(part("late.img", b"hello", 2, 1)).is_err(), "no beginning");
        intake.put(part("a.img", b"hello", 0, 2)).unwrap();
        assert!(intake.put(part("a.img", b"hello", 3, 2)).is_err(), "a gap");
        let mut damaged = part("b.img", b"abc", 0, 3);
        damaged.data[0] ^= 1;
        assert!(intake.put(damaged).is_err(), "damaged");
    }
}
