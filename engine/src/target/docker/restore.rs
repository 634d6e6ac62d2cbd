//! The destination's side: Docker starts the copy, ferry holds it and decides.

use super::fails;
use super::setup::Setup;
use crate::check::Finding;
use crate::criu::rpc::{Launch, PagePayload, Swrk};
use crate::docker::check::check_destination;
use crate::docker::checkpoint::{Failed, Start, Stub, is_half_made};
use crate::docker::container::{Volumes, remove};
use crate::docker::image::ImagePlan;
use crate::docker::{Api, Container};
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
    into: Into,
    parked: Option<Parked>,
}

/// What a copy is built in.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Into {
    /// A container that is made for it.
    New,
    /// A stopped one that is there, by its ID.
    There(String),
}

impl DockerRestorer {
    /// For the container that an offer describes.
    ///
    /// # Errors
    /// The description is not one.
    pub fn new(setup: &[u8], api: Api, host: Host) -> Result<DockerRestorer, String> {
        Ok(DockerRestorer { setup: Setup::parse(setup)?, api, host, into: Into::New, parked: None })
    }

    /// Under another name than the original's.
    #[must_use]
    pub fn named(mut self, name: &str) -> DockerRestorer {
        self.setup.container.name = name.to_owned();
        self
    }

    /// Into a stopped container that is there already.
    #[must_use]
    pub fn into_container(mut self, id: &str) -> DockerRestorer {
        self.into = Into::There(id.to_owned());
        self
    }

    /// The container that the copy is to be, made if it is to be new.
    fn container(&self) -> Result<(String, Failed), TargetError> {
        if let Into::There(id) = &self.into {
            return Ok((id.clone(), Failed::Stays));
        }
        let container = &self.setup.container;
        if container.image.plan(&self.api).map_err(fails)? != ImagePlan::Nothing {
            return Err(fails(format!("the image {} is not here", container.image.name)));
        }
        let image = container.image.called(&self.api).map_err(fails)?;
        if let Ok(left) = Container::inspect(&self.api, &container.name)
            && is_half_made(&self.api, &left)
        {
            remove(&self.api, left.id(), Volumes::Go).map_err(fails)?;
        }
        Ok((container.create(&self.api, &image).map_err(fails)?, Failed::Goes))
    }

    /// Creates the container, and has Docker start it until its runc asks CRIU.
    fn park(&self) -> Result<Parked, TargetError> {
        let Setup { container, descriptors, .. } = &self.setup;
        let (id, failed) = self.container()?;
        let started = Stub::make(&self.api, &id, descriptors).map_err(fails).and_then(|stub| {
            let registration = Registration::new(&self.host.relays, &id, Deed::Restore).map_err(fails)?;
            Ok((registration, Start::begin(&self.api, &id, stub).map_err(fails)?))
        });
        let (registration, start) = started.inspect_err(|_| {
            if failed == Failed::Goes {
                let _ = remove(&self.api, &id, Volumes::Go);
            }
        })?;
        let mut parked = Parked { swrk: None, start: Some(start), failed };
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
                let said = parked.start.take().map(|start| end(start, failed)).unwrap_or_default();
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
        let parked = self
            .parked
            .as_mut()
            .and_then(|parked| Some((parked.swrk.take()?, parked.start.take()?, parked.failed)));
        let (swrk, start, failed) = parked.ok_or_else(|| fails("nothing is parked"))?;
        match restore_and_hold(swrk, common_options(plan.tcp), plan, Tree::Below(None)) {
            Ok(copy) => Ok(Box::new(Held { copy: Box::new(copy), start, failed })),
            Err(error) => {
                end(start, failed);
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
    failed: Failed,
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
            end(start, self.failed);
        }
    }
}

/// Waits for the end of a start that fails. What Docker said.
fn end(start: Start, failed: Failed) -> String {
    let ended = start.discard(failed);
    if let Err(error) = &ended.removed {
        tracing::error!(%error, "the half-made container stays");
    }
    ended.said
}

/// Complete, and before its first instruction.
struct Held {
    copy: Box<dyn HeldRestore>,
    start: Start,
    failed: Failed,
}

impl HeldRestore for Held {
    fn tasks(&self) -> Vec<TaskId> {
        self.copy.tasks()
    }

    fn release(self: Box<Self>, about_to_run: &mut (dyn FnMut() + Send)) -> Result<(), ReleaseError> {
        let Held { copy, start, failed } = *self;
        match copy.release(about_to_run) {
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
                end(start, failed);
                Err(ReleaseError::NeverRan(error))
            }
            Err(unknown) => Err(unknown),
        }
    }

    fn discard(self: Box<Self>) -> Result<(), TargetError> {
        let Held { copy, start, failed } = *self;
        let discarded = copy.discard();
        let ended = start.discard(failed);
        discarded?;
        ended.removed.map_err(fails)
    }
}
