//! What a source says of its trees: records, one after another in blobs.

use super::content::{BLOCK, PAGE, WINDOW, is_zero};
use super::entry::{Kind, Meta};
use super::path::RelPath;
use crate::companion::{BlobSink, CompanionError, SinkGone};
use ferry_transport::wire::blob::MAX_BLOB;
use ferry_transport::wire::codec;
use serde::{Deserialize, Serialize};

/// One thing to be done at the destination. Those of a round come in the order of
/// [`plan`](super::plan).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    /// What follows is of this tree.
    Tree(u32),
    /// An object will be needed under another name: it is kept under this number until
    /// the round ends.
    Keep { number: u64, path: RelPath },
    /// A name goes, and all that is beneath it.
    Remove { path: RelPath },
    /// A new entry, a file being empty.
    Make { path: RelPath, kind: Kind },
    /// Another name of what is under this one.
    Link { path: RelPath, to: RelPath },
    /// Another name of what was kept.
    LinkKept { path: RelPath, number: u64 },
    /// Content of a file.
    Data { path: RelPath, offset: u64, content: Content },
    /// Zeroes in a file.
    Hole { path: RelPath, offset: u64, length: u64 },
    /// A file's length.
    Size { path: RelPath, size: u64 },
    /// An entry is complete: its owner, permissions, times and attributes, and for a
    /// file the digest of its content.
    Meta { path: RelPath, meta: Meta, content: Option<[u8; 32]> },
    /// The round is over: what was kept and not linked goes.
    RoundEnd,
    /// Nothing more follows for this tree, which is to be what this says.
    Final(Summary),
}

/// Whole blocks, pages of zeroes left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    length: u32,
    /// Which pages are left out: a bit each, the lowest first; empty when none is.
    #[serde(with = "ferry_transport::wire::byte_array")]
    zero: Vec<u8>,
    #[serde(with = "ferry_transport::wire::byte_array")]
    bytes: Vec<u8>,
}

impl Content {
    pub(super) fn of(bytes: &[u8]) -> Content {
        let pages = bytes.chunks(PAGE);
        let zero: Vec<bool> = pages.clone().map(is_zero).collect();
        let length = bytes.len() as u32;
        if !zero.contains(&true) {
            return Content { length, zero: Vec::new(), bytes: bytes.to_vec() };
        }
        let kept = pages.zip(&zero).filter(|(_, zero)| !**zero).flat_map(|(page, _)| page).copied();
        let bits = zero.chunks(8).map(|eight| {
            eight.iter().enumerate().fold(0, |byte, (bit, zero)| byte | (u8::from(*zero) << bit))
        });
        Content { length, zero: bits.collect(), bytes: kept.collect() }
    }

    /// The blocks as they were.
    pub(super) fn expand(self) -> Result<Vec<u8>, CompanionError> {
        let wrong = || CompanionError::new("the source says what cannot be: blocks that do not add up");
        let length = self.length as usize;
        if length > WINDOW as usize * BLOCK as usize {
            return Err(wrong());
        }
        if self.zero.is_empty() {
            return if self.bytes.len() == length { Ok(self.bytes) } else { Err(wrong()) };
        }
        let mut whole = vec![0; length];
        let mut kept = &self.bytes[..];
        for (index, page) in whole.chunks_mut(PAGE).enumerate() {
            let is_zero = self.zero.get(index / 8).ok_or_else(wrong)? >> (index % 8) & 1 == 1;
            if !is_zero {
                let (this, rest) = kept.split_at_checked(page.len()).ok_or_else(wrong)?;
                page.copy_from_slice(this);
                kept = rest;
            }
        }
        if kept.is_empty() { Ok(whole) } else { Err(wrong()) }
    }
}

/// A tree in a few numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// Names, the root's own not counted.
    pub(super) names: u64,
    /// Of all names with what stands behind them: the exclusive or of [`hash`]es.
    pub(super) digest: u128,
}

/// What the manifest has of one entry. That of a tree is the exclusive or of them all,
/// so that a changed entry costs one hash, not one of everything.
pub(super) fn hash(path: &RelPath, kind: &Kind, meta: &Meta, content: Option<&[u8; 32]>) -> u128 {
    let meta = Meta { atime: Default::default(), ..meta.clone() };
    let mut bytes = Vec::with_capacity(256);
    // Encoding into memory fails for no such type.
    let _ = codec::append_record(&(path, kind, meta, content), &mut bytes);
    let hash = blake3::hash(&bytes);
    let half: [u8; 16] = hash.as_bytes()[..16].try_into().unwrap_or_default();
    u128::from_le_bytes(half)
}

/// Gathers records into blobs.
pub(super) struct Writer<'a> {
    sink: &'a mut dyn BlobSink,
    buffer: Vec<u8>,
    pub(super) blobs: u64,
    pub(super) bytes: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(sink: &'a mut dyn BlobSink) -> Writer<'a> {
        Writer { sink, buffer: Vec::new(), blobs: 0, bytes: 0 }
    }

    /// Says a record; it goes out when a blob is full, or at [`flush`](Writer::flush).
    pub(super) fn say(&mut self, record: &Record) -> Result<(), CompanionError> {
        let before = self.buffer.len();
        codec::append_record(record, &mut self.buffer).map_err(CompanionError::new)?;
        if self.buffer.len() > MAX_BLOB {
            let rest = self.buffer.split_off(before);
            if rest.len() > MAX_BLOB {
                return Err(CompanionError::new("an entry has more attributes than can be sent"));
            }
            self.flush()?;
            self.buffer = rest;
        }
        Ok(())
    }

    /// Sends what is left.
    pub(super) fn flush(&mut self) -> Result<(), CompanionError> {
        if !self.buffer.is_empty() {
            let blob = std::mem::take(&mut self.buffer);
            self.blobs += 1;
            self.bytes += blob.len() as u64;
            self.sink.put(blob.into()).map_err(|SinkGone| CompanionError::new("the link has ended"))?;
        }
        Ok(())
    }
}

/// Takes a blob apart.
pub(super) fn records(mut blob: &[u8]) -> impl Iterator<Item = Result<Record, CompanionError>> {
    std::iter::from_fn(move || {
        if blob.is_empty() {
            return None;
        }
        match codec::take_record(blob) {
            Ok((record, used)) => {
                blob = &blob[used..];
                Some(Ok(record))
            }
            Err(cause) => {
                blob = &[];
                Some(Err(CompanionError::new(format!("the source said nothing that makes sense: {cause}"))))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_come_back_without_having_their_zeroes_sent(
            pages in prop::collection::vec(0..2u8, 0..40), rest in 0..PAGE
        ) {
            let mut blocks: Vec<u8> = pages.iter().flat_map(|with| vec![*with; PAGE]).collect();
            blocks.extend(vec![1; rest]);
            let content = Content::of(&blocks);
            let kept = pages.iter().filter(|with| **with > 0).count() * PAGE + rest;
            prop_assert_eq!(content.bytes.len(), kept);
            prop_assert_eq!(content.expand().unwrap(), blocks);
        }

        #[test]
        fn what_does_not_add_up_is_refused(
            length in 0..70_000u32, zero in prop::collection::vec(any::<u8>(), 0..4), bytes in 0..70_000usize
        ) {
            let content = Content { length, zero, bytes: vec![1; bytes] };
            if let Ok(blocks) = content.expand() {
                prop_assert_eq!(blocks.len(), length as usize);
            }
        }
    }
}
