//! A fixed number of rounds, whatever they bring (Xen: 5; p.haul: 8).

use super::{Budget, Decision, History, Strategy};
use std::collections::BTreeMap;

/// Freezes after `rounds` rounds.
#[derive(Debug)]
pub struct FixedRounds {
    /// How many; 5 unless given, as in Xen's `SPP_MAX_ITERATIONS`.
    pub rounds: u32,
}

impl Default for FixedRounds {
    fn default() -> Self {
        FixedRounds { rounds: 5 }
    }
}

impl Strategy for FixedRounds {
    fn name(&self) -> &'static str {
        "fixed-rounds"
    }

    fn parameters(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("rounds".into(), self.rounds.to_string())])
    }

    fn decide(&mut self, history: &History, budget: &Budget) -> Decision {
        let done = history.rounds.len();
        if done >= self.rounds as usize {
            Decision::StopAndCopy(format!("{done} rounds are done"))
        } else if budget.elapsed >= budget.deadline {
            Decision::StopAndCopy(format!("the deadline passed after {done} rounds"))
        } else {
            Decision::Continue(format!("round {} of {}", done + 1, self.rounds))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{budget, round};
    use super::*;

    #[test]
    fn freezes_after_the_last_round_and_not_before() {
        let mut strategy = FixedRounds { rounds: 2 };
        let mut history = History::default();
        assert!(matches!(strategy.decide(&history, &budget(100)), Decision::Continue(_)));
        history.rounds.push(round(0, 100, 1000, 1000));
        assert!(matches!(strategy.decide(&history, &budget(100)), Decision::Continue(_)));
        history.rounds.push(round(1, 100, 1000, 1000));
        assert!(matches!(strategy.decide(&history, &budget(100)), Decision::StopAndCopy(_)));
    }
}
