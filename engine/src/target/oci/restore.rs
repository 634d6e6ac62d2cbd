//! The destination's side: the runtime restores, ferry holds the copy and decides.

use super::relay::{Deed, Registration, place_own_wrapper};
use super::runtime::{Call, Runtime};
use super::setup::Setup;
use super::stdio;
use super::{Host, fails};
use crate::check::{Finding, Force, Severity};
use crate::criu::proto::Options;
use crate::criu::rpc::{Launch, PagePayload, Swrk};
use crate::journal::TaskId;
use crate::target::leftovers;
use crate::target::process::common_options;
use crate::target::process::restore::{Tree, restore_and_hold};
use crate::target::{HeldRestore, ReleaseError, RestorePlan, Restorer, TargetError};
use ferry_transport::wire::control::Offer;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a runtime may take until it asks CRIU for a restore.
const START: Duration = Duration::from_secs(30);
/// How long a runtime may take to clean up.
const CLEAN_UP: Duration = Duration::from_secs(30);
/// Where the runtime writes, below the work directory.
const SCRATCH: &str = "runtime";

/// Builds copies of containers.
pub struct OciRestorer {
    setup: Setup,
    runtime: Runtime,
    host: Host,
    parked: Option<Parked>,
}

/// The runtime's restore, held back at its request.
struct Parked {
    /// Absent once it has been taken over.
    swrk: Option<Swrk>,
    around: Option<Around>,
}

impl OciRestorer {
    /// For the container that an offer describes.
    ///
    /// # Errors
    /// The description is not one.
    pub fn new(setup: &[u8], runtime: Runtime, host: Host) -> Result<OciRestorer, String> {
        Ok(OciRestorer { setup: Setup::parse(setup)?, runtime, host, parked: None })
    }

    fn park(&self, work: &Path) -> Result<Parked, TargetError> {
        let id = &self.setup.id;
        let problem = |error: io::Error| fails(format!("the restore of {id} cannot be prepared: {error}"));
        if let Some(finding) = self.obstacle() {
            return Err(fails(finding));
        }
        self.setup.place().map_err(problem)?;
        let Host { criu, relays, ferry } = &self.host;
        let registration = Registration::new(relays, id, Deed::Restore).map_err(problem)?;
        // Of a restore whose engine was killed, and its runtime too: nobody else is at it.
        remove_leftovers(&self.runtime, id);
        let scratch = work.join(SCRATCH);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&scratch).map_err(problem)?;
        // runc reads it from where it believes the images to be.
        let descriptors = serde_json::to_vec(&self.setup.descriptors).map_err(|e| problem(e.into()))?;
        std::fs::write(scratch.join("descriptors.json"), descriptors).map_err(problem)?;
        let wrapper = place_own_wrapper(&scratch, ferry, relays).map_err(problem)?;
        let streams = stdio::here(&self.setup.streams, &self.setup.bundle).map_err(problem)?;
        let call =
            self.runtime.restore(id, &self.setup.bundle, &wrapper, &scratch, streams).map_err(problem)?;
        let mut around =
            Around { call, runtime: self.runtime.clone(), id: id.clone(), work: work.to_owned() };
        let launch = Launch { criu: &criu.program, shim: criu.shim.as_deref(), pages: PagePayload::Criu };
        let parked = registration.await_request(&launch, START, || around.call.is_up());
        let warm = parked.map_err(|error| error.to_string()).and_then(|mut swrk| match swrk.warm_up() {
            Ok(()) => Ok(swrk),
            Err(error) => {
                swrk.kill();
                Err(error.to_string())
            }
        });
        match warm {
            Ok(swrk) => Ok(Parked { swrk: Some(swrk), around: Some(around) }),
            Err(what) => {
                around.see_it_gone();
                let log = around.call.complaint();
                Err(fails(format!("{} cannot restore {id}: {what}: {log}", self.runtime.program.display())))
            }
        }
    }

    /// What stands in the way on this host.
    fn obstacle(&self) -> Option<String> {
        let Setup { id, bundle, .. } = &self.setup;
        let root = &self.runtime.root;
        if self.runtime.has(id) {
            return Some(format!("there is a container {id} in {} already", root.display()));
        }
        let rootfs = self.setup.rootfs().filter(|rootfs| rootfs.is_dir());
        if rootfs.is_none() {
            return Some(format!("the container's root is not below {}", bundle.display()));
        }
        if self.setup.conflicts() {
            return Some(format!("{} has another config.json than the container", bundle.display()));
        }
        let config = self.setup.config().ok()?;
        let (kind, path) = config.joined().find(|(_, path)| !path.exists())?;
        Some(format!("the {kind} namespace {} that it joins is not there", path.display()))
    }
}

