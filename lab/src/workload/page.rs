//! What one page holds.
//!
//! ```text
//! word 0   index of the page in its process
//! word 1   version, counted up at each write; 0 = never written
//! word 2   seed of the process
//! word 3.. mix(seed, index, version, position): incompressible, or the same
//!          word throughout: compressible
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

/// Words per page.
pub const WORDS: usize = 512;
/// Bytes per page.
pub const PAGE_BYTES: u64 = 4096;
const HEADER: usize = 3;

/// How well the content compresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Content {
    /// Not at all.
    #[default]
    Incompressible,
    /// Very well: one word repeated through the page.
    Compressible,
}

/// What must be in a page.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    pub index: u64,
    pub version: u64,
    pub seed: u64,
    pub content: Content,
}

impl Expected {
    /// The content words from the header on.
    fn body(self) -> impl Iterator<Item = u64> {
        let mut state = mix(self.seed ^ mix(self.index ^ mix(self.version)));
        (HEADER..WORDS).map(move |_| {
            if self.content == Content::Incompressible {
                // xorshift64 (Marsaglia, "Xorshift RNGs", 2003): full period,
                // and quick enough that filling is bound by memory.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
            }
            state
        })
    }

    /// Fills the page.
    pub fn write(self, page: &[AtomicU64]) {
        page[0].store(self.index, Ordering::Relaxed);
        page[1].store(self.version, Ordering::Relaxed);
        page[2].store(self.seed, Ordering::Relaxed);
        for (word, value) in page[HEADER..].iter().zip(self.body()) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// The first word that is not as expected.
    pub fn first_difference(self, page: &[AtomicU64]) -> Option<Difference> {
        let header = [self.index, self.version, self.seed];
        let mut expected = header.into_iter().chain(self.body());
        page.iter().enumerate().find_map(|(position, word)| {
            let (found, wanted) = (word.load(Ordering::Relaxed), expected.next()?);
            (found != wanted).then_some(Difference { position, found, wanted })
        })
    }
}

/// A word that is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    pub position: usize,
    pub found: u64,
    pub wanted: u64,
}

/// Spreads every input bit over the word (the finalizer of splitmix64; Steele,
/// Lea and Flood, OOPSLA 2014). Never returns 0 for the sake of xorshift.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_word_and_every_stale_version_is_noticed() {
        let page: Vec<AtomicU64> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        for content in [Content::Incompressible, Content::Compressible] {
            let expected = Expected { index: 7, version: 3, seed: 99, content };
            expected.write(&page);
            assert_eq!(expected.first_difference(&page), None);
            for (position, word) in page.iter().enumerate() {
                let kept = word.fetch_xor(1 << (position % 64), Ordering::Relaxed);
                assert_eq!(expected.first_difference(&page).map(|d| d.position), Some(position));
                word.store(kept, Ordering::Relaxed);
            }
            for stale in [
                Expected { version: 4, ..expected },
                Expected { index: 8, ..expected },
                Expected { seed: 1, ..expected },
            ] {
                assert!(stale.first_difference(&page).is_some());
            }
        }
    }
}
