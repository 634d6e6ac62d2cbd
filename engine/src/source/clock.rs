//! The stopwatch of the downtime.

use crate::report::{DowntimeReport, ms};
use std::time::{Duration, Instant};

/// Times the parts of the downtime one after another, so that they sum to it.
#[derive(Debug)]
pub struct DowntimeClock {
    last: Instant,
    report: DowntimeReport,
}

impl DowntimeClock {
    /// Starts at the freeze request.
    pub fn start() -> DowntimeClock {
        DowntimeClock { last: Instant::now(), report: DowntimeReport::default() }
    }

    /// Ends a part now; the next begins.
    pub fn lap(&mut self, part: impl FnOnce(&mut DowntimeReport) -> &mut f64) {
        let now = Instant::now();
        *part(&mut self.report) += ms(now - self.last);
        self.last = now;
    }

    /// Ends two parts now that overlapped no other: the first took `first`, the
    /// second the rest.
    pub fn split(
        &mut self,
        first: Duration,
        first_part: impl FnOnce(&mut DowntimeReport) -> &mut f64,
        second_part: impl FnOnce(&mut DowntimeReport) -> &mut f64,
    ) {
        let now = Instant::now();
        let whole = now - self.last;
        let first = first.min(whole);
        *first_part(&mut self.report) += ms(first);
        *second_part(&mut self.report) += ms(whole - first);
        self.last = now;
    }

    /// The parts so far.
    pub fn report(&self) -> DowntimeReport {
        self.report
    }
}
