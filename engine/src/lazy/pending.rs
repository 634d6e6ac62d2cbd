//! Which pages a space still lacks, by the address where they belong now.

use crate::page_store::{Content, Extent, REGION_BYTES};
use crate::sys::uffd_fill::Event;
use ferry_transport::page::PageRange;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// The most pieces of a batch: bounds how long a fault waits for a batch of crumbs.
const MAX_PIECES: usize = 64;

/// Consecutive pages to be brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where they belong.
    pub(super) address: u64,
    /// How many bytes.
    pub(super) len: u64,
    /// Where in the arena their content is.
    pub(super) offset: u64,
}

impl Piece {
    /// Itself without its first `bytes`; `None` when nothing is left.
    pub(super) fn after(self, bytes: u64) -> Option<Piece> {
        let rest = self.len.checked_sub(bytes).filter(|rest| *rest > 0)?;
        Some(Piece { address: self.address + bytes, len: rest, offset: self.offset + bytes })
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    /// By address: length and arena offset.
    pieces: BTreeMap<u64, (u64, u64)>,
    hot: VecDeque<PageRange>,
    /// Whether any page moved since: neighbours here need not be neighbours in the
    /// arena any more.
    moved: bool,
    /// The batches that are on their way: number, first and last address.
    under_way: Vec<(u64, u64, u64)>,
    batches: u64,
}

/// Pieces to be brought at once.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) pieces: Vec<Piece>,
    /// The span of the arena from the first piece to the last, if what lies between
    /// belongs between them in the address space too.
    pub(super) span: Option<(u64, u64)>,
    number: u64,
}

