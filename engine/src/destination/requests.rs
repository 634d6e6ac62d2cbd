//! Requests of an operator to a receiver that is at work, as files: `ferry abort` is
//! another process, perhaps in another namespace, and needs nothing but the state
//! directory, which is root's alone.

use ferry_transport::wire::control::MigrationId;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

fn path_of(state: &Path, id: MigrationId) -> PathBuf {
    state.join("requests").join(format!("{id}.abort"))
}

/// Asks the receiver that is at work on a migration to give it up.
pub fn ask_to_abort(state: &Path, id: MigrationId) -> io::Result<()> {
    let path = path_of(state, id);
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    std::fs::write(path, b"")
}

/// Takes such a request back: whether there was one.
pub fn take(state: &Path, id: MigrationId) -> bool {
    std::fs::remove_file(path_of(state, id)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_once_and_by_its_migration() {
        let state = tempfile::tempdir().unwrap();
        assert!(!take(state.path(), MigrationId(1)));
        ask_to_abort(state.path(), MigrationId(1)).unwrap();
        assert!(!take(state.path(), MigrationId(2)));
        assert!(take(state.path(), MigrationId(1)));
        assert!(!take(state.path(), MigrationId(1)));
    }
}
