//! The seam between the page store and the restore.

use crate::images;
use crate::lazy::{FillOptions, PagerHandle};
use crate::page_store::Sealed;
use ferry_transport::units::PageCount;
use ferry_transport::wire::control::RestoreMode;
use std::path::{Path, PathBuf};

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

    /// Ends what serves pages; the copy that would need them is gone or never was.
    fn abandon(&mut self);
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

/// Hands pages over through the pager, a process of its own.
pub struct PagerHandover {
    helper: PathBuf,
    pager: Option<PagerHandle>,
}

impl PagerHandover {
    /// `helper` is a program whose verb `__pager` is the pager: this one.
    pub fn new(helper: PathBuf) -> PagerHandover {
        PagerHandover { helper, pager: None }
    }
}

impl PageHandover for PagerHandover {
    fn park(&mut self, work: &Path) -> Result<(), String> {
        let pager = PagerHandle::spawn(&self.helper, work).map_err(|error| error.to_string())?;
        self.pager = Some(pager);
        Ok(())
    }

    fn assemble(&mut self, images: &Path, sealed: Sealed, mode: RestoreMode) -> Result<Serving, String> {
        let assembly = images::assemble(images, sealed, mode).map_err(|error| error.to_string())?;
        if mode == RestoreMode::Eager || assembly.lazy.is_empty() {
            self.abandon();
            return Ok(Serving::NotNeeded);
        }
        let pager = self.pager.as_mut().ok_or("the pager is not there")?;
        pager.arm(&assembly, FillOptions::default()).map_err(|error| error.to_string())?;
        Ok(Serving::Lazily)
    }

    fn wait_drained(&mut self) -> Result<(), String> {
        let Some(mut pager) = self.pager.take() else { return Ok(()) };
        let drained = pager.wait_drained().map_err(|error| error.to_string())?;
        tracing::info!(?drained, "every page was handed over");
        if drained.lost > PageCount(0) {
            return Err(format!(
                "{} pages were not taken: the workload's memory is not to be trusted",
                drained.lost.0
            ));
        }
        Ok(())
    }

    fn abandon(&mut self) {
        if let Some(mut pager) = self.pager.take() {
            pager.kill();
        }
    }
}