impl Pending {
    pub(super) fn new(extents: &[Extent], hot: &[PageRange]) -> Pending {
        // In order already, so that the map is built in one go.
        let pieces = extents.iter().filter_map(|extent| match extent.content {
            Content::Arena(offset) => {
                Some((extent.pages.start.address(), (extent.pages.count.bytes().0, offset)))
            }
            Content::Zero => None,
        });
        Pending { pieces: pieces.collect(), hot: hot.iter().copied().collect(), ..Pending::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// How many pages are pending, for tests.
    pub(super) fn pages(&self) -> u64 {
        self.pieces.values().map(|(len, _)| len / ferry_transport::page::PAGE_SIZE as u64).sum()
    }

    /// Whether any page was moved: neighbours in the arena may belong anywhere since.
    pub(super) fn has_moved(&self) -> bool {
        self.moved
    }

    /// Whether any page within `start..end` is pending.
    pub(super) fn has_any(&self, start: u64, end: u64) -> bool {
        self.pieces.range(..end).next_back().is_some_and(|(at, (len, _))| at + len > start)
    }

    pub(super) fn put(&mut self, piece: Piece) {
        self.pieces.insert(piece.address, (piece.len, piece.offset));
    }

    /// Takes all pieces, or parts of them, within `start..end`.
    pub(super) fn take_range(&mut self, start: u64, end: u64) -> Vec<Piece> {
        let mut taken = Vec::new();
        while let Some(piece) = self.take_within(start, end, u64::MAX) {
            taken.push(piece);
        }
        taken
    }

    /// Takes the next batch of at most `max` bytes: what is hot first, then by address.
    pub(super) fn take_next(&mut self, max: u64) -> Option<Batch> {
        while let Some(range) = self.hot.front().copied() {
            if let Some(piece) = self.take_within(range.start.address(), range.end(), max) {
                return Some(self.under_way(vec![piece], None));
            }
            self.hot.pop_front();
        }
        let first = self.take_within(0, u64::MAX, max)?;
        let (mut pieces, mut last, mut total) = (vec![first], first, first.len);
        while total < max && pieces.len() < MAX_PIECES {
            let Some(next) = self.take_within(last.address + last.len, u64::MAX, max - total) else { break };
            let together = next.address.wrapping_sub(next.offset) == first.address.wrapping_sub(first.offset)
                && next.offset / REGION_BYTES == first.offset / REGION_BYTES;
            if !together {
                self.put(next);
                break;
            }
            pieces.push(next);
            total += next.len;
            last = next;
        }
        let span = (!self.moved).then_some((first.offset, last.offset + last.len - first.offset));
        Some(self.under_way(pieces, span))
    }

    fn under_way(&mut self, pieces: Vec<Piece>, span: Option<(u64, u64)>) -> Batch {
        self.batches += 1;
        if let (Some(first), Some(last)) = (pieces.first(), pieces.last()) {
            self.under_way.push((self.batches, first.address, last.address + last.len));
        }
        Batch { pieces, span, number: self.batches }
    }

    /// Notes that a batch is no longer on its way. True if nothing between its
    /// first and last page is needed any more: neither pending nor in a batch of
    /// another thread, which may have begun with what a third put back.
    pub(super) fn settle(&mut self, batch: &Batch) -> bool {
        let Some(index) = self.under_way.iter().position(|(number, ..)| *number == batch.number) else {
            return false;
        };
        let (_, start, end) = self.under_way.swap_remove(index);
        let crossed = self.under_way.iter().any(|&(_, from, to)| from < end && start < to);
        !crossed && !self.has_any(start, end)
    }

    /// Takes the first piece within `start..end`, cut to `max` bytes.
    pub(super) fn take_within(&mut self, start: u64, end: u64, max: u64) -> Option<Piece> {
        let before = self.pieces.range(..start).next_back().map(|(at, (len, _))| (*at, *len));
        let at = match before {
            Some((at, len)) if at + len > start => at,
            _ => self.pieces.range(start..).next().map(|(at, _)| *at).filter(|at| *at < end)?,
        };
        let (len, offset) = self.pieces.remove(&at)?;
        let (from, to) = (at.max(start), (at + len).min(end));
        let to = to.min(from.saturating_add(max));
        if at < from {
            self.pieces.insert(at, (from - at, offset));
        }
        if to < at + len {
            self.pieces.insert(to, (at + len - to, offset + (to - at)));
        }
        Some(Piece { address: from, len: to - from, offset: offset + (from - at) })
    }

    /// Follows a change of mappings: what is not needed any more.
    pub(super) fn apply(&mut self, event: Event) -> Vec<Piece> {
        match event {
            Event::Remap { from, to, len } => {
                self.remap(from, to, len);
                Vec::new()
            }
            Event::Remove { start, end } | Event::Unmap { start, end } => self.take_range(start, end),
            Event::Fault(_) | Event::Fork(_) | Event::Unknown(_) => Vec::new(),
        }
    }

    /// Leaves only what has content in these parts of the arena (ascending).
    pub(super) fn keep_content(&mut self, data: &[Range<u64>]) {
        let pieces = std::mem::take(&mut self.pieces);
        for (address, (len, offset)) in pieces {
            let first = data.partition_point(|part| part.end <= offset);
            for part in data[first..].iter().take_while(|part| part.start < offset + len) {
                let (from, to) = (part.start.max(offset), part.end.min(offset + len));
                self.put(Piece { address: address + (from - offset), len: to - from, offset: from });
            }
        }
    }

    /// Follows an `mremap`: what belonged to `from..from+len` belongs to `to..` now.
    pub(super) fn remap(&mut self, from: u64, to: u64, len: u64) {
        self.moved = true;
        for piece in self.take_range(from, from.saturating_add(len)) {
            self.put(Piece { address: to.wrapping_add(piece.address.wrapping_sub(from)), ..piece });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Pending, Piece};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const PAGE: u64 = 4096;

    #[test]
    fn what_is_punched_has_been_brought() {
        let mut pending = Pending::default();
        pending.put(Piece { address: 10 * PAGE, len: 10 * PAGE, offset: 100 * PAGE });
        pending.put(Piece { address: 50 * PAGE, len: PAGE, offset: 200 * PAGE });
        pending.keep_content(&[0..101 * PAGE, 103 * PAGE..105 * PAGE, 108 * PAGE..150 * PAGE]);
        let left: Vec<_> = pending.take_range(0, u64::MAX);
        let pages = |piece: &Piece| (piece.address / PAGE, piece.len / PAGE, piece.offset / PAGE);
        assert_eq!(left.iter().map(pages).collect::<Vec<_>>(), [(10, 1, 100), (13, 2, 103), (18, 2, 108)]);
    }

    proptest! {
        #[test]
        fn agrees_with_a_map(steps in prop::collection::vec((0..3u8, 0..60u64, 1..20u64, 0..60u64), 1..60)) {
            let mut pending = Pending::default();
            let mut model = BTreeMap::new();
            pending.put(Piece { address: 10 * PAGE, len: 30 * PAGE, offset: 500 * PAGE });
            (10..40).for_each(|page| { model.insert(page, 490 + page); });
            for (step, start, len, to) in steps {
                match step {
                    0 => if let Some(piece) = pending.take_within(start * PAGE, (start + len) * PAGE, 7 * PAGE) {
                        let first = model.range(start..start + len).next().map(|(page, _)| *page);
                        prop_assert_eq!(first, Some(piece.address / PAGE));
                        for index in 0..piece.len / PAGE {
                            let found = model.remove(&(piece.address / PAGE + index));
                            prop_assert_eq!(found, Some(piece.offset / PAGE + index));
                        }
                    } else {
                        prop_assert!(model.range(start..start + len).next().is_none());
                    },
                    1 => {
                        pending.take_range(start * PAGE, (start + len) * PAGE);
                        model.retain(|page, _| !(start..start + len).contains(page));
                    }
                    // The kernel reports what an mremap displaces before it.
                    _ if to + len <= start || start + len <= to => {
                        pending.take_range(to * PAGE, (to + len) * PAGE);
                        model.retain(|page, _| !(to..to + len).contains(page));
                        pending.remap(start * PAGE, to * PAGE, len * PAGE);
                        let moved: Vec<_> = model.range(start..start + len).map(|(p, o)| (*p, *o)).collect();
                        for (page, offset) in moved {
                            model.remove(&page);
                            model.insert(page - start + to, offset);
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(pending.pages(), model.len() as u64);
            }
        }
    }
}
