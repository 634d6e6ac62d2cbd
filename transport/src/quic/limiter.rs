//! `--max-bandwidth`: a token bucket that all page streams share. The control
//! stream is exempt.

use crate::units::ByteRate;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A token bucket. Its depth is 20 ms of the rate, at least one frame: the pace
/// is smooth on the scale of a service's own traffic.
#[derive(Debug)]
pub struct Limiter {
    rate: ByteRate,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// Bytes that may go now; negative while a debt is being waited off.
    tokens: f64,
    filled: Instant,
}

const DEPTH: Duration = Duration::from_millis(20);

impl Limiter {
    /// A limiter of this rate, which is not zero.
    pub fn new(rate: ByteRate) -> Limiter {
        let rate = ByteRate(rate.0.max(1));
        Limiter { rate, bucket: Mutex::new(Bucket { tokens: 0.0, filled: Instant::now() }) }
    }

    /// Takes `bytes` and waits until they may go.
    pub async fn take(&self, bytes: u64) {
        let wait = self.owe(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes `bytes` at `now`; how long to wait before sending them.
    fn owe(&self, bytes: u64, now: Instant) -> Duration {
        let rate = self.rate.0 as f64;
        let mut bucket = self.bucket.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let earned = now.saturating_duration_since(bucket.filled).as_secs_f64() * rate;
        bucket.tokens = (bucket.tokens + earned).min(rate * DEPTH.as_secs_f64());
        bucket.filled = now;
        bucket.tokens -= bytes as f64;
        if bucket.tokens >= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(-bucket.tokens / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_a_second_the_rate_is_kept() {
        let limiter = Limiter::new(ByteRate(1_000_000));
        let began = Instant::now();
        let (mut now, mut sent) = (began, 0u64);
        while now < began + Duration::from_secs(1) {
            now += limiter.owe(10_000, now);
            sent += 10_000;
        }
        assert!((950_000..=1_050_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_pause_earns_no_more_than_the_depth() {
        let limiter = Limiter::new(ByteRate(1_000_000));
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(limiter.owe(20_000, later), Duration::ZERO);
        assert!(limiter.owe(20_000, later) >= Duration::from_millis(19));
    }
}
