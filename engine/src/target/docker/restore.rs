//! The destination's side: Docker starts the copy, ferry holds it and decides.

use super::fails;
use super::setup::Setup;
use crate::check::Finding;
use crate::criu::rpc::{Launch, PagePayload, Swrk};
use crate::docker::Api;
use crate::docker::check::check_destination;
use crate::docker::checkpoint::{Start, Stub};
use crate::docker::container::{Volumes, remove};
use crate::docker::image::ImagePlan;
use crate::journal::TaskId;
use crate::target::oci::Host;
use crate::target::oci::relay::{Deed, Registration};
use crate::target::process::common_options;
use crate::target::process::restore::{Tree, restore_and_hold};
use crate::target::{HeldRestore, ReleaseError, RestorePlan, Restorer, TargetError};
use ferry_transport::wire::control::Offer;
use std::path::Path;
use std::time::Duration;

/// How long Docker may take until its runc asks CRIU for a restore.
const START: Duration = Duration::from_secs(60);

/// Builds copies of containers.
pub struct DockerRestorer {
    setup: Setup,
    api: Api,
    host: Host,
    parked: Option<Parked>,
}

impl DockerRestorer {
    /// For the container that an offer describes.
    ///
    /// # Errors
    /// The description is not one.
    pub fn new(setup: &[u8], api: Api, host: Host) -> Result<DockerRestorer, String> {
        Ok(DockerRestorer { setup: Setup::parse(setup)?, api, host, parked: None })
    }

    /// Creates the container, and has Docker start it until its runc asks CRIU.
    fn park(&self) -> Result<Parked, TargetError> {
        let Setup { container, descriptors, .. } = &self.setup;
        if container.image.plan(&self.api).map_err(fails)? != ImagePlan::Nothing {
            return Err(fails(format!("the image {} is not here", container.image.name)));
        }
        let image = container.image.called(&self.api).map_err(fails)?;
        let id = container.create(&self.api, &image).map_err(fails)?;
        let started = Stub::make(&self.api, &id, descriptors).map_err(fails).and_then(|stub| {
            let registration = Registration::new(&self.host.relays, &id, Deed::Restore).map_err(fails)?;
            Ok((registration, Start::begin(&self.api, &id, stub).map_err(fails)?))
        });
        let (registration, start) = started.inspect_err(|_| drop(remove(&self.api, &id, Volumes::Go)))?;
        let mut parked = Parked { swrk: None, start: Some(start) };
        let criu = &self.host.criu;
        let launch = Launch { criu: &criu.program, shim: criu.shim.as_deref(), pages: PagePayload::Criu };
        let is_up = || parked.start.as_ref().is_some_and(|start| !start.is_over());
        let asked = registration.await_request(&launch, START, is_up);
        match asked.map_err(|error| error.to_string()).and_then(|mut swrk| match swrk.warm_up() {
            Ok(()) => Ok(swrk),
            Err(error) => {
                swrk.kill();
                Err(error.to_string())
            }
        }) {
            Ok(swrk) => {
                parked.swrk = Some(swrk);
                Ok(parked)
            }
            Err(what) => {
                let said = parked.start.take().map(end).unwrap_or_default();
                Err(fails(format!("Docker cannot restore {}: {what}: {said}", container.name)))
            }
        }
    }
}

impl Restorer for DockerRestorer {
    fn examine(&self, _offer: &Offer) -> Vec<Finding> {
        check_destination(&self.api, &self.setup.container, &self.setup.engine)
    }

    fn prepare(&mut self, _work: &Path) -> Result<(), TargetError> {
        if !self.parked.as_mut().is_some_and(Parked::is_up) {
            self.parked = None;
            self.parked = Some(self.park()?);
        }
        Ok(())
    }

    fn restore(&mut self, plan: &RestorePlan) -> Result<Box<dyn HeldRestore>, TargetError> {
        self.prepare(&plan.work)?;
        let parked =
            self.parked.as_mut().and_then(|parked| Some((parked.swrk.take()?, parked.start.take()?)));
        let (swrk, start) = parked.ok_or_else(|| fails("nothing is parked"))?;
        match restore_and_hold(swrk, common_options(plan.tcp), plan, Tree::Below(None)) {
            Ok(copy) => Ok(Box::new(Held { copy: Box::new(copy), start })),
            Err(error) => {
                end(start);
                Err(error)
            }
        }
    }
}

/// Docker's start, held back at its runc's request.
struct Parked {
    /// Absent once it has been taken over.
    swrk: Option<Swrk>,
    start: Option<Start>,
}

impl Parked {
    fn is_up(&mut self) -> bool {
        self.swrk.as_mut().is_some_and(Swrk::is_up)
            && self.start.as_ref().is_some_and(|start| !start.is_over())
    }
}

impl Drop for Parked {
    /// A restore that never began: hung up on, runc and Docker undo what they had made.
    fn drop(&mut self) {
        if let Some(swrk) = self.swrk.take() {
            swrk.wait();
        }
        if let Some(start) = self.start.take() {
            end(start);
        }
    }
}

/// Waits for the end of a start that fails, and removes the container. What Docker said.
fn end(start: Start) -> String {
    let ended = start.discard();
    if let Err(error) = &ended.removed {
        tracing::error!(%error, "the half-made container stays");
    }
    ended.said
}

/// Complete, and before its first instruction.
struct Held {
    copy: Box<dyn HeldRestore>,
    start: Start,
}

impl HeldRestore for Held {
    fn tasks(&self) -> Vec<TaskId> {
        self.copy.tasks()
    }

    fn release(self: Box<Self>) -> Result<(), ReleaseError> {
        let Held { copy, start } = *self;
        match copy.release() {
            Ok(()) => {
                // Docker's own end of the start, off the critical path.
                let waiting = std::thread::Builder::new().name("docker-started".into()).spawn(move || {
                    if let Err(error) = start.wait() {
                        tracing::error!(error, "the copy runs, and Docker does not say so");
                    }
                });
                if let Err(error) = waiting {
                    tracing::warn!(%error, "Docker's word is not waited for");
                }
                Ok(())
            }
            Err(ReleaseError::NeverRan(error)) => {
                end(start);
                Err(ReleaseError::NeverRan(error))
            }
            Err(unknown) => Err(unknown),
        }
    }

    fn discard(self: Box<Self>) -> Result<(), TargetError> {
        let Held { copy, start } = *self;
        let discarded = copy.discard();
        let ended = start.discard();
        discarded?;
        ended.removed.map_err(fails)
    }
}
