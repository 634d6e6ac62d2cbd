//! The directories of one migration. The images in them hold what the workload held:
//! they are root's alone, and go when they are not needed any more.

use super::recovery::work_directory;
use crate::target::leftovers;
use ferry_transport::wire::control::MigrationId;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often, and how long after each other, a removal that failed is tried again.
const RETRIES: u32 = 120;
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Where a migration's images and CRIU's logs and sockets are.
pub(super) struct Workplace {
    id: MigrationId,
    root: PathBuf,
}

impl Workplace {
    /// Below `work`. Makes nothing yet.
    pub(super) fn new(work: &Path, id: MigrationId) -> Workplace {
        Workplace { id, root: work_directory(work, id) }
    }

    /// Makes the directories.
    pub(super) fn create(&self) -> Result<(), String> {
        for directory in [&self.root, &self.images(), &self.work()] {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|error| format!("the work directory cannot be made: {error}"))?;
        }
        Ok(())
    }

    /// CRIU's images.
    pub(super) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// CRIU's log, and the pager's socket.
    pub(super) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// CRIU's log of a restore is kept with the journals, whatever becomes of the images.
    pub(super) fn keep_log(&self, state: &Path) {
        let log = self.work().join("restore.log");
        if log.exists() {
            let kept = state.join("logs");
            let _ = std::fs::create_dir_all(&kept);
            let _ = std::fs::copy(log, kept.join(format!("{}-restore.log", self.id)));
        }
    }

    /// Removes all of it. A host that is out of memory may be unable to just now, and is
    /// tried again; what is left even then goes when a receiver next starts.
    pub(super) fn remove(&self) {
        if is_gone(&self.root) {
            return;
        }
        let root = self.root.clone();
        tokio::spawn(async move {
            for _ in 0..RETRIES {
                tokio::time::sleep(RETRY_AFTER).await;
                if is_gone(&root) {
                    return;
                }
            }
            tracing::warn!(directory = %root.display(), "cannot be removed; the next `ferry receive` will try");
        });
    }
}

/// Removes a directory; whether nothing is there any more.
fn is_gone(root: &Path) -> bool {
    match leftovers::remove_directory(root) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}
