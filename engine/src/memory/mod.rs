//! Where pages come from: following what a running tree writes and reading it.

pub mod native;

use ferry_transport::page::PageRange;
use ferry_transport::page::{PageChunk, Round, SpaceId};
use ferry_transport::units::PageCount;
use std::time::Duration;

/// Takes the chunks of a round, in any order, blocking when the network is slower.
pub trait PageSink {
    /// Hands one chunk over. An error ends the round.
    fn put(&mut self, chunk: PageChunk) -> Result<(), SinkClosed>;
}

/// Nobody takes pages any more: the link is gone or the migration was aborted.
#[derive(Debug, thiserror::Error)]
#[error("the page sink is closed")]
pub struct SinkClosed;

/// Why memory could not be followed or read.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The tree's last process is gone.
    #[error("the workload exited")]
    WorkloadExited,
    /// Nobody takes the pages.
    #[error(transparent)]
    Sink(#[from] SinkClosed),
    /// A process could not be brought under tracking.
    #[error("process {pid}: {what}: {cause}")]
    Process {
        /// Whose.
        pid: i32,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        cause: std::io::Error,
    },
}

/// What one round found; what it cost on the wire the sender knows.
#[derive(Clone, Debug, Default)]
pub struct RoundScan {
    /// Pages that were dirty: data and zero pages together.
    pub dirty_pages: PageCount,
    /// Pages with content, handed to the sink.
    pub data_pages: PageCount,
    /// Zero pages, announced to the sink.
    pub zero_pages: PageCount,
    /// Pages that nobody follows, read and found to be what was last sent of them.
    pub unchanged_pages: PageCount,
    /// Chunks handed to the sink.
    pub chunks: u64,
    /// How long the longest-stopped process was stopped in this round.
    pub frozen: Duration,
    /// Processes that were newly brought under tracking.
    pub injected: u32,
    /// Scanning page tables, without reading.
    pub scan: Duration,
    /// Notes for the report: a mapping that cannot be tracked, a process that exited.
    pub notes: Vec<String>,
}

/// One address space as it stands at the freeze.
#[derive(Clone, Debug)]
pub struct FrozenSpace {
    /// Which.
    pub space: SpaceId,
    /// Its process, as this host numbers it.
    pub pid: i32,
    /// Every private page that exists, ascending and disjoint: whatever CRIU
    /// leaves to us, dirty or not.
    pub present: Vec<PageRange>,
}

/// Follows and reads the private memory of a process tree.
///
/// Blocking: a driver runs it on a thread of its own. Between `round` and
/// `finish` the workload runs; it is stopped only for the injection, whose time
/// each round reports.
pub trait MemorySource: Send {
    /// Sends everything written since the last round (round 0: everything).
    ///
    /// On success every page that exists was sent in this round or an earlier
    /// one, or will be found dirty by the next. On failure the workload runs on
    /// and a later round sends what this one did not.
    fn round(&mut self, round: Round, sink: &mut dyn PageSink) -> Result<RoundScan, MemoryError>;

    /// How many pages a round would send now, without sending or re-protecting. Of
    /// pages that nobody follows, this is what the last comparison suggests.
    fn peek(&mut self) -> Result<PageCount, MemoryError>;

    /// With every task frozen by the caller: sends what is still dirty and says
    /// what exists. On success the destination has, or will have, every page.
    fn finish(
        &mut self,
        round: Round,
        sink: &mut dyn PageSink,
    ) -> Result<(RoundScan, Vec<FrozenSpace>), MemoryError>;

    /// Ends tracking; the workload is as if it had never been followed.
    fn disarm(&mut self);
}

/// Which processes belong to the target, now.
pub trait ProcessSet: Send + Sync {
    /// Every live process (not thread), ascending by discovery, parents first.
    fn processes(&self) -> std::io::Result<Vec<i32>>;
}
