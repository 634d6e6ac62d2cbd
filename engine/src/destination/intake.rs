//! What arrives of a workload: its pages, into a store; CRIU's images, into their
//! directory; what comes along, into its sink.

use super::along::AlongIntake;
use super::images::ImageIntake;
use super::pages::PageIntake;
use crate::companion::CompanionSink;
use crate::page_store::PageStore;
use ferry_transport::link::Link;
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{FinalState, ImageFile, RoundTotals};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The intake of one migration. Dropping it ends it.
pub(super) struct Intake {
    store: Arc<PageStore>,
    pages: PageIntake,
    images: ImageIntake,
    along: Option<AlongIntake>,
}

/// The most that may arrive: the workload grows while it moves, so a quarter more
/// than it has, or what the user allows.
pub(super) fn limit_of(memory: Bytes, allowed: Option<Bytes>) -> Bytes {
    allowed.unwrap_or(Bytes((memory.0 / 4).saturating_mul(5).saturating_add(256 << 20)))
}

impl Intake {
    /// Takes every page stream of `link` from now on.
    pub(super) fn start(link: Arc<dyn Link>, images: &Path, limit: Bytes) -> Result<Intake, String> {
        let store = Arc::new(PageStore::new(limit).map_err(|error| error.to_string())?);
        let pages = PageIntake::start(link, Arc::clone(&store));
        Ok(Intake { store, pages, images: ImageIntake::new(images, limit.0), along: None })
    }

    /// Takes the link's stream of blobs too.
    pub(super) fn take_along(&mut self, link: Arc<dyn Link>, sink: Box<dyn CompanionSink>) {
        self.along = Some(AlongIntake::start(link, sink));
    }

    /// What comes along, if anything does.
    pub(super) fn along(&mut self) -> Option<&mut AlongIntake> {
        self.along.as_mut()
    }

    /// Writes a part of an image.
    pub(super) fn image(&mut self, part: ImageFile) -> Result<(), String> {
        self.images.put(part)
    }

    /// Waits until every page of a round is stored.
    pub(super) async fn round(&mut self, totals: &RoundTotals, patience: Duration) -> Result<(), String> {
        self.pages.complete(totals, patience).await
    }

    /// Waits until the last round is stored, and sees that every image is there.
    pub(super) async fn complete(&mut self, state: &FinalState, patience: Duration) -> Result<(), String> {
        self.round(&state.totals, patience).await?;
        self.images.finish(state.images)
    }

    /// How much has been stored: that it grows says that the source is at work.
    pub(super) fn stored(&self) -> u64 {
        self.pages.chunks() + self.along.as_ref().map_or(0, AlongIntake::taken)
    }

    /// Completes when no more pages, or no more of what comes along, can be stored, with
    /// the reason.
    pub(super) async fn refusal(&self) -> String {
        let along = async {
            match &self.along {
                Some(along) => along.failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            why = self.pages.refusal() => why,
            why = along => why,
        }
    }

    /// The pages.
    pub(super) fn store(&self) -> Arc<PageStore> {
        Arc::clone(&self.store)
    }
}
