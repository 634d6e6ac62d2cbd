//! The source's side: the runtime checkpoints, ferry decides when and how it ends.

use super::members::{Members, innermost_pid};
use super::relay::{Deed, Registration, place_own_wrapper};
use super::runtime::{Call, Runtime, State};
use super::setup::Setup;
use super::stdio;
use super::{Host, fails};
use crate::criu::proto::Options;
use crate::criu::rpc::{Launch, PagePayload, Swrk};
use crate::journal::TaskId;
use crate::target::process::common_options;
use crate::target::process::dump::{Dump, tasks_of};
use crate::target::{Aftercare, FreezeTimes, FrozenDump, HeldDump, Target, TargetError};
use ferry_transport::wire::control::{RestorerRequest, TcpMode};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a runtime may take until it asks CRIU for a dump.
const START: Duration = Duration::from_secs(30);
/// How long a runtime may take to clean up.
const CLEAN_UP: Duration = Duration::from_secs(30);

/// A container that runs.
pub struct OciTarget {
    id: String,
    runtime: Runtime,
    host: Host,
    state: State,
    setup: Setup,
    members: Arc<Members>,
    pages: PagePayload,
    network: Network,
    parked: Option<Parked>,
}

/// Where the devices of a container's network namespace come from in its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Network {
    /// From the images.
    InImages,
    /// From whoever calls the runtime.
    MadeByRuntime,
}

/// The runtime's checkpoint, held back at its request.
struct Parked {
    swrk: Swrk,
    call: Call,
    /// Where the runtime writes.
    scratch: tempfile::TempDir,
}

impl OciTarget {
    /// The container of this ID.
    ///
    /// # Errors
    /// It does not run, or cannot be moved as it is. Nothing was started.
    pub fn new(id: &str, runtime: Runtime, host: Host) -> Result<OciTarget, TargetError> {
        let state = runtime.state(id)?;
        if state.status != "running" {
            return Err(fails(format!("container {id} is {}, not running", state.status)));
        }
        let members = Members::of(state.pid).map_err(|error| fails(format!("container {id}: {error}")))?;
        let setup = Setup::read(&runtime, id, &state)?;
        if setup.config()?.has_terminal() {
            return Err(fails(format!("container {id} has a terminal, which cannot be moved")));
        }
        let members = Arc::new(members);
        let pages = if host.criu.shim.is_some() { PagePayload::Ferry } else { PagePayload::LazyPages };
        Ok(OciTarget {
            id: id.to_owned(),
            runtime,
            host,
            state,
            setup,
            members,
            pages,
            network: Network::InImages,
            parked: None,
        })
    }

    /// The container's first process, as this host numbers it.
    pub fn init(&self) -> i32 {
        self.members.init()
    }

    /// Lets CRIU dump the pages itself: a dump that is whole without ferry's pages.
    pub fn with_pages(mut self, pages: PagePayload) -> OciTarget {
        self.pages = pages;
        self
    }

    /// The runtime's caller gives a copy its network devices anew: they are left out of
    /// the images.
    pub fn with_network_made_by_runtime(mut self) -> OciTarget {
        self.network = Network::MadeByRuntime;
        self
    }

    /// CRIU's `descriptors.json`.
    pub fn descriptors(&self) -> &[String] {
        &self.setup.descriptors
    }

    /// Only a namespace of its own, and made for it, has devices that are anybody's to make.
    fn network(&self) -> Result<Network, TargetError> {
        let own = self.setup.config()?.has_own("network");
        Ok(if own { self.network } else { Network::InImages })
    }

    fn park(&self) -> Result<Parked, TargetError> {
        self.members.refuse_outsiders()?;
        let problem = |error: std::io::Error| fails(format!("the checkpoint cannot be prepared: {error}"));
        let Host { criu, relays, ferry } = &self.host;
        let registration = Registration::new(relays, &self.id, Deed::Checkpoint).map_err(problem)?;
        let scratch = tempfile::TempDir::new_in(relays).map_err(problem)?;
        let wrapper = place_own_wrapper(scratch.path(), ferry, relays).map_err(problem)?;
        let mut call =
            self.runtime.checkpoint(&self.id, &wrapper, scratch.path(), self.network()?).map_err(problem)?;
        let launch = Launch { criu: &criu.program, shim: criu.shim.as_deref(), pages: self.pages };
        let parked = registration.await_request(&launch, START, || call.is_up());
        let said = |call: &mut Call, what: &dyn std::fmt::Display| {
            let _ = call.wait(Duration::ZERO);
            let log = call.complaint();
            fails(format!("{} cannot checkpoint {}: {what}: {log}", self.runtime.program.display(), self.id))
        };
        let mut swrk = parked.map_err(|error| said(&mut call, &error))?;
        match swrk.warm_up() {
            Ok(()) => Ok(Parked { swrk, call, scratch }),
            Err(error) => {
                swrk.kill();
                Err(said(&mut call, &error))
            }
        }
    }
}

