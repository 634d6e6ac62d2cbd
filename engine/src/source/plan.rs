//! What a migration is given, and what it gives back.

use super::dump_cost::TreeCost;
use super::forecast::LocalCost;
use super::network::SourceNetwork;
use super::observer::Observer;
use super::state::SourceState;
use crate::check::Findings;
use crate::companion::Companion;
use crate::memory::MemorySource;
use crate::report::{Report, environment::Environment};
use crate::strategy::Strategy;
use crate::target::Target;
use ferry_transport::link::Connector;
use ferry_transport::wire::control::{Hello, Offer};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// What is to be done, decided before anything is sent.
pub struct SourcePlan {
    /// What this side says first.
    pub hello: Hello,
    /// What is to be moved.
    pub offer: Offer,
    /// The destination, as typed.
    pub to: String,
    /// Where journals and reports are kept.
    pub state: PathBuf,
    /// Where CRIU writes its images: on a tmpfs where there is one.
    pub images: PathBuf,
    /// The downtime that is wanted.
    pub downtime: Duration,
    /// The longest that the rounds may take together.
    pub deadline: Duration,
    /// The longest that the tasks may stand still before the commit.
    pub freeze_deadline: Duration,
    /// How long an unanswered Commit is asked after before an operator must.
    pub doubt_patience: Duration,
    /// What is to be moved, counted, and its smaps walk, measured.
    pub tree: TreeCost,
    /// What CRIU costs here beside the pages, measured.
    pub local_cost: LocalCost,
    /// Parallel page streams.
    pub streams: usize,
    /// `native` or `criu`.
    pub tracker: String,
    /// Where it is measured.
    pub environment: Environment,
    /// What the preparation found worth telling.
    pub notes: Vec<String>,
}

/// Who does it.
pub struct SourceParts {
    /// What owns the workload.
    pub target: Box<dyn Target>,
    /// What follows and reads its memory.
    pub memory: Box<dyn MemorySource>,
    /// What comes along beside memory, if anything does.
    pub companion: Option<Box<dyn Companion>>,
    /// What decides.
    pub strategy: Box<dyn Strategy>,
    /// The way to the destination.
    pub connector: Box<dyn Connector>,
    /// The address and the hooks.
    pub network: SourceNetwork,
    /// Who watches.
    pub observer: Box<dyn Observer>,
    /// Turns to a reason when the user gives up.
    pub abort: watch::Receiver<Option<String>>,
}

/// A migration's end and its report.
pub struct Finished {
    /// The end.
    pub state: SourceState,
    /// The report, saved.
    pub report: Report,
    /// What the destination found, where it refused the offer.
    pub refusal: Option<Findings>,
}
