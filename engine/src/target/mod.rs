//! The seams to what owns the workload: how it is frozen and dumped at the
//! source, restored at the destination, and held on both until the outcome is known.

pub mod aftercare;
pub mod docker;
pub mod leftovers;
pub mod oci;
pub mod process;

use crate::check::Finding;
use crate::journal::TaskId;
pub use aftercare::Aftercare;
use ferry_transport::wire::control::{Offer, RestorerRequest, TcpMode};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a dump or a restore did not come about. The workload's state is part of
/// the contract of the call that returns it.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct TargetError {
    /// What happened and, where CRIU said so, why: its last error lines.
    pub what: String,
    /// The log that has it all.
    pub log: Option<PathBuf>,
}

/// How long the parts of a freeze took.
#[derive(Clone, Copy, Debug, Default)]
pub struct FreezeTimes {
    /// From the request until every task stood still.
    pub freeze: Duration,
    /// From there until CRIU had written its images.
    pub dump: Duration,
}

/// A workload at the source. Blocking; a driver calls it from a thread of its own.
pub trait Target: Send {
    /// For people and reports: `pid:4711 (redis-server)`.
    fn describe(&self) -> String;

    /// The number under which CRIU's images name process `pid` of this host.
    fn image_pid(&self, pid: i32) -> u32 {
        pid.unsigned_abs()
    }

    /// Every process of it now, root first.
    fn tasks(&self) -> Vec<TaskId>;

    /// Who can build its copy, and what that one must know.
    fn restorer(&self) -> Result<RestorerRequest, TargetError> {
        Ok(RestorerRequest::process())
    }

    /// What has to be put right here in the end, whoever is left to do it. Asked before
    /// [`Target::prepare`], and written down before anything is changed.
    fn aftercare(&self) -> Option<Aftercare> {
        None
    }

    /// Starts and checks whatever can be started and checked before the freeze.
    /// On failure nothing was started and the workload runs.
    fn prepare(&mut self) -> Result<(), TargetError>;

    /// Stops every task and begins the dump into `images`. On success every task
    /// stands still; on failure they run.
    fn freeze(
        &mut self,
        images: &Path,
        tcp: TcpMode,
        deadline: Duration,
    ) -> Result<Box<dyn FrozenDump>, TargetError>;
}

/// Every task stands still; CRIU is dumping.
pub trait FrozenDump: Send {
    /// Waits until the images are complete and the dump is held. On failure the
    /// tasks run again.
    fn hold(self: Box<Self>) -> Result<Box<dyn HeldDump>, TargetError>;
}

/// The tasks stand still and the images are complete. Exactly one of `commit`
/// and `roll_back` is to be called; dropping it undecided is a bug that is
/// logged and decides nothing.
pub trait HeldDump: Send {
    /// How long it took to get here.
    fn times(&self) -> FreezeTimes;

    /// Every process of the tree, root first.
    fn tasks(&self) -> &[TaskId];

    /// Puts something beneath CRIU's hold that keeps every task from running
    /// even if CRIU and this process are killed. On success none has run since the
    /// hold began.
    fn pin(&mut self) -> Result<(), TargetError>;

    /// Removes the tree for good. Only after Resumed.
    fn commit(self: Box<Self>) -> Result<(), TargetError>;

    /// Lets the tasks run again, as if nothing had been.
    fn roll_back(self: Box<Self>) -> Result<(), TargetError>;
}

/// What a restore needs to know.
#[derive(Clone, Debug)]
pub struct RestorePlan {
    /// The image directory, complete.
    pub images: PathBuf,
    /// Where CRIU keeps its log, pidfile and sockets.
    pub work: PathBuf,
    /// How connections are treated.
    pub tcp: TcpMode,
    /// Whether pages are served by our pager through `lazy-pages.socket` in `work`.
    pub lazy: bool,
    /// The PIDs of the tree, as the images name them, root first.
    pub pids: Vec<u32>,
}

/// Builds the copy at the destination.
pub trait Restorer: Send {
    /// What would stop this one in particular from taking the offer, or is worth
    /// knowing. Changes nothing.
    fn examine(&self, _offer: &Offer) -> Vec<Finding> {
        Vec::new()
    }

    /// Starts and checks whatever can be before the images are there.
    fn prepare(&mut self, work: &Path) -> Result<(), TargetError>;

    /// Restores and holds the copy before its first instruction. On failure
    /// nothing of it is left.
    fn restore(&mut self, plan: &RestorePlan) -> Result<Box<dyn HeldRestore>, TargetError>;
}

/// A complete copy that has not run yet. Exactly one of the two is to be called;
/// dropping it undecided is a bug that is logged and decides nothing.
pub trait HeldRestore: Send {
    /// Every process of the copy, as this host numbers it.
    fn tasks(&self) -> Vec<TaskId>;

    /// Lets it run. Returns when the first task may have run; an error says that
    /// this cannot be known, unless `NeverRan`. `about_to_run` is called when all that is
    /// left to be done is to let go of the tasks, whose sockets are whole: never before a
    /// `NeverRan`.
    fn release(self: Box<Self>, about_to_run: &mut (dyn FnMut() + Send)) -> Result<(), ReleaseError>;

    /// Removes it; provably nothing of it ran.
    fn discard(self: Box<Self>) -> Result<(), TargetError>;
}

/// Why a release did not end in a running copy.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Nothing ran, nothing is left.
    #[error("the copy was removed before it ran: {0}")]
    NeverRan(TargetError),
    /// It may have run.
    #[error("whether the copy ran is not known: {0}")]
    Unknown(TargetError),
}
