//! Where a tree grows, and how it gets to where it belongs: in a directory beside that,
//! on the same file system, exchanged with it in one step, and exchanged back in one.
//!
//! What is to be undone is written down before it is done, so that a receiver that is
//! killed leaves nothing for long: the next one [settles](super::settle) it.

use super::setup::Existing;
use rustix::fs::{AtFlags, CWD, RenameFlags, StatxAttributes, StatxFlags, renameat_with, statx};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// A directory-to-be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    /// Where it belongs.
    target: PathBuf,
    /// Where it grows, beside it.
    staging: PathBuf,
    /// Which directory it is, once it exists: device and inode.
    tree: Option<(u64, u64)>,
}

impl Place {
    /// Sees whether a tree may be put there. Nothing is made.
    pub(super) fn choose(target: &Path, existing: Existing, mark: &str) -> Result<Place, String> {
        let at = target.display();
        let plain = target.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(format!("{at} cannot be replaced"));
        };
        if !target.is_absolute() || !plain {
            return Err(format!("{at} is not a plain absolute path"));
        }
        if !parent.is_dir() {
            return Err(format!("{} is not a directory here: make it first", parent.display()));
        }
        match std::fs::symlink_metadata(target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{at}: {error}")),
            Ok(about) if !about.is_dir() => return Err(format!("{at} is there, and not a directory")),
            Ok(_) => {
                if is_mount_point(target).map_err(|error| format!("{at}: {error}"))? {
                    return Err(format!(
                        "{at} is a mount point here, which cannot be exchanged in one step: name a directory in it"
                    ));
                }
                let mut entries = std::fs::read_dir(target).map_err(|error| format!("{at}: {error}"))?;
                if existing == Existing::Refuse && entries.next().is_some() {
                    return Err(format!(
                        "{at} has content here: move it away, or have it replaced (--sync-existing replace)"
                    ));
                }
            }
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".ferry-{mark}"));
        Ok(Place { target: target.to_owned(), staging: parent.join(hidden), tree: None })
    }

    /// Makes the directories in which it grows, for root's eyes only.
    pub(super) fn make(&mut self) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(0o700).create(&self.staging)?;
        std::fs::DirBuilder::new().mode(0o700).create(self.tree())?;
        std::fs::DirBuilder::new().mode(0o700).create(self.kept())?;
        self.tree = Some(identity(&self.tree())?);
        Ok(())
    }

    /// Where it belongs.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// The tree while it grows; what was there before, afterwards.
    pub(super) fn tree(&self) -> PathBuf {
        self.staging.join("tree")
    }

    /// Where objects wait for their next name.
    pub(super) fn kept(&self) -> PathBuf {
        self.staging.join("kept")
    }

    /// Puts the tree where it belongs, in one step.
    pub(super) fn put(&self) -> io::Result<()> {
        match renameat_with(CWD, self.tree(), CWD, &self.target, RenameFlags::EXCHANGE) {
            Err(Errno::NOENT) => {
                renameat_with(CWD, self.tree(), CWD, &self.target, RenameFlags::NOREPLACE)?;
            }
            other => other?,
        }
        Ok(())
    }

    /// Everything is as it was, whatever had been done.
    pub(super) fn undo(&self) -> io::Result<()> {
        if self.tree.is_some() && identity(&self.target).ok() == self.tree {
            match renameat_with(CWD, self.tree(), CWD, &self.target, RenameFlags::EXCHANGE) {
                Err(Errno::NOENT) => {
                    renameat_with(CWD, &self.target, CWD, self.tree(), RenameFlags::NOREPLACE)?;
                }
                other => other?,
            }
        }
        self.clear()
    }

    /// What was there before goes.
    pub(super) fn clear(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.staging) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let about = std::fs::symlink_metadata(path)?;
    Ok((about.dev(), about.ino()))
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn place(directory: &Path, existing: Existing) -> Place {
        Place::choose(&directory.join("data"), existing, "1").unwrap()
    }

    fn list(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_place_appears_and_disappears_whole() {
        let home = tempfile::tempdir().unwrap();
        let mut place = place(home.path(), Existing::Refuse);
        place.make().unwrap();
        fs::write(place.tree().join("x"), b"1").unwrap();
        assert!(!home.path().join("data").exists());
        place.put().unwrap();
        assert_eq!(fs::read(home.path().join("data/x")).unwrap(), b"1");
        place.undo().unwrap();
        assert!(list(home.path()).is_empty());
        place.undo().unwrap();
    }

    #[test]
    fn what_was_there_comes_back_or_goes() {
        for keep in [false, true] {
            let home = tempfile::tempdir().unwrap();
            fs::create_dir(home.path().join("data")).unwrap();
            fs::write(home.path().join("data/old"), b"old").unwrap();
            assert!(Place::choose(&home.path().join("data"), Existing::Refuse, "1").is_err());
            let mut place = place(home.path(), Existing::Replace);
            place.make().unwrap();
            fs::write(place.tree().join("new"), b"new").unwrap();
            place.put().unwrap();
            if keep {
                place.clear().unwrap()
            } else {
                place.undo().unwrap()
            }
            assert_eq!(list(home.path()), ["data"]);
            assert_eq!(list(&home.path().join("data")), [if keep { "new" } else { "old" }]);
        }
    }

    #[test]
    fn places_that_cannot_be_are_refused() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("file"), b"").unwrap();
        std::os::unix::fs::symlink("/", home.path().join("link")).unwrap();
        let of = |text: &str| Place::choose(&home.path().join(text), Existing::Replace, "1");
        for bad in ["file", "link", "none/data", "a/../b"] {
            assert!(of(bad).is_err(), "{bad}");
        }
        for bad in ["/", "relative", "/proc", "/.."] {
            assert!(Place::choose(Path::new(bad), Existing::Replace, "1").is_err(), "{bad}");
        }
    }
}
