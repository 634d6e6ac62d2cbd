//! What a person watching a migration is told while it runs.

use super::state::SourceState;
use crate::report::RoundReport;
use ferry_transport::page::Round;
use ferry_transport::units::{ByteRate, Bytes};
use std::time::Duration;

/// A round under way.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Which.
    pub round: Round,
    /// Sent in it so far.
    pub sent: Bytes,
    /// About how much there is to send.
    pub expected: Bytes,
    /// Bytes per second in it so far.
    pub bandwidth: ByteRate,
    /// The dirty rate of the round before.
    pub dirty_rate: Option<ByteRate>,
    /// The downtime that was predicted after the round before.
    pub predicted: Option<Duration>,
}

/// Takes events as they happen; must not block.
pub trait Observer: Send + Sync {
    /// A state was entered.
    fn state(&self, state: &SourceState);
    /// A round goes on.
    fn progress(&self, progress: &Progress);
    /// A round ended.
    fn round(&self, round: &RoundReport);
    /// Something a reader should know.
    fn note(&self, note: &str);
}

/// Tells nobody.
pub struct NoObserver;

impl Observer for NoObserver {
    fn state(&self, _: &SourceState) {}
    fn progress(&self, _: &Progress) {}
    fn round(&self, _: &RoundReport) {}
    fn note(&self, _: &str) {}
}
