//! What would stop a container, or be lost with it, as far as Docker knows. Its
//! processes are looked at like others.

mod destination;
mod source;

pub use destination::check_destination;
pub use source::check_source;

use crate::check::{Finding, Force, Severity};

/// Collects findings about an engine and what it keeps.
#[derive(Default)]
struct Report(Vec<Finding>);

impl Report {
    fn blocks(&mut self, force: Force, what: impl Into<String>, advice: impl Into<String>) {
        self.0.push(Finding::host(Severity::Blocks, force, what, advice));
    }

    fn risks(&mut self, what: impl Into<String>, advice: impl Into<String>) {
        self.0.push(Finding::host(Severity::Risks, Force::Overridable, what, advice));
    }

    fn notes(&mut self, what: impl Into<String>, advice: impl Into<String>) {
        self.0.push(Finding::host(Severity::Notes, Force::Overridable, what, advice));
    }

    fn sorted(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        self.0
    }
}
