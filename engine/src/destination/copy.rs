//! The copy in the engine's hands: what builds it, what it is given, and the copy
//! itself while it is held. It is to the destination what the workload is to the source.

use super::handover::{PageHandover, Serving};
use crate::journal::TaskId;
use crate::page_store::PageStore;
use crate::target::{HeldRestore, ReleaseError, RestorePlan, Restorer, TargetError};
use ferry_transport::wire::control::{FinalSpace, RestoreMode};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::{JoinError, block_in_place, spawn_blocking};

/// Everything that blocks is done on a thread that may; what the thread works with is
/// absent meanwhile.
pub(super) struct Copy {
    restorer: Option<Box<dyn Restorer>>,
    handover: Option<Box<dyn PageHandover>>,
    serving: Serving,
    hold: Hold,
}

/// What exists of it.
enum Hold {
    Nothing,
    Held(Box<dyn HeldRestore>),
}

impl Copy {
    /// Nothing of it yet.
    pub(super) fn none() -> Copy {
        Copy { restorer: None, handover: None, serving: Serving::NotNeeded, hold: Hold::Nothing }
    }

    /// Starts what can be started before there is anything to restore.
    pub(super) async fn park(
        &mut self,
        work: PathBuf,
        mut restorer: Box<dyn Restorer>,
        mut handover: Box<dyn PageHandover>,
    ) -> Result<(), String> {
        let parked = spawn_blocking(move || {
            restorer.prepare(&work).map_err(|error| error.to_string())?;
            handover.park(&work)?;
            Ok::<_, String>((restorer, handover))
        });
        let (restorer, handover) = parked.await.map_err(text)??;
        self.restorer = Some(restorer);
        self.handover = Some(handover);
        Ok(())
    }

    /// Makes a CRIU image directory of images and pages.
    pub(super) async fn assemble(
        &mut self,
        images: PathBuf,
        store: Arc<PageStore>,
        spaces: Vec<FinalSpace>,
        mode: RestoreMode,
    ) -> Result<(), String> {
        let mut handover = self.handover.take().ok_or("no page handover")?;
        let assembled = spawn_blocking(move || {
            let sealed = store.seal(&spaces).map_err(|error| error.to_string());
            let serving = sealed.and_then(|sealed| handover.assemble(&images, sealed, mode));
            (handover, serving)
        });
        let (handover, serving) = assembled.await.map_err(text)?;
        self.handover = Some(handover);
        self.serving = serving?;
        Ok(())
    }

    /// Who serves the pages that the images leave out.
    pub(super) fn serving(&self) -> Serving {
        self.serving
    }

    /// Builds it, and holds it before its first instruction.
    pub(super) async fn restore(&mut self, plan: RestorePlan) -> Result<(), String> {
        let mut restorer = self.restorer.take().ok_or("no restorer")?;
        let held = spawn_blocking(move || restorer.restore(&plan)).await;
        self.hold = Hold::Held(held.map_err(text)?.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Every process of it, while it is held.
    pub(super) fn tasks(&self) -> Vec<TaskId> {
        match &self.hold {
            Hold::Held(held) => held.tasks(),
            Hold::Nothing => Vec::new(),
        }
    }

    /// Lets it run; `about_to_run` is the last that happens before. Only after Commit is in
    /// the journal.
    pub(super) fn release(&mut self, about_to_run: &mut (dyn FnMut() + Send)) -> Result<(), ReleaseError> {
        let unknown = |what: String| ReleaseError::Unknown(TargetError { what, log: None });
        let Hold::Held(held) = std::mem::replace(&mut self.hold, Hold::Nothing) else {
            return Err(unknown("nothing is held".into()));
        };
        let released = block_in_place(|| {
            std::thread::scope(|scope| scope.spawn(move || held.release(about_to_run)).join())
        });
        released.unwrap_or_else(|_| Err(unknown("the release panicked".into())))
    }

    /// It runs: waits until it has all of its pages.
    pub(super) async fn wait_drained(&mut self) -> Result<(), String> {
        let Some(mut handover) = self.handover.take() else { return Ok(()) };
        spawn_blocking(move || handover.wait_drained()).await.map_err(text)?
    }

    /// Nothing of it is left, nor of what would have built it.
    pub(super) async fn discard(&mut self) -> Result<(), String> {
        let hold = std::mem::replace(&mut self.hold, Hold::Nothing);
        let discarded = spawn_blocking(move || match hold {
            Hold::Nothing => Ok(()),
            Hold::Held(held) => held.discard(),
        });
        let discarded =
            discarded.await.map_err(text).and_then(|done| done.map_err(|error| error.to_string()));
        if let Some(mut handover) = self.handover.take() {
            handover.abandon();
        }
        self.restorer = None;
        discarded
    }
}

fn text(panic: JoinError) -> String {
    panic.to_string()
}
