//! Freeze when the predicted downtime fits the budget: the default.
//!
//! The rule of QEMU (`downtime-limit`) and Cloud Hypervisor
//! (`is_precopy_converged`), with the fixed costs that the latter leaves out
//! (cloud-hypervisor#8899): predicted = fixed + remaining ÷ bandwidth.
//! The rounds also end when they no longer help (stall) and at the deadline.

use super::{Budget, Decision, History, Strategy};
use std::collections::BTreeMap;

/// Freezes when the predicted downtime fits, the rounds stall, or time is up.
#[derive(Debug)]
pub struct DowntimeBudget {
    /// Rounds without a new smallest remainder before giving in; 3 unless given.
    pub patience: u32,
    /// A remainder must be this share below the best so far to count as
    /// progress; 0.04 unless given (KubeVirt VEP 248, `stallMargin`).
    pub margin: f64,
}

impl Default for DowntimeBudget {
    fn default() -> Self {
        DowntimeBudget { patience: 3, margin: 0.04 }
    }
}

impl DowntimeBudget {
    /// How many rounds ended since one last improved on the best remainder by the margin.
    fn rounds_without_progress(&self, history: &History) -> u32 {
        let mut best = f64::INFINITY;
        let mut since = 0;
        for round in &history.rounds {
            let remaining = round.remaining.0 as f64;
            if remaining < best * (1.0 - self.margin) {
                best = remaining;
                since = 0;
            } else {
                since += 1;
            }
        }
        since
    }
}

impl Strategy for DowntimeBudget {
    fn name(&self) -> &'static str {
        "downtime-budget"
    }

    fn parameters(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("patience".into(), self.patience.to_string()),
            ("margin".into(), self.margin.to_string()),
        ])
    }

    fn decide(&mut self, history: &History, budget: &Budget) -> Decision {
        if history.rounds.is_empty() {
            return Decision::Continue("nothing has been sent yet".into());
        }
        let wanted = budget.downtime.as_millis();
        let predicted = budget.predict(history);
        if let Some(predicted) = predicted.filter(|predicted| *predicted <= budget.downtime) {
            return Decision::StopAndCopy(format!("predicted {} ms ≤ {wanted} ms", predicted.as_millis()));
        }
        let predicted = predicted.map_or_else(|| "unknown".into(), |p| format!("{} ms", p.as_millis()));
        if budget.elapsed >= budget.deadline {
            return Decision::StopAndCopy(format!(
                "the deadline passed; predicted {predicted} > {wanted} ms"
            ));
        }
        let stalled = self.rounds_without_progress(history);
        if stalled >= self.patience {
            return Decision::StopAndCopy(format!(
                "no progress in {stalled} rounds; predicted {predicted} > {wanted} ms"
            ));
        }
        Decision::Continue(format!("predicted {predicted} > {wanted} ms"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{budget, round};
    use super::*;
    use std::time::Duration;

    fn decide(rounds: &[(u64, u64, u64)], budget: &Budget) -> Decision {
        let rounds = rounds
            .iter()
            .enumerate()
            .map(|(n, &(ms, dirty, left))| round(n as u32, ms, dirty, left))
            .collect();
        DowntimeBudget::default().decide(&History { rounds }, budget)
    }

    #[test]
    fn converging_rounds_end_when_the_prediction_fits() {
        assert!(matches!(decide(&[(1000, 262_144, 26_214)], &budget(100)), Decision::Continue(_)));
        assert!(matches!(
            decide(&[(1000, 262_144, 26_214), (100, 26_214, 2_621)], &budget(100)),
            Decision::StopAndCopy(_)
        ));
    }

    #[test]
    fn a_hot_working_set_ends_by_stalling() {
        let hot = (1000, 262_144, 200_000);
        assert!(matches!(decide(&[hot, hot, hot], &budget(50)), Decision::Continue(_)));
        let Decision::StopAndCopy(why) = decide(&[hot, hot, hot, hot], &budget(50)) else { panic!() };
        assert!(why.contains("no progress"), "{why}");
    }

    #[test]
    fn the_deadline_ends_it() {
        let late = Budget { elapsed: Duration::from_secs(601), ..budget(50) };
        let Decision::StopAndCopy(why) = decide(&[(1000, 262_144, 200_000)], &late) else { panic!() };
        assert!(why.contains("deadline"), "{why}");
    }
}
