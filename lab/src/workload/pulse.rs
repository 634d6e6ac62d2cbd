//! How long a process was kept from running, seen from inside it.
//!
//! Its first thread, the one that a debugger or an injection stops, looks at the
//! clock every 200 µs and notes the longest time between two looks. It runs before
//! all ordinary threads (SCHED_FIFO), so that a busy machine does not look like a
//! process that was stopped.

use super::board::{Board, Counter};
use crate::sys::run_before_others;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two looks.
const BEAT: Duration = Duration::from_micros(200);

/// Whether a workload watches itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Watching {
    /// It does not.
    #[default]
    Off,
    /// Every process's first thread takes its pulse; clients can ask for it.
    Pulse,
}

/// The pulse of the calling thread.
#[derive(Debug)]
pub struct Pulse {
    longest: &'static AtomicU64,
    last: Instant,
}

impl Pulse {
    /// Puts the calling thread before the others and starts.
    ///
    /// # Errors
    /// When the kernel does not let this process do so.
    pub fn start(board: Board, process: usize) -> io::Result<Pulse> {
        run_before_others()?;
        Ok(Pulse { longest: board.counter(process, Counter::LongestGap), last: Instant::now() })
    }

    /// Beats for so long.
    pub fn beat_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while self.last < end {
            std::thread::sleep(BEAT);
            let now = Instant::now();
            let gap = now.duration_since(self.last).as_nanos() as u64;
            self.longest.fetch_max(gap, Ordering::Relaxed);
            self.last = now;
        }
    }
}
