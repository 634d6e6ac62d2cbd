//! 2 MiB of an address space: which of its pages are known, since which round.

use ferry_transport::page::{PAGE_SIZE, Round, RunKind};

/// Pages in a region.
pub(super) const REGION_PAGES: u64 = 512;
/// Bytes of address space in a region, and of arena in a piece.
pub(crate) const REGION_BYTES: u64 = REGION_PAGES * PAGE_SIZE as u64;
/// What a region's book-keeping is charged for, in bytes: the marks, the map
/// entry and the allocator's share.
pub(super) const REGION_COST: u64 = REGION_PAGES * 4 + 192;

/// What is known of a page: 0 nothing, else `(round + 1) << 1 | is_zero`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mark(u32);

impl Mark {
    fn new(round: Round, kind: RunKind) -> Mark {
        Mark(((round.0 + 1) << 1) | u32::from(kind == RunKind::Zero))
    }

    fn state(self) -> Option<(Round, RunKind)> {
        let round = Round((self.0 >> 1).checked_sub(1)?);
        Some((round, if self.0 & 1 == 1 { RunKind::Zero } else { RunKind::Data }))
    }
}

#[derive(Debug)]
pub(super) struct Region {
    /// Where in the arena its content is, once there is any.
    pub(super) piece: Option<u64>,
    marks: [Mark; REGION_PAGES as usize],
}

impl Default for Region {
    fn default() -> Region {
        Region { piece: None, marks: [Mark::default(); REGION_PAGES as usize] }
    }
}

impl Region {
    /// What is known of a page: since which round, content or zero.
    pub(super) fn page(&self, within: usize) -> Option<(Round, RunKind)> {
        self.marks[within].state()
    }

    /// The runs (first page, length) among `count` pages from `within` that a page
    /// of `round` may replace: those with no newer content.
    pub(super) fn replaceable(&self, within: usize, count: usize, round: Round) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for page in within..within + count {
            if self.marks[page].state().is_some_and(|(known, _)| known > round) {
                continue;
            }
            match runs.last_mut() {
                Some((start, len)) if *start + *len == page => *len += 1,
                _ => runs.push((page, 1)),
            }
        }
        runs
    }

    /// How many of the pages hold no content yet.
    pub(super) fn without_data(&self, start: usize, len: usize) -> usize {
        len - self.count(start, len, RunKind::Data)
    }

    /// How many of the pages are known to be zero.
    pub(super) fn zeroes(&self, start: usize, len: usize) -> usize {
        self.count(start, len, RunKind::Zero)
    }

    pub(super) fn mark(&mut self, start: usize, len: usize, round: Round, kind: RunKind) {
        self.marks[start..start + len].fill(Mark::new(round, kind));
    }

    fn count(&self, start: usize, len: usize, kind: RunKind) -> usize {
        let is_kind = |mark: &&Mark| mark.state().is_some_and(|(_, known)| known == kind);
        self.marks[start..start + len].iter().filter(is_kind).count()
    }
}
