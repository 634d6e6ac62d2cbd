//! One process's memory: what is written to it and how it is checked.
//!
//! Every page has a sequence word. A writer makes it odd, writes the page and
//! makes it even again; half of an even word is the page's version. A checker
//! that sees the word change under it tries again (a seqlock, with atomics all
//! through, so that a torn read is a wrong value and not undefined behaviour).
//! Each page has one writer only.

use super::board::{Board, Counter};
use super::page::{Content, Difference, Expected, PAGE_BYTES, WORDS};
use crate::sys::{Sharing, map_words};
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

/// The writers' and the checker's time slice: short, so that the rate is even.
const SLICE: Duration = Duration::from_millis(5);
/// A writer that fell behind (it was frozen, or the machine is busy) does not
/// catch up more than this.
const MAX_DEBT: Duration = Duration::from_millis(100);

/// The memory of one process of the tree.
#[derive(Debug)]
pub struct Memory {
    words: &'static [AtomicU64],
    /// Per page: twice its version, plus one while it is being written.
    sequences: Vec<AtomicU32>,
    seed: u64,
    content: Content,
    board: Board,
    process: usize,
}

impl Memory {
    /// Maps and fills `pages` pages for process number `process`.
    ///
    /// # Errors
    /// As `mmap`.
    pub fn new(pages: u64, content: Content, board: Board, process: usize) -> io::Result<Memory> {
        let memory = Memory {
            words: map_words(pages as usize * WORDS, Sharing::Private)?,
            sequences: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            seed: 0x5eed_0000 + process as u64,
            content,
            board,
            process,
        };
        for index in 0..memory.pages() {
            memory.write(index);
        }
        memory.counter(Counter::Filled).store(1, Ordering::Release);
        Ok(memory)
    }

    fn pages(&self) -> usize {
        self.sequences.len()
    }

    fn counter(&self, counter: Counter) -> &'static AtomicU64 {
        self.board.counter(self.process, counter)
    }

    fn page(&self, index: usize) -> &[AtomicU64] {
        &self.words[index * WORDS..(index + 1) * WORDS]
    }

    fn expected(&self, index: usize, sequence: u32) -> Expected {
        let version = u64::from(sequence / 2);
        Expected { index: index as u64, version, seed: self.seed, content: self.content }
    }

    /// Writes the next version of a page. One caller per page at a time.
    fn write(&self, index: usize) {
        let sequence = self.sequences[index].load(Ordering::Relaxed);
        let next = sequence.wrapping_add(2);
        self.sequences[index].store(sequence | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.expected(index, next).write(self.page(index));
        self.sequences[index].store(next, Ordering::Release);
    }

    /// Checks one page against its recorded version.
    fn check(&self, index: usize) -> Option<Difference> {
        loop {
            let before = self.sequences[index].load(Ordering::Acquire);
            if before & 1 == 0 {
                let difference = self.expected(index, before).first_difference(self.page(index));
                fence(Ordering::Acquire);
                if self.sequences[index].load(Ordering::Relaxed) == before {
                    return difference;
                }
            }
            std::thread::yield_now();
        }
    }

    /// Dirties the working set's pages `first, first + step, …` in turn, at
    /// `bytes_per_second`, for ever.
    pub fn write_for_ever(&self, working_set: usize, first: usize, step: usize, bytes_per_second: u64) -> ! {
        let mut pacer = Pacer::new(bytes_per_second);
        let mut index = first;
        loop {
            for _ in 0..pacer.next_slice() {
                if index >= working_set {
                    index = first;
                }
                self.write(index);
                index += step;
                self.counter(Counter::Steps).fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Checks all pages in turn at `bytes_per_second`, for ever, and all at
    /// once when the board asks for it.
    pub fn check_for_ever(&self, bytes_per_second: u64) -> ! {
        let mut pacer = Pacer::new(bytes_per_second);
        let mut index = 0;
        loop {
            for _ in 0..pacer.next_slice() {
                self.check_and_count(index);
                index = (index + 1) % self.pages();
                self.check_all_if_asked();
            }
            self.check_all_if_asked();
        }
    }

    fn check_all_if_asked(&self) {
        let asked = self.board.requested_check();
        if asked > self.counter(Counter::CheckDone).load(Ordering::Relaxed) {
            for index in 0..self.pages() {
                self.check_and_count(index);
            }
            self.counter(Counter::CheckPages).store(self.pages() as u64, Ordering::Relaxed);
            self.counter(Counter::CheckDone).store(asked, Ordering::Release);
        }
    }

    fn check_and_count(&self, index: usize) {
        if let Some(difference) = self.check(index) {
            self.counter(Counter::Errors).fetch_add(1, Ordering::Relaxed);
            let Difference { position, found, wanted } = difference;
            eprintln!(
                "ferry workload: MEMORY WRONG in process {} at page {index}, word {position}: {found:#x} instead of {wanted:#x}",
                self.process
            );
        }
        self.counter(Counter::Verified).fetch_add(1, Ordering::Relaxed);
    }
}

/// Hands out pages so that a rate is kept in small slices.
#[derive(Debug)]
struct Pacer {
    bytes_per_second: u64,
    last: Instant,
    /// Bytes that are due and not yet handed out.
    due: f64,
}

impl Pacer {
    fn new(bytes_per_second: u64) -> Self {
        Pacer { bytes_per_second, last: Instant::now(), due: 0.0 }
    }

    /// Sleeps to the end of the slice and says how many pages are due.
    fn next_slice(&mut self) -> u64 {
        std::thread::sleep(SLICE);
        let now = Instant::now();
        let elapsed = now.duration_since(self.last).min(MAX_DEBT);
        self.last = now;
        self.due += self.bytes_per_second as f64 * elapsed.as_secs_f64();
        let pages = (self.due / PAGE_BYTES as f64) as u64;
        self.due -= (pages * PAGE_BYTES) as f64;
        pages
    }
}
