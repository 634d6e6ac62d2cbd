//! Checkpoints that are kept: a container as it was, to be gone back to or cloned.
//!
//! ```text
//! <state>/checkpoints/<target>/<name>/checkpoint.json    what it is
//!                                     images/            CRIU's, pages and all
//! ```
//! A checkpoint is there as a whole or not at all: it is made under another name.
//! Memory holds secrets, so all of it is root's alone.

use crate::target::Aftercare;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The version of `checkpoint.json`; raised when an older ferry would misread it.
const SCHEMA: u32 = 1;
const ABOUT: &str = "checkpoint.json";
const IMAGES: &str = "images";
/// What a checkpoint in the making ends in; no name can.
const DRAFT: &str = "~";

/// What a checkpoint is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    schema: u32,
    /// Its name among those of its target.
    pub name: String,
    /// Of what: `docker:looper2`.
    pub target: String,
    /// Milliseconds since the epoch, this host's clock.
    pub at: u64,
    /// How long the workload stood still for it.
    pub frozen_ms: f64,
    /// The CRIU that wrote the images.
    pub criu: String,
    /// Who can build a copy of it.
    pub restorer: String,
    /// What that one must know.
    pub setup: serde_json::Value,
    /// What is to be put right once a copy of it runs here.
    pub aftercare: Option<Aftercare>,
}

impl Checkpoint {
    /// One that is about to be taken.
    pub fn new(name: &str, target: String, criu: String) -> Checkpoint {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Checkpoint {
            schema: SCHEMA,
            name: name.to_owned(),
            target,
            at: since.map_or(0, |since| since.as_millis() as u64),
            frozen_ms: 0.0,
            criu,
            restorer: String::new(),
            setup: serde_json::Value::Null,
            aftercare: None,
        }
    }
}

/// The checkpoints of one target.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

/// Whether it can be the name of a checkpoint.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.bytes().all(plain)
}

impl Store {
    /// Of the target `docker:looper2`, say.
    pub fn of(state: &Path, target: &str) -> Store {
        Store(state.join("checkpoints").join(target.replace('/', "_")))
    }

    /// Begins one. It is not there before [`Draft::keep`].
    pub fn begin(&self, name: &str) -> io::Result<Draft> {
        let place = self.0.join(name);
        if place.exists() {
            let what = format!("there is a checkpoint {name} already: {}", place.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        let draft = self.0.join(format!("{name}{DRAFT}"));
        // Of an engine that was killed.
        let _ = fs::remove_dir_all(&draft);
        DirBuilder::new().recursive(true).mode(0o700).create(draft.join(IMAGES))?;
        Ok(Draft { draft, place, kept: false })
    }

    /// All of them, the oldest first.
    pub fn list(&self) -> io::Result<Vec<Checkpoint>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut found: Vec<Checkpoint> =
            names.filter(|name| is_name(name)).filter_map(|name| self.read(&name).ok()).collect();
        found.sort_by_key(|checkpoint| checkpoint.at);
        Ok(found)
    }

    /// The one of this name.
    pub fn read(&self, name: &str) -> io::Result<Checkpoint> {
        if !is_name(name) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is no checkpoint's name"),
            ));
        }
        let path = self.0.join(name).join(ABOUT);
        let text = fs::read(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let found: Checkpoint = serde_json::from_slice(&text)?;
        match found.schema {
            SCHEMA => Ok(found),
            other => Err(io::Error::other(format!("the checkpoint {name} is of version {other}"))),
        }
    }

    /// Gives a restore its images under a directory of its own: it may change them.
    pub fn lend(&self, name: &str, to: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(to)?;
        for entry in fs::read_dir(self.0.join(name).join(IMAGES))? {
            let entry = entry?;
            let into = to.join(entry.file_name());
            // A file is never written to, but replaced: the same one may have two names.
            if fs::hard_link(entry.path(), &into).is_err() {
                fs::copy(entry.path(), into)?;
            }
        }
        Ok(())
    }

    /// Removes one.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.read(name)?;
        fs::remove_dir_all(self.0.join(name))
    }
}

/// A checkpoint in the making. Dropping it removes it.
#[derive(Debug)]
pub struct Draft {
    draft: PathBuf,
    place: PathBuf,
    kept: bool,
}

impl Draft {
    /// Where CRIU writes.
    pub fn images(&self) -> PathBuf {
        self.draft.join(IMAGES)
    }

    /// It is complete.
    pub fn keep(mut self, about: &Checkpoint) -> io::Result<()> {
        fs::write(self.draft.join(ABOUT), serde_json::to_vec_pretty(about)?)?;
        fs::rename(&self.draft, &self.place)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.draft);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_there_once_it_is_kept() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::of(state.path(), "docker:web");
        assert!(store.list().unwrap().is_empty());
        for (name, at) in [("second", 2), ("first", 1)] {
            let draft = store.begin(name).unwrap();
            fs::write(draft.images().join("inventory.img"), name).unwrap();
            let about = Checkpoint { at, ..Checkpoint::new(name, "docker:web".into(), "4.2".into()) };
            draft.keep(&about).unwrap();
        }
        drop(store.begin("third").unwrap());
        let names: Vec<String> = store.list().unwrap().into_iter().map(|one| one.name).collect();
        assert_eq!(names, ["first", "second"]);
        assert_eq!(store.begin("first").unwrap_err().kind(), io::ErrorKind::AlreadyExists);

        let lent = state.path().join("lent");
        store.lend("first", &lent).unwrap();
        fs::write(lent.join("new"), "changed").unwrap();
        fs::rename(lent.join("new"), lent.join("inventory.img")).unwrap();
        let again = state.path().join("again");
        store.lend("first", &again).unwrap();
        assert_eq!(fs::read_to_string(again.join("inventory.img")).unwrap(), "first");
        store.remove("first").unwrap();
        assert!(store.read("first").is_err());
    }

    #[test]
    fn names_lead_nowhere_else() {
        for bad in ["", "..", "a/b", "a~", ".a", "a b"] {
            assert!(!is_name(bad), "{bad}");
        }
        assert!(is_name("checkpoint1") && is_name("2026-11-24_a.b"));
    }
}
