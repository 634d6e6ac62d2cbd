//! What engine and pager say to each other over the pager's fd 0, a socket that
//! keeps messages apart. A message is a word that names it and its numbers, in
//! little-endian 64-bit words. Unknown messages are ignored, so that more can be added.

use ferry_transport::page::PAGE_SIZE;
use ferry_transport::units::{Bytes, PageCount};
use std::time::Duration;

/// Engine: here are arena, plan and listening socket (three descriptors).
pub(super) const ARM: u64 = 1;
/// Pager: ready to be connected to.
pub(super) const ARMED: u64 = 2;
/// Pager: CRIU says that the tasks are about to run.
pub(super) const RESTORED: u64 = 3;
/// Pager: see [`Drained`].
pub(super) const DRAINED: u64 = 4;
/// Pager: it cannot go on; text follows.
pub(super) const FAILED: u64 = 5;
/// Pager: its worker was killed; another has taken over.
pub(super) const RENEWED: u64 = 6;

/// The most bytes of a message.
pub(super) const MAX_MESSAGE: usize = 1024;

/// What became of every page of the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Pages brought.
    pub pages: PageCount,
    /// The same in bytes.
    pub bytes: Bytes,
    /// Pages not needed any more: unmapped, dropped, replaced or exited meanwhile.
    pub dropped: PageCount,
    /// Pages that nobody took though nobody gave them up. Not zero means that the
    /// workload's memory is not to be trusted.
    pub lost: PageCount,
    /// Faults served: how often a thread waited for a page.
    pub faults: u64,
    /// Workers that were killed on the way.
    pub killed: u64,
    /// From the first task about to run until the last page was in place.
    pub time: Duration,
}

impl Drained {
    pub(super) fn encode(self) -> Vec<u8> {
        let time = self.time.as_micros() as u64;
        words(&[DRAINED, self.pages.0, self.dropped.0, self.lost.0, self.faults, self.killed, time])
    }

    pub(super) fn decode(message: &[u8]) -> Option<Drained> {
        let [DRAINED, pages, dropped, lost, faults, killed, time] = parse(message)[..] else { return None };
        // More than there can be: not from a pager.
        pages.checked_mul(PAGE_SIZE as u64)?;
        Some(Drained {
            pages: PageCount(pages),
            bytes: PageCount(pages).bytes(),
            dropped: PageCount(dropped),
            lost: PageCount(lost),
            faults,
            killed,
            time: Duration::from_micros(time),
        })
    }
}

pub(super) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn parse(message: &[u8]) -> Vec<u64> {
    let word = |word: &[u8]| word.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    message.chunks_exact(8).map(word).collect()
}
