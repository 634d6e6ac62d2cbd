//! What was last sent of pages whose writes nobody follows: a fingerprint of each.
//!
//! Such pages can only be read again, in every round and at the freeze; those that
//! read as what the sink took last need not be sent again. A page in the record is
//! there as the sink took it: it comes in after that, and is taken out when it is
//! sent without being compared.

use ferry_transport::page::{PAGE_SIZE, PageAddr, SpaceId};
use highway::{HighwayHash, HighwayHasher, Key};
use std::collections::HashMap;
use std::ops::Range;

const PAGE: u64 = PAGE_SIZE as u64;
/// Pages that are recorded together.
const BLOCK_PAGES: u64 = 64;
/// The most blocks: 64 MiB of fingerprints, for up to 16 GiB of such memory. Of what
/// goes beyond, nothing is known, and all of it is sent at the freeze.
const MAX_BLOCKS: usize = 1 << 16;

/// Stands for the content of a page.
///
/// 128 bits of HighwayHash under a key that is drawn anew for each source. Two pages
/// of different content have the same one with a chance of 2^-128, also for a
/// workload that chooses them: it would have to know the key, which never leaves
/// this process, and sees no fingerprint, only its own memory. A petabyte that is
/// compared a thousand times makes that 2^-80 in all; memory itself errs more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u128);

/// Nothing is known of the page.
const UNKNOWN: Fingerprint = Fingerprint(0);
/// The page is zero.
const ZERO: Fingerprint = Fingerprint(1);

type Block = [Fingerprint; BLOCK_PAGES as usize];

/// The record.
pub struct SentRecord {
    key: [u64; 4],
    blocks: HashMap<(SpaceId, u64), Box<Block>>,
    capacity: usize,
}

impl Default for SentRecord {
    fn default() -> SentRecord {
        SentRecord { key: rand::random(), blocks: HashMap::new(), capacity: MAX_BLOCKS }
    }
}

impl SentRecord {
    /// The fingerprint of a page's content; `None` is zeroes.
    pub fn fingerprint(&self, content: Option<&[u8]>) -> Fingerprint {
        let Some(content) = content else { return ZERO };
        let [low, high] = HighwayHasher::new(Key(self.key)).hash128(content);
        // Two values have another meaning.
        Fingerprint(((u128::from(high) << 64) | u128::from(low)).max(ZERO.0 + 1))
    }

    /// What was last sent of a page, if that is known.
    pub fn last(&self, space: SpaceId, page: PageAddr) -> Option<Fingerprint> {
        let (block, slot) = place(page);
        let last = self.blocks.get(&(space, block))?[slot];
        (last != UNKNOWN).then_some(last)
    }

    /// The parts of a range for which there is room, or something is noted already.
    /// For others that are noted before these, room may still run out.
    pub fn room_in(&self, space: SpaceId, range: &Range<u64>) -> Vec<Range<u64>> {
        if self.blocks.len() < self.capacity {
            return vec![range.clone()];
        }
        let mut parts: Vec<Range<u64>> = Vec::new();
        for (number, _, part) in blocks_of(range) {
            match (parts.last_mut(), self.blocks.contains_key(&(space, number))) {
                (_, false) => {}
                (Some(last), true) if last.end == part.start => last.end = part.end,
                (_, true) => parts.push(part),
            }
        }
        parts
    }

    /// Notes what was sent, if there is room.
    pub fn note(&mut self, space: SpaceId, page: PageAddr, fingerprint: Fingerprint) {
        let (number, slot) = place(page);
        if self.blocks.len() < self.capacity || self.blocks.contains_key(&(space, number)) {
            let fresh = || Box::new([UNKNOWN; BLOCK_PAGES as usize]);
            self.blocks.entry((space, number)).or_insert_with(fresh)[slot] = fingerprint;
        }
    }

    /// Forgets addresses: they were sent without being looked at.
    pub fn forget(&mut self, space: SpaceId, range: Range<u64>) {
        if self.blocks.is_empty() {
            return;
        }
        for (number, slot, part) in blocks_of(&range) {
            if let Some(block) = self.blocks.get_mut(&(space, number)) {
                let pages = ((part.end - part.start) / PAGE) as usize;
                block[slot..slot + pages].fill(UNKNOWN);
            }
        }
    }

    /// Forgets a space that is gone.
    pub fn forget_space(&mut self, space: SpaceId) {
        self.blocks.retain(|(of, _), _| *of != space);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.blocks = HashMap::new();
    }
}

/// A range in parts that each lie in one block: its number, the first slot, the part.
fn blocks_of(range: &Range<u64>) -> impl Iterator<Item = (u64, usize, Range<u64>)> + use<> {
    let Range { start, end } = *range;
    let mut at = start;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (number, slot) = place(PageAddr::containing(at));
        let part = at..end.min((number + 1) * BLOCK_PAGES * PAGE);
        at = part.end;
        Some((number, slot, part))
    })
}

fn place(page: PageAddr) -> (u64, usize) {
    (page.index() / BLOCK_PAGES, (page.index() % BLOCK_PAGES) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPACE: SpaceId = SpaceId(3);

    fn page(index: u64) -> PageAddr {
        PageAddr::from_index(index)
    }

    #[test]
    fn content_is_told_apart_and_keys_differ() {
        let record = SentRecord::default();
        let (mut one, two) = (vec![0u8; PAGE_SIZE], vec![7u8; PAGE_SIZE]);
        one[PAGE_SIZE - 1] = 1;
        let fingerprints = [Some(&one[..]), Some(&two[..]), None].map(|content| record.fingerprint(content));
        assert!(fingerprints[0] != fingerprints[1] && fingerprints[1] != fingerprints[2]);
        assert_eq!(record.fingerprint(Some(&two)), fingerprints[1]);
        assert_ne!(SentRecord::default().fingerprint(Some(&two)), fingerprints[1]);
    }

    #[test]
    fn it_is_bounded_and_what_does_not_fit_is_unknown() {
        let mut record = SentRecord { capacity: 2, ..SentRecord::default() };
        for index in [0, 64, 128, 1] {
            record.note(SPACE, page(index), ZERO);
        }
        assert_eq!((record.last(SPACE, page(1)), record.last(SPACE, page(64))), (Some(ZERO), Some(ZERO)));
        assert_eq!((record.last(SPACE, page(128)), record.last(SpaceId(4), page(1))), (None, None));
        let whole = 10 * PAGE..200 * PAGE;
        assert_eq!(record.room_in(SPACE, &whole), vec![10 * PAGE..128 * PAGE]);
        assert!(record.room_in(SpaceId(4), &whole).is_empty());
        record.forget_space(SPACE);
        assert_eq!(record.room_in(SPACE, &whole), vec![whole]);
        assert_eq!(record.last(SPACE, page(1)), None);
    }

    proptest! {
        /// As a map of pages would.
        #[test]
        fn it_remembers_and_forgets(steps in prop::collection::vec((0u64..300, 0u64..200, 0u64..4), 0..60)) {
            let mut record = SentRecord::default();
            let mut model = std::collections::BTreeMap::new();
            for (start, count, what) in steps {
                if what == 0 {
                    record.forget(SPACE, start * PAGE..(start + count) * PAGE);
                    model.retain(|index, _| !(start..start + count).contains(index));
                } else {
                    record.note(SPACE, page(start), Fingerprint(u128::from(what)));
                    model.insert(start, Fingerprint(u128::from(what)));
                }
            }
            for index in 0..600 {
                prop_assert_eq!(record.last(SPACE, page(index)), model.get(&index).copied());
            }
        }
    }
}
