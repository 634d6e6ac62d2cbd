//! The counters of all processes of the tree, in memory that they share.

use crate::sys::{Sharing, map_words};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Words per process on the board: a cache line, so that processes do not
/// slow each other.
const SLOT_WORDS: usize = 8;

/// Shared by all processes of a workload.
#[derive(Clone, Copy, Debug)]
pub struct Board {
    words: &'static [AtomicU64],
    processes: usize,
}

/// A counter of one process.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub enum Counter {
    /// Pages written since the start, the first fill aside.
    Steps,
    /// Pages found wrong.
    Errors,
    /// Pages checked since the start.
    Verified,
    /// The last full check that was finished ([`Board::request_check`]).
    CheckDone,
    /// Pages checked in it.
    CheckPages,
    /// 1 once all memory is filled.
    Filled,
    /// The longest time between two beats of its pulse, in nanoseconds, since it
    /// was last taken.
    LongestGap,
}

impl Board {
    /// A board for so many processes, before they are forked.
    ///
    /// # Errors
    /// As `mmap`.
    pub fn new(processes: usize) -> io::Result<Board> {
        let words = map_words((processes + 1) * SLOT_WORDS, Sharing::Children)?;
        Ok(Board { words, processes })
    }

    /// One process's counter.
    pub fn counter(&self, process: usize, counter: Counter) -> &'static AtomicU64 {
        &self.words[(process + 1) * SLOT_WORDS + counter as usize]
    }

    /// The sum of a counter over all processes.
    pub fn total(&self, counter: Counter) -> u64 {
        (0..self.processes).map(|process| self.counter(process, counter).load(Ordering::Relaxed)).sum()
    }

    /// The longest gap of all processes since this was last called.
    pub fn take_longest_gap(&self) -> Duration {
        let take = |process| self.counter(process, Counter::LongestGap).swap(0, Ordering::Relaxed);
        Duration::from_nanos((0..self.processes).map(take).max().unwrap_or(0))
    }

    /// How many processes have reached `value` in this counter.
    pub fn all_reached(&self, counter: Counter, value: u64) -> bool {
        (0..self.processes).all(|process| self.counter(process, counter).load(Ordering::Acquire) >= value)
    }

    /// How many processes there are.
    pub fn processes(&self) -> usize {
        self.processes
    }

    /// Asks every process for a check of all its memory; returns the number of
    /// the check, which [`Counter::CheckDone`] reaches when it is done.
    pub fn request_check(&self) -> u64 {
        self.words[0].fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The number of the last check that was asked for.
    pub fn requested_check(&self) -> u64 {
        self.words[0].load(Ordering::Acquire)
    }
}
