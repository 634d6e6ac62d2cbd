//! Addresses whose pages were protected but did not reach the sink.

use std::ops::Range;

/// More ranges than this are made fewer by owing what lies between them too.
const MAX_RANGES: usize = 1 << 16;

/// A set of addresses, bounded in memory. It may grow by addresses that nobody
/// put in, never lose any: owing too much costs only time.
#[derive(Clone, Debug, Default)]
pub struct Owed {
    ranges: Vec<Range<u64>>,
}

impl Owed {
    /// Adds a range.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
        if self.ranges.len() > MAX_RANGES {
            self.normalize();
            if self.ranges.len() > MAX_RANGES / 2 {
                self.ranges = self
                    .ranges
                    .chunks(4)
                    .filter_map(|four| Some(four.first()?.start..four.last()?.end))
                    .collect();
            }
        }
    }

    /// Makes the ranges ascending and disjoint.
    pub fn normalize(&mut self) {
        self.ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(self.ranges.len());
        for range in self.ranges.drain(..) {
            match merged.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        self.ranges = merged;
    }

    /// Splits `range` at the borders of what is owed, ascending. To be called on
    /// a normalized set.
    pub fn split(&self, range: &Range<u64>) -> Vec<(Range<u64>, Standing)> {
        let mut parts = Vec::new();
        if range.is_empty() {
            return parts;
        }
        let mut at = range.start;
        let first = self.ranges.partition_point(|owed| owed.end <= range.start);
        for owed in self.ranges[first..].iter().take_while(|owed| owed.start < range.end) {
            let owed = owed.start.max(at)..owed.end.min(range.end);
            if at < owed.start {
                parts.push((at..owed.start, Standing::Settled));
            }
            at = owed.end;
            parts.push((owed, Standing::Owed));
        }
        if at < range.end {
            parts.push((at..range.end, Standing::Settled));
        }
        parts
    }
}

/// Whether a page table can be believed when it says that a page was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It can.
    Settled,
    /// The page did not get through.
    Owed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_is_lost(ranges in prop::collection::vec((0u64..200, 0u64..20), 0..40), asked in (0u64..100, 0u64..150)) {
            let mut owed = Owed::default();
            let mut model = std::collections::BTreeSet::new();
            for (start, length) in ranges {
                owed.add(start..start + length);
                model.extend(start..start + length);
            }
            owed.normalize();
            let asked = asked.0..asked.0 + asked.1;
            let parts = owed.split(&asked);
            let mut at = asked.start;
            for (part, standing) in parts {
                prop_assert_eq!(part.start, at);
                prop_assert!(part.end > part.start);
                for address in part.clone() {
                    prop_assert_eq!(standing == Standing::Owed, model.contains(&address));
                }
                at = part.end;
            }
            prop_assert_eq!(at, asked.end);
        }
    }

    #[test]
    fn memory_is_bounded_and_nothing_lost() {
        let mut owed = Owed::default();
        for page in 0..500_000u64 {
            owed.add(page * 2..page * 2 + 1);
        }
        assert!(owed.ranges.len() <= MAX_RANGES);
        owed.normalize();
        for page in (0..500_000u64).step_by(997) {
            assert_eq!(owed.split(&(page * 2..page * 2 + 1)), vec![(page * 2..page * 2 + 1, Standing::Owed)]);
        }
    }
}