impl Members {
    /// What CRIU would leave behind must not be there.
    fn refuse_outsiders(&self) -> Result<(), TargetError> {
        let outsiders = self.outsiders().map_err(|error| fails(format!("the container: {error}")))?;
        let Some(pid) = outsiders.first() else { return Ok(()) };
        let what = format!(
            "process {pid} was brought into the container from outside (`exec`) and cannot be moved: end it"
        );
        Err(fails(what))
    }
}

impl Target for OciTarget {
    fn describe(&self) -> String {
        let program = self.runtime.program.file_name().unwrap_or_default().to_string_lossy();
        format!("{program}:{}", self.id)
    }

    fn image_pid(&self, pid: i32) -> u32 {
        innermost_pid(pid).unwrap_or_default()
    }

    fn tasks(&self) -> Vec<TaskId> {
        tasks_of(&*self.members)
    }

    fn restorer(&self) -> Result<RestorerRequest, TargetError> {
        let setup = serde_json::to_vec(&self.setup).map_err(|error| fails(error.to_string()))?;
        Ok(RestorerRequest { kind: super::KIND.into(), setup })
    }

    fn aftercare(&self) -> Option<Aftercare> {
        Some(Aftercare::RuntimeContainer { delete: self.runtime.delete_command(&self.id) })
    }

    fn prepare(&mut self) -> Result<(), TargetError> {
        let is_up = |parked: &mut Parked| parked.swrk.is_up() && parked.call.is_up();
        if !self.parked.as_mut().is_some_and(is_up) {
            self.parked = None;
            self.parked = Some(self.park()?);
        }
        Ok(())
    }

    fn freeze(
        &mut self,
        images: &Path,
        tcp: TcpMode,
        deadline: Duration,
    ) -> Result<Box<dyn FrozenDump>, TargetError> {
        self.prepare()?;
        let Parked { swrk, call, scratch } = self.parked.take().ok_or_else(|| fails("nothing is parked"))?;
        let dump = Dump {
            root: self.state.pid,
            processes: Arc::clone(&self.members) as _,
            pages: self.pages,
            images: images.to_owned(),
            deadline,
        };
        let external = stdio::external(&self.setup.streams);
        let mut around =
            Around { call, runtime: self.runtime.clone(), id: self.id.clone(), _scratch: scratch };
        match dump.freeze(swrk, Options { external, ..common_options(tcp) }) {
            Ok(dump) => {
                Ok(Box::new(Frozen { dump: Box::new(dump), members: Arc::clone(&self.members), around }))
            }
            Err(error) => {
                around.see_it_end();
                Err(error)
            }
        }
    }
}

/// The runtime's command around a dump.
struct Around {
    call: Call,
    runtime: Runtime,
    id: String,
    _scratch: tempfile::TempDir,
}

impl Around {
    /// The runtime was told how it ended, or has been hung up on.
    fn see_it_end(&mut self) {
        if let Err(error) = self.call.wait(CLEAN_UP) {
            tracing::warn!(%error, "the runtime cannot be waited for");
        }
    }

    /// The container has no process any more; the runtime removes what it kept of it.
    fn see_it_gone(&mut self) {
        self.see_it_end();
        if self.runtime.directory(&self.id).exists() {
            self.runtime.delete(&self.id);
        }
    }
}

/// Every task stands still.
struct Frozen {
    dump: Box<dyn FrozenDump>,
    members: Arc<Members>,
    around: Around,
}

impl FrozenDump for Frozen {
    fn hold(self: Box<Self>) -> Result<Box<dyn HeldDump>, TargetError> {
        let Frozen { dump, members, mut around } = *self;
        // CRIU writes its images meanwhile.
        let (held, outsiders) = std::thread::scope(|scope| {
            let looking = scope.spawn(|| members.refuse_outsiders());
            let held = dump.hold();
            (held, looking.join().unwrap_or_else(|_| Err(fails("looking for `exec` sessions failed"))))
        });
        let held = match (held, outsiders) {
            (Ok(held), Ok(())) => held,
            (Ok(held), Err(error)) => {
                held.roll_back()?;
                around.see_it_end();
                return Err(error);
            }
            (Err(error), _) => {
                around.see_it_end();
                return Err(error);
            }
        };
        Ok(Box::new(Held { dump: held, around }))
    }
}

/// The dump is complete, CRIU waits, and the runtime with it.
struct Held {
    dump: Box<dyn HeldDump>,
    around: Around,
}

impl HeldDump for Held {
    fn times(&self) -> FreezeTimes {
        self.dump.times()
    }

    fn tasks(&self) -> &[TaskId] {
        self.dump.tasks()
    }

    fn pin(&mut self) -> Result<(), TargetError> {
        self.dump.pin()
    }

    fn commit(self: Box<Self>) -> Result<(), TargetError> {
        let Held { dump, mut around } = *self;
        dump.commit()?;
        around.see_it_gone();
        Ok(())
    }

    fn roll_back(self: Box<Self>) -> Result<(), TargetError> {
        let Held { dump, mut around } = *self;
        let rolled_back = dump.roll_back();
        around.see_it_end();
        rolled_back
    }
}