impl Restorer for OciRestorer {
    fn examine(&self, _offer: &Offer) -> Vec<Finding> {
        let advice = "bring the bundle to the same place on this host, with no such container in it";
        let obstacle =
            self.obstacle().map(|what| Finding::host(Severity::Blocks, Force::Final, what, advice));
        obstacle.into_iter().collect()
    }

    fn prepare(&mut self, work: &Path) -> Result<(), TargetError> {
        if !self.parked.as_mut().is_some_and(Parked::is_up) {
            self.parked = None;
            self.parked = Some(self.park(work)?);
        }
        Ok(())
    }

    fn restore(&mut self, plan: &RestorePlan) -> Result<Box<dyn HeldRestore>, TargetError> {
        self.prepare(&plan.work)?;
        let parked =
            self.parked.as_mut().and_then(|parked| Some((parked.swrk.take()?, parked.around.take()?)));
        let (swrk, mut around) = parked.ok_or_else(|| fails("nothing is parked"))?;
        let inherit_fd = stdio::inherited(&self.setup.streams);
        let options = Options { inherit_fd, ..common_options(plan.tcp) };
        match restore_and_hold(swrk, options, plan, Tree::Below(None)) {
            Ok(copy) => Ok(Box::new(Held { copy: Box::new(copy), around })),
            Err(error) => {
                around.see_it_gone();
                Err(error)
            }
        }
    }
}

impl Parked {
    fn is_up(&mut self) -> bool {
        self.swrk.as_mut().is_some_and(Swrk::is_up)
            && self.around.as_mut().is_some_and(|around| around.call.is_up())
    }
}

impl Drop for Parked {
    /// A restore that never began: hung up on, the runtime undoes what it had made.
    fn drop(&mut self) {
        if let Some(swrk) = self.swrk.take() {
            swrk.wait();
        }
        if let Some(around) = &mut self.around {
            around.see_it_gone();
        }
    }
}

/// The runtime's command around a restore.
struct Around {
    call: Call,
    runtime: Runtime,
    id: String,
    /// Where CRIU works.
    work: PathBuf,
}

impl Around {
    /// Waits until the runtime has undone everything, and sees to what it left.
    fn see_it_gone(&mut self) {
        if let Err(error) = self.call.wait(CLEAN_UP) {
            tracing::warn!(%error, "the runtime cannot be waited for");
        }
        remove_leftovers(&self.runtime, &self.id);
        // A CRIU that was killed leaves its view of the cgroups there.
        if let Err(error) = leftovers::detach_below(&self.work) {
            tracing::error!(%error, "a mount of CRIU's stays");
        }
    }
}

/// Removes what a runtime that was killed in the middle of a restore leaves: a mount
/// of the container's root, cgroups, its directory. The mount goes first: runtimes
/// remove that directory with all that is below it.
fn remove_leftovers(runtime: &Runtime, id: &str) {
    let directory = runtime.directory(id);
    if !directory.exists() {
        return;
    }
    match leftovers::detach_below(&directory) {
        Ok(()) => runtime.delete(id),
        Err(error) => tracing::error!(%error, id, "a half-made container stays: its files hang below it"),
    }
}

/// Complete, and before its first instruction.
struct Held {
    copy: Box<dyn HeldRestore>,
    around: Around,
}

impl HeldRestore for Held {
    fn tasks(&self) -> Vec<TaskId> {
        self.copy.tasks()
    }

    fn release(self: Box<Self>, about_to_run: &mut (dyn FnMut() + Send)) -> Result<(), ReleaseError> {
        let Held { copy, mut around } = *self;
        match copy.release(about_to_run) {
            Ok(()) => {
                // The runtime ends by itself, off the critical path.
                let waits = std::thread::Builder::new().name("ferry-runtime".into());
                let _ = waits.spawn(move || around.call.wait(CLEAN_UP));
                Ok(())
            }
            Err(ReleaseError::NeverRan(error)) => {
                around.see_it_gone();
                Err(ReleaseError::NeverRan(error))
            }
            Err(unknown) => Err(unknown),
        }
    }

    fn discard(self: Box<Self>) -> Result<(), TargetError> {
        let Held { copy, mut around } = *self;
        let discarded = copy.discard();
        around.see_it_gone();
        discarded
    }
}
