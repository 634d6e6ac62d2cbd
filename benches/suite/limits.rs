//! Limits that may be insisted on: bytes and memory, never time.

use anyhow::{Result, bail};

/// What was found to be beyond its limit.
#[derive(Default)]
pub struct Limits(Vec<String>);

impl Limits {
    /// Compares and prints.
    pub fn at_most(&mut self, what: &str, value: f64, limit: f64, unit: &str) {
        let holds = value <= limit;
        let verdict = if holds { "holds" } else { "DOES NOT HOLD" };
        println!("    {what}: {value:.2}{unit}, limit {limit}{unit}: {verdict}");
        if !holds {
            self.0.push(format!("{what} is {value:.2}{unit}, limit {limit}{unit}"));
        }
    }

    /// An error where something was beyond its limit.
    pub fn verdict(self) -> Result<()> {
        if !self.0.is_empty() {
            bail!("beyond its limit: {}", self.0.join("; "));
        }
        Ok(())
    }
}
