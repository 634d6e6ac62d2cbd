//! Pages, ranges of them, and the chunks in which they travel.

use crate::units::PageCount;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The page size of the wire format and of every supported architecture's
/// configuration. A host with another page size is refused before anything is sent.
pub const PAGE_SIZE: usize = 4096;

/// The most pages in one chunk: 1 MiB of content. Bounds what a receiver
/// allocates for one frame.
pub const MAX_CHUNK_PAGES: usize = 256;

/// A page-aligned virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageAddr(u64);

impl PageAddr {
    /// The page that holds `address`.
    pub const fn containing(address: u64) -> PageAddr {
        PageAddr(address & !(PAGE_SIZE as u64 - 1))
    }

    /// The address of the page's first byte.
    pub const fn address(self) -> u64 {
        self.0
    }

    /// The page's number: address divided by page size.
    pub const fn index(self) -> u64 {
        self.0 / PAGE_SIZE as u64
    }

    /// The page with this number.
    pub const fn from_index(index: u64) -> PageAddr {
        PageAddr(index.wrapping_mul(PAGE_SIZE as u64))
    }
}

/// Consecutive pages of one address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageRange {
    /// The first page.
    pub start: PageAddr,
    /// How many pages, the first included.
    pub count: PageCount,
}

impl PageRange {
    /// The pages from `start` up to the address `end`, which is not included.
    pub fn between(start: u64, end: u64) -> PageRange {
        let start = PageAddr::containing(start);
        PageRange { start, count: PageCount(end.saturating_sub(start.address()).div_ceil(PAGE_SIZE as u64)) }
    }

    /// The first address after the range.
    pub fn end(self) -> u64 {
        self.start.address().saturating_add(self.count.0.saturating_mul(PAGE_SIZE as u64))
    }
}

/// One address space of a migration: a process between two `exec`s. Numbered by
/// the source in the order of discovery, never reused within a migration, so
/// that a reused PID cannot inherit another process's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpaceId(pub u32);

/// The number of a round; round 0 sends everything, the last one is frozen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Round(pub u32);

/// What the pages of a [`Run`] hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Content that travels in the chunk's data.
    Data,
    /// Zeroes, which never travel.
    Zero,
}

/// Consecutive pages of a chunk, all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first page.
    pub start: PageAddr,
    /// How many pages; at most [`MAX_CHUNK_PAGES`] of kind `Data` in a whole chunk.
    pub count: u32,
    /// Content or zeroes.
    pub kind: RunKind,
}

/// Pages of one address space read in one round: what a memory source emits and
/// a page store takes.
#[derive(Clone, Debug)]
pub struct PageChunk {
    /// Whose pages.
    pub space: SpaceId,
    /// Read in which round.
    pub round: Round,
    /// Which pages, ascending and disjoint.
    pub runs: Vec<Run>,
    /// The content of the `Data` runs, one after another; empty if there are none.
    pub data: Bytes,
}

impl PageChunk {
    /// Pages with content.
    pub fn data_pages(&self) -> PageCount {
        self.pages_of(RunKind::Data)
    }

    /// Pages known to be zero.
    pub fn zero_pages(&self) -> PageCount {
        self.pages_of(RunKind::Zero)
    }

    fn pages_of(&self, kind: RunKind) -> PageCount {
        PageCount(self.runs.iter().filter(|run| run.kind == kind).map(|run| u64::from(run.count)).sum())
    }
}
