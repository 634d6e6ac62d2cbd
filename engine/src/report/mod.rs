//! The report of a migration: schema version 1.
//!
//! Every end, good or bad, writes one: `<state>/reports/<id>.json`. Times are
//! milliseconds on the source's monotonic clock. What was not measured is
//! absent, never 0. The parts of `downtime` follow one another without a gap,
//! so that they sum to `downtime_ms`.

pub mod environment;
pub mod text;

use crate::strategy::{Decision, RoundStats};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The version of the schema. Fields may be added without raising it.
pub const SCHEMA: u32 = 1;

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportOutcome {
    /// The workload runs at the destination.
    Completed,
    /// The workload runs at the source.
    Aborted,
    /// It stands still at the source until the destination's answer, or an
    /// operator's decision, is known.
    InDoubt,
}

/// The strategy that decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StrategyReport {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub parameters: BTreeMap<String, String>,
}

/// One round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundReport {
    /// Its number.
    pub n: u32,
    /// From its start until the destination had stored everything.
    pub duration_ms: f64,
    /// Dirty pages found.
    pub dirty_pages: u64,
    /// Of these, pages of zeroes.
    pub zero_pages: u64,
    /// Of these, pages whose content was sent.
    pub sent_pages: u64,
    /// Their content.
    pub raw_bytes: u64,
    /// What crossed the network for it.
    pub wire_bytes: u64,
    /// Content per second.
    pub bandwidth_bytes_per_s: u64,
    /// Unique bytes dirtied per second meanwhile.
    pub dirty_rate_bytes_per_s: u64,
    /// How long a process was stopped.
    pub frozen_ms: f64,
    /// The downtime of a freeze right after it; absent while no bandwidth is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_downtime_ms: Option<f64>,
    /// What the strategy decided.
    pub decision: String,
    /// And why.
    pub reason: String,
}

/// The downtime's parts, in the order in which they happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DowntimeReport {
    /// Request until every task stands still and the destination holds what clients send.
    pub freeze_ms: f64,
    /// CRIU's dump of everything but memory.
    pub dump_ms: f64,
    /// The last scan of the page tables.
    pub final_scan_ms: f64,
    /// Reading and sending the last pages.
    pub final_transfer_ms: f64,
    /// Sending CRIU's images and the final state, after what was still missing of
    /// directories that come along.
    pub images_ms: f64,
    /// Assembly and restore there, the network's round trip included.
    pub restore_ms: f64,
    /// Writing and sending Commit.
    pub commit_ms: f64,
    /// Commit's way there, the release, Resumed's way back.
    pub resume_ms: f64,
}

impl DowntimeReport {
    /// The whole downtime.
    pub fn total_ms(&self) -> f64 {
        self.parts().iter().map(|(_, ms)| ms).sum()
    }

    /// The parts' milliseconds, in order.
    pub fn values(&self) -> [f64; 8] {
        self.parts().map(|(_, ms)| ms)
    }

    /// Of milliseconds in order.
    pub fn from_values(values: [f64; 8]) -> DowntimeReport {
        let [
            freeze_ms,
            dump_ms,
            final_scan_ms,
            final_transfer_ms,
            images_ms,
            restore_ms,
            commit_ms,
            resume_ms,
        ] = values;
        DowntimeReport {
            freeze_ms,
            dump_ms,
            final_scan_ms,
            final_transfer_ms,
            images_ms,
            restore_ms,
            commit_ms,
            resume_ms,
        }
    }

    /// Part by part with another.
    pub fn zip(&self, other: &DowntimeReport, with: impl Fn(f64, f64) -> f64) -> DowntimeReport {
        let (one, other) = (self.values(), other.values());
        DowntimeReport::from_values(std::array::from_fn(|part| with(one[part], other[part])))
    }

    /// Names and milliseconds, in order.
    pub fn parts(&self) -> [(&'static str, f64); 8] {
        [
            ("freeze", self.freeze_ms),
            ("dump", self.dump_ms),
            ("final scan", self.final_scan_ms),
            ("final transfer", self.final_transfer_ms),
            ("images", self.images_ms),
            ("restore", self.restore_ms),
            ("commit", self.commit_ms),
            ("resume", self.resume_ms),
        ]
    }
}

/// What the downtime was predicted to be, to be held against what it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictionReport {
    /// Its parts; they sum to `predicted_downtime_ms`. What is not predicted apart is 0.
    pub parts: DowntimeReport,
    /// Of this, what earlier moves to the destination added or took away.
    pub learned_ms: f64,
    /// How many they were.
    pub lessons: usize,
    /// What was to be moved.
    pub tree: TreeReport,
}

