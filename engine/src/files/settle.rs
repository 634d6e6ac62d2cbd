//! What is to be undone should a receiver die: a file in the state directory for each
//! migration with directories, written before anything is made.

use super::place::Place;
use std::io;
use std::path::{Path, PathBuf};

/// The places of one migration, written down.
pub(super) struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// Writes down what is about to be made.
    pub(super) fn open(state: &Path, mark: &str, places: &[Place]) -> io::Result<Ledger> {
        use std::os::unix::fs::DirBuilderExt;
        let directory = state.join("files");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let mut ledger = Ledger { path: directory.join(format!("{mark}.json")) };
        ledger.write(places)?;
        Ok(ledger)
    }

    /// Writes down how it stands: whole, or as it was.
    pub(super) fn write(&mut self, places: &[Place]) -> io::Result<()> {
        let draft = self.path.with_extension("new");
        std::fs::write(&draft, serde_json::to_vec(places)?)?;
        std::fs::rename(&draft, &self.path)
    }

    /// There is nothing to undo any more.
    pub(super) fn close(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Where a migration's workload lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lives {
    /// At the destination, here: what was there before goes.
    Here,
    /// Not here: everything is as it was before.
    Elsewhere,
}

/// Ends what a receiver that died has left of a migration's directories.
pub fn settle(state: &Path, mark: &str, lives: Lives) -> io::Result<()> {
    let path = state.join("files").join(format!("{mark}.json"));
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    let places: Vec<Place> = serde_json::from_slice(&bytes)?;
    for place in &places {
        match lives {
            Lives::Here => place.clear()?,
            Lives::Elsewhere => place.undo()?,
        }
    }
    std::fs::remove_file(path)
}
