//! No rounds at all: freeze, copy everything, restore. The baseline.

use super::{Budget, Decision, History, Strategy};
use std::collections::BTreeMap;

/// Freezes at once.
#[derive(Debug, Default)]
pub struct StopAndCopy;

impl Strategy for StopAndCopy {
    fn name(&self) -> &'static str {
        "stop-and-copy"
    }

    fn parameters(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn decide(&mut self, _: &History, _: &Budget) -> Decision {
        Decision::StopAndCopy("no rounds were asked for".into())
    }
}