/// The size of a tree, as it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeReport {
    /// Processes.
    pub processes: u64,
    /// Their threads.
    pub threads: u64,
    /// Their mappings.
    pub mappings: u64,
    /// Their open descriptors.
    pub descriptors: u64,
}

/// What the destination measured within the downtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ThereReport {
    /// Assembly of images and pages.
    pub assemble_ms: f64,
    /// CRIU, until it held the copy.
    pub restore_ms: f64,
    /// From Commit's arrival until the copy ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_ms: Option<f64>,
}

/// What a client saw; only where a probe ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientReport {
    /// The longest time between two replies.
    pub longest_gap_ms: f64,
    /// Replies.
    pub operations: u64,
    /// Requests without their reply, or replies out of order or repeated.
    pub lost: u64,
}

/// Directories that came along; only where some did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FilesReport {
    /// Rounds in which they were looked at, the freeze not counted.
    pub rounds: u64,
    /// What was sent of them in all, before compression.
    pub bytes: u64,
    /// Of this, while frozen.
    pub final_bytes: u64,
    /// How long the last difference took; in parallel with the dump and the last pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_ms: Option<f64>,
}

/// A whole migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The migration, 32 hex digits.
    pub id: String,
    /// How it ended.
    pub outcome: ReportOutcome,
    /// Where the workload is now, in words.
    pub workload: String,
    /// Why it did not complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What was moved.
    pub target: String,
    /// Where to.
    pub to: String,
    /// The strategy.
    pub strategy: StrategyReport,
    /// `native` or `criu`.
    pub tracker: String,
    /// `lazy` or `eager`.
    pub restore: String,
    /// The rounds; the frozen one is not among them.
    pub rounds: Vec<RoundReport>,
    /// The sum of `downtime`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<f64>,
    /// The parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime: Option<DowntimeReport>,
    /// The prediction that the freeze was decided on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_downtime_ms: Option<f64>,
    /// How it was made up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<PredictionReport>,
    /// The destination's own measurements, which are within `restore` and `resume`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub there: Option<ThereReport>,
    /// From Resumed until every page had been handed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub brownout_ms: Option<f64>,
    /// From the offer to the end.
    pub total_ms: f64,
    /// Resident memory when it began.
    pub memory_bytes: u64,
    /// All that crossed the network for pages.
    pub wire_bytes: u64,
    /// Of this, while frozen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_bytes: Option<u64>,
    /// Directories that came along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesReport>,
    /// The client's view.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientReport>,
    /// Where it was measured.
    pub environment: environment::Environment,
    /// What a reader should know: fallbacks, mappings that could not be tracked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl RoundReport {
    /// A round's report from its numbers and the strategy's decision after it.
    pub fn new(
        stats: &RoundStats,
        zero_pages: u64,
        sent_pages: u64,
        predicted: Option<Duration>,
        decision: &Decision,
    ) -> RoundReport {
        RoundReport {
            n: stats.round.0,
            duration_ms: ms(stats.duration),
            dirty_pages: stats.dirty.0,
            zero_pages,
            sent_pages,
            raw_bytes: ferry_transport::units::PageCount(sent_pages).bytes().0,
            wire_bytes: stats.wire.0,
            bandwidth_bytes_per_s: stats.bandwidth.0,
            dirty_rate_bytes_per_s: stats.dirty_rate.0,
            frozen_ms: ms(stats.frozen),
            predicted_downtime_ms: predicted.map(ms),
            decision: decision.name().into(),
            reason: decision.reason().into(),
        }
    }
}

impl Report {
    /// Saves the report under the state directory and returns its path.
    pub fn save(&self, state: &Path) -> io::Result<PathBuf> {
        let directory = state.join("reports");
        std::fs::create_dir_all(&directory)?;
        let path = directory.join(format!("{}.json", self.id));
        let draft = directory.join(format!("{}.json.new", self.id));
        std::fs::write(&draft, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&draft, &path)?;
        Ok(path)
    }
}

/// Milliseconds with microsecond precision.
pub fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
