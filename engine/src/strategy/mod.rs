//! When to stop copying and freeze: the convergence strategies.
//!
//! A strategy sees the rounds so far and the budget, and decides. No I/O, no
//! clock: the object that runs live is the one that a simulation drives. A new
//! one is a file here and a line in [`registry`].

mod downtime_budget;
mod fixed_rounds;
pub mod registry;
mod stop_and_copy;

pub use downtime_budget::DowntimeBudget;
pub use fixed_rounds::FixedRounds;
pub use stop_and_copy::StopAndCopy;

use ferry_transport::page::Round;
use ferry_transport::units::{ByteRate, Bytes, PageCount};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// What one finished round did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundStats {
    /// Which.
    pub round: Round,
    /// From its start until the destination had stored everything.
    pub duration: Duration,
    /// Pages that were dirty when it began.
    pub dirty: PageCount,
    /// Bytes that crossed the network for it.
    pub wire: Bytes,
    /// Raw page bytes delivered per second, zero pages not counted.
    pub bandwidth: ByteRate,
    /// Unique bytes that were dirtied per second while it ran.
    pub dirty_rate: ByteRate,
    /// Pages dirty again when it ended: what a freeze now would have to send.
    pub remaining: PageCount,
    /// How long the workload was stopped in it.
    pub frozen: Duration,
}

/// The rounds so far, oldest first. Empty before round 0.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Every finished round.
    pub rounds: Vec<RoundStats>,
}

impl History {
    /// The last finished round.
    pub fn last(&self) -> Option<&RoundStats> {
        self.rounds.last()
    }

    /// Raw bytes per second over all rounds that sent enough to tell (1 MiB),
    /// the newest weighing most: an exponential average with weight 0.5
    /// (performance.md §5, row 9). `None` before anything was sent.
    pub fn bandwidth(&self) -> Option<ByteRate> {
        let mut average: Option<f64> = None;
        for round in &self.rounds {
            if round.bandwidth.0 == 0 || (round.dirty.bytes() < Bytes::MIB && average.is_some()) {
                continue;
            }
            let rate = round.bandwidth.0 as f64;
            average = Some(average.map_or(rate, |so_far| 0.5 * so_far + 0.5 * rate));
        }
        average.map(|rate| ByteRate(rate as u64))
    }
}

/// What the user allows, and what the engine has measured beside the rounds.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// The downtime that is wanted.
    pub downtime: Duration,
    /// What a freeze costs before any page is sent: dump, restore, round trips.
    pub fixed_cost: Duration,
    /// What would have to be sent in a freeze beside pages: files that changed.
    pub beside: Bytes,
    /// Time since the first round began.
    pub elapsed: Duration,
    /// The longest that the rounds may take together.
    pub deadline: Duration,
}

impl Budget {
    /// Downtime of a freeze after the last round: fixed cost plus remaining
    /// bytes over bandwidth. `None` before a bandwidth is known.
    pub fn predict(&self, history: &History) -> Option<Duration> {
        let remaining = history.last()?.remaining.bytes() + self.beside;
        let transfer =
            if remaining == Bytes(0) { Duration::ZERO } else { remaining.at(history.bandwidth()?)? };
        Some(self.fixed_cost + transfer)
    }
}

/// What happens next, and why, for the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "decision", content = "reason")]
pub enum Decision {
    /// Another round.
    Continue(String),
    /// Freeze now.
    StopAndCopy(String),
    /// Leave the workload where it is.
    GiveUp(String),
}

impl Decision {
    /// The decision's name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Decision::Continue(_) => "continue",
            Decision::StopAndCopy(_) => "stop-and-copy",
            Decision::GiveUp(_) => "give-up",
        }
    }

    /// Why.
    pub fn reason(&self) -> &str {
        match self {
            Decision::Continue(why) | Decision::StopAndCopy(why) | Decision::GiveUp(why) => why,
        }
    }
}

/// A convergence strategy.
pub trait Strategy: Send {
    /// Its name on the command line and in reports.
    fn name(&self) -> &'static str;

    /// Its parameters with their values, for reports.
    fn parameters(&self) -> BTreeMap<String, String>;

    /// Called before round 0 with an empty history and after every round.
    fn decide(&mut self, history: &History, budget: &Budget) -> Decision;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A round that took `ms`, sent `dirty` pages and left `remaining`.
    pub(crate) fn round(n: u32, ms: u64, dirty: u64, remaining: u64) -> RoundStats {
        let duration = Duration::from_millis(ms);
        RoundStats {
            round: Round(n),
            duration,
            dirty: PageCount(dirty),
            wire: PageCount(dirty).bytes(),
            bandwidth: PageCount(dirty).bytes().per(duration),
            dirty_rate: PageCount(remaining).bytes().per(duration),
            remaining: PageCount(remaining),
            frozen: Duration::ZERO,
        }
    }

    pub(crate) fn budget(downtime_ms: u64) -> Budget {
        Budget {
            downtime: Duration::from_millis(downtime_ms),
            fixed_cost: Duration::from_millis(20),
            beside: Bytes(0),
            elapsed: Duration::ZERO,
            deadline: Duration::from_secs(600),
        }
    }

    #[test]
    fn prediction_is_fixed_cost_plus_bytes_over_bandwidth() {
        let history = History { rounds: vec![round(0, 1000, 262_144, 26_214)] };
        let predicted = budget(100).predict(&history).unwrap();
        assert!((119..=121).contains(&predicted.as_millis()), "{predicted:?}");
    }

    #[test]
    fn files_that_would_be_sent_in_the_freeze_count_like_pages() {
        let history = History { rounds: vec![round(0, 1000, 262_144, 0)] };
        let beside = Budget { beside: Bytes(26_214 * 4096), ..budget(100) };
        let predicted = beside.predict(&history).unwrap();
        assert!((119..=121).contains(&predicted.as_millis()), "{predicted:?}");
    }

    #[test]
    fn nothing_is_predicted_before_a_round() {
        assert_eq!(budget(100).predict(&History::default()), None);
    }

    #[test]
    fn tiny_rounds_do_not_disturb_the_bandwidth() {
        let mut history = History { rounds: vec![round(0, 1000, 262_144, 10)] };
        let before = history.bandwidth();
        history.rounds.push(round(1, 5, 10, 10));
        assert_eq!(history.bandwidth(), before);
    }
}
