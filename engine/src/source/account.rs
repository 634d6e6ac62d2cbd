//! What a migration has come to so far, and its report.

use super::clock::DowntimeClock;
use super::plan::SourcePlan;
use super::state::SourceState;
use crate::report::{
    DowntimeReport, FilesReport, PredictionReport, Report, ReportOutcome, RoundReport, SCHEMA,
    StrategyReport, ThereReport, ms,
};
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::RestoreMode;
use std::time::{Duration, Instant};

/// Collects as it happens.
pub(super) struct Account {
    began: Instant,
    clock: Option<DowntimeClock>,
    frozen_at: Option<Instant>,
    /// After each round.
    pub(super) rounds: Vec<RoundReport>,
    /// After the last round.
    pub(super) predicted: Option<Duration>,
    /// How it is made up.
    pub(super) prediction: Option<PredictionReport>,
    /// What the destination measured.
    pub(super) there: Option<ThereReport>,
    /// What the frozen part took on the wire.
    pub(super) final_bytes: Option<Bytes>,
    /// What came along beside memory.
    pub(super) files: Option<FilesReport>,
    /// How long pages followed after Resumed.
    pub(super) brownout: Option<Duration>,
    notes: Vec<String>,
}

impl Account {
    pub(super) fn new(notes: Vec<String>) -> Account {
        Account {
            began: Instant::now(),
            clock: None,
            frozen_at: None,
            rounds: Vec::new(),
            predicted: None,
            prediction: None,
            there: None,
            final_bytes: None,
            files: None,
            brownout: None,
            notes,
        }
    }

    /// The freeze is requested: the downtime begins.
    pub(super) fn freezes(&mut self) {
        self.clock = Some(DowntimeClock::start());
        self.frozen_at = Some(Instant::now());
    }

    /// Since the freeze was requested.
    pub(super) fn frozen(&self) -> Option<Duration> {
        self.frozen_at.map(|at| at.elapsed())
    }

    /// A part of the downtime ends.
    pub(super) fn lap(&mut self, part: impl FnOnce(&mut DowntimeReport) -> &mut f64) {
        if let Some(clock) = &mut self.clock {
            clock.lap(part);
        }
    }

    /// The final round ends: its scan, and the rest, which was sending.
    pub(super) fn lap_final_round(&mut self, scan: Duration) {
        if let Some(clock) = &mut self.clock {
            clock.split(scan, |parts| &mut parts.final_scan_ms, |parts| &mut parts.final_transfer_ms);
        }
    }

    /// Keeps a note; whether it is new.
    pub(super) fn note(&mut self, note: &str) -> bool {
        let is_new = !self.notes.iter().any(|known| known == note);
        if is_new {
            self.notes.push(note.to_owned());
        }
        is_new
    }

    /// The report. `exists`: whether the source still has any process of the workload.
    pub(super) fn report(
        self,
        state: &SourceState,
        plan: &SourcePlan,
        strategy: StrategyReport,
        wire: Bytes,
        exists: bool,
    ) -> Report {
        let id = plan.offer.id;
        let (outcome, workload, cause) = match state {
            SourceState::Completed => (ReportOutcome::Completed, "running at the destination".into(), None),
            SourceState::Aborted { at, cause } if exists => {
                (ReportOutcome::Aborted, "running here".into(), Some(format!("{cause} (in {at})")))
            }
            SourceState::Aborted { at, cause } => (
                ReportOutcome::Aborted,
                "exited".into(),
                Some(format!("the workload exited meanwhile: {cause} (in {at})")),
            ),
            _ => (
                ReportOutcome::InDoubt,
                format!("standing still here, or running at the destination: `ferry resolve {id}` finds out"),
                Some("Commit was sent and no answer came".into()),
            ),
        };
        let completed = outcome == ReportOutcome::Completed;
        let downtime = self.clock.as_ref().map(DowntimeClock::report).filter(|_| completed);
        let restore = match plan.offer.restore {
            RestoreMode::Lazy => "lazy",
            RestoreMode::Eager => "eager",
        };
        Report {
            schema: SCHEMA,
            id: id.to_string(),
            outcome,
            workload,
            cause,
            target: plan.offer.target.clone(),
            to: plan.to.clone(),
            strategy,
            tracker: plan.tracker.clone(),
            restore: restore.into(),
            rounds: self.rounds,
            downtime_ms: downtime.map(|parts| parts.total_ms()),
            downtime,
            predicted_downtime_ms: self.predicted.map(ms),
            prediction: self.prediction,
            there: self.there,
            brownout_ms: self.brownout.map(ms),
            total_ms: ms(self.began.elapsed()),
            memory_bytes: plan.offer.memory.0,
            wire_bytes: wire.0,
            final_bytes: self.final_bytes.map(|bytes| bytes.0),
            files: self.files,
            client: None,
            environment: plan.environment.clone(),
            notes: self.notes,
        }
    }
}
