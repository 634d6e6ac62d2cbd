//! What a probe measures.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The width of a [`Bucket`].
pub const BUCKET: Duration = Duration::from_millis(100);
/// Buckets kept; a longer run goes on counting but not in buckets.
const MAX_BUCKETS: usize = 864_000;

/// What all connections of a probe saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProbeResult {
    /// The longest time between two successive replies on one connection, in
    /// milliseconds.
    pub longest_gap_ms: f64,
    /// When the longest gap began, in milliseconds since the probe's start.
    pub longest_gap_at_ms: f64,
    /// Replies received.
    pub operations: u64,
    /// Requests that the server never counted (its own count ran behind).
    pub lost: u64,
    /// Requests that the server counted twice, or replies that came again.
    pub repeated: u64,
    /// Replies to another request than the one outstanding.
    pub reordered: u64,
    /// Connections that broke (reset, closed, timed out).
    pub errors: u64,
    /// Pages that the workload has found wrong.
    pub memory_errors: u64,
    /// How long the probe ran, in milliseconds.
    pub duration_ms: f64,
    /// Time series, in steps of 100 ms.
    pub series: Vec<Bucket>,
    /// Each connection for itself.
    pub connections: Vec<ConnectionResult>,
    /// The first errors, in words.
    pub messages: Vec<String>,
}

impl ProbeResult {
    /// Whether every reply was right and no connection broke.
    pub fn is_clean(&self) -> bool {
        (self.lost, self.repeated, self.reordered, self.errors, self.memory_errors) == (0, 0, 0, 0, 0)
    }
}

/// 100 ms of a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Where it begins, in milliseconds since the probe's start.
    pub at_ms: u64,
    /// Replies received in it.
    pub operations: u64,
    /// The longest gap that ended in it, in milliseconds.
    pub longest_gap_ms: f64,
}

/// One connection of a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionResult {
    /// The longest gap, in milliseconds.
    pub longest_gap_ms: f64,
    /// Replies received.
    pub operations: u64,
}

/// What one connection's thread collects.
#[derive(Clone, Debug, Default)]
pub(super) struct Measurement {
    pub result: ProbeResult,
}

impl Measurement {
    /// A reply came at `now` (since the start), `gap` after the one before.
    pub fn reply(&mut self, now: Duration, gap: Duration) {
        let gap_ms = gap.as_secs_f64() * 1e3;
        self.result.operations += 1;
        if gap_ms > self.result.longest_gap_ms {
            self.result.longest_gap_ms = gap_ms;
            self.result.longest_gap_at_ms = now.saturating_sub(gap).as_secs_f64() * 1e3;
        }
        let index = (now.as_millis() / BUCKET.as_millis()) as usize;
        if index < MAX_BUCKETS {
            let series = &mut self.result.series;
            while series.len() <= index {
                let at_ms = series.len() as u64 * BUCKET.as_millis() as u64;
                series.push(Bucket { at_ms, ..Bucket::default() });
            }
            series[index].operations += 1;
            series[index].longest_gap_ms = series[index].longest_gap_ms.max(gap_ms);
        }
    }

    /// A connection broke.
    pub fn error(&mut self, message: String) {
        self.result.errors += 1;
        if self.result.messages.len() < 10 {
            self.result.messages.push(message);
        }
    }
}

/// Puts the connections' measurements together.
pub(super) fn combine(parts: Vec<Measurement>, duration: Duration) -> ProbeResult {
    let mut all = ProbeResult { duration_ms: duration.as_secs_f64() * 1e3, ..ProbeResult::default() };
    for Measurement { result: part } in parts {
        if part.longest_gap_ms > all.longest_gap_ms {
            all.longest_gap_ms = part.longest_gap_ms;
            all.longest_gap_at_ms = part.longest_gap_at_ms;
        }
        all.operations += part.operations;
        all.lost += part.lost;
        all.repeated += part.repeated;
        all.reordered += part.reordered;
        all.errors += part.errors;
        all.memory_errors = all.memory_errors.max(part.memory_errors);
        for (index, bucket) in part.series.into_iter().enumerate() {
            if index == all.series.len() {
                all.series.push(bucket);
            } else {
                all.series[index].operations += bucket.operations;
                all.series[index].longest_gap_ms =
                    all.series[index].longest_gap_ms.max(bucket.longest_gap_ms);
            }
        }
        all.connections
            .push(ConnectionResult { longest_gap_ms: part.longest_gap_ms, operations: part.operations });
        all.messages.extend(part.messages);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_series_come_together() {
        let ms = Duration::from_millis;
        let (mut a, mut b) = (Measurement::default(), Measurement::default());
        a.reply(ms(10), ms(10));
        a.reply(ms(320), ms(310));
        b.reply(ms(150), ms(5));
        b.error("reset".into());
        let all = combine(vec![a, b], ms(400));
        assert_eq!((all.operations, all.errors, all.series.len()), (3, 1, 4));
        assert_eq!((all.longest_gap_ms, all.longest_gap_at_ms), (310.0, 10.0));
        assert_eq!(all.series[1].operations, 1);
        assert!(!all.is_clean());
    }
}
