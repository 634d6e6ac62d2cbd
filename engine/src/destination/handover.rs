//! The seam between the page store and the restore.

use crate::page_store::Sealed;
use ferry_transport::wire::control::RestoreMode;
use std::path::Path;

/// Gives a migration's pages to the restored copy. Blocking.
pub trait PageHandover: Send {
    /// Starts what serves pages, and its socket in `work`, before the freeze.
    fn park(&mut self, work: &Path) -> Result<(), String>;

    /// Completes the image directory from the sealed pages; whether CRIU is to
    /// restore lazily.
    fn assemble(&mut self, images: &Path, sealed: Sealed, mode: RestoreMode) -> Result<Serving, String>;

    /// Waits until every page has been handed over. An error means that the copy
    /// may lack pages.
    fn wait_drained(&mut self) -> Result<(), String>;
}

/// Who serves the pages that the images leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// The pager, through the socket in the work directory.
    Lazily,
    /// Nobody: the images have them all.
    NotNeeded,
}

/// Makes a handover for each migration.
pub type HandoverMaker = Box<dyn Fn() -> Box<dyn PageHandover> + Send + Sync>;
