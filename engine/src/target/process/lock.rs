//! CRIU's network lock, where CRIU does not remove it itself.
//!
//! While a tree with connections is frozen, CRIU drops their packets by a table of
//! its own, `inet CRIU-<run id>` (before 4.2 `inet CRIU-<pid of the root>`). It
//! removes the table when it lets the tree run again, and not when the tree was
//! removed or CRIU itself was killed.

use crate::net::nft::Nft;
use std::io::Read;
use std::path::{Path, PathBuf};

/// CRIU says who it is at the very start of its log.
const LOOKED_AT: u64 = 64 << 10;
const MARK: &str = "CRIU run id = ";

/// The lock of one dump.
pub(super) struct NetworkLock {
    log: PathBuf,
    root: i32,
}

impl NetworkLock {
    /// That of the dump of `root` with this log.
    pub(super) fn of(log: &Path, root: i32) -> NetworkLock {
        NetworkLock { log: log.to_owned(), root }
    }

    /// Removes it. Only after CRIU has exited; one that is gone is no error.
    pub(super) fn remove(&self) {
        let identities = [run_id(&self.log), Some(self.root.to_string())];
        let removed = Nft::open().and_then(|mut nft| {
            identities.iter().flatten().try_for_each(|identity| nft.remove_criu_tables(identity))
        });
        if let Err(error) = removed {
            tracing::warn!(%error, root = self.root, "CRIU's network lock could not be removed");
        }
    }
}

/// The last one named: a CRIU that is asked over a socket chooses twice.
fn run_id(log: &Path) -> Option<String> {
    let mut start = Vec::new();
    std::fs::File::open(log).ok()?.take(LOOKED_AT).read_to_end(&mut start).ok()?;
    let text = String::from_utf8_lossy(&start);
    let id = text.lines().filter_map(|line| line.split_once(MARK)).next_back()?.1.trim();
    let plausible =
        !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plausible.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_run_id_counts_and_must_look_like_one() {
        let log = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(log.path(), "(00.0) CRIU run id = a-1\n(00.1) CRIU run id = b-2\n").unwrap();
        assert_eq!(run_id(log.path()).as_deref(), Some("b-2"));
        std::fs::write(log.path(), "(00.0) CRIU run id = a b\n").unwrap();
        assert_eq!(run_id(log.path()), None);
    }
}
