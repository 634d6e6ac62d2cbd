//! A file's content in blocks: which of them changed since they were last read.
//!
//! Blocks have a fixed size: what runs appends, or writes in place, and neither moves
//! what follows; content-defined chunks would cost more and find the same. A block of
//! zeroes is a hole, whether the file system has one there or not. The hashes of what
//! the other side has cost 16 bytes a block of data: 256 KiB for a GiB.

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 64 << 10;
/// What is skipped within a block where it is all zeroes.
pub(super) const PAGE: usize = 4096;
/// Blocks that are read, and at most told, at a time.
pub(super) const WINDOW: u64 = 8;

/// The hash of a block that is not all zeroes. Only the workload itself could make two
/// of its blocks collide, and would only harm itself.
pub(super) type BlockHash = [u8; 16];

/// The content of a file as hashes. Blocks that are not listed are holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) size: u64,
    pub(super) hashes: BTreeMap<u64, BlockHash>,
}

/// What changed in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change<'a> {
    /// Bytes at an offset; the file grows where they are beyond its end.
    Data { offset: u64, bytes: &'a [u8] },
    /// Nothing but zeroes there, within a block that the file has; it may end in it.
    Hole { offset: u64, length: u64 },
    /// So many bytes long.
    Size(u64),
}

impl Blocks {
    /// A digest of the whole content.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.size.to_le_bytes());
        for (block, hash) in &self.hashes {
            hasher.update(&block.to_le_bytes());
            hasher.update(hash);
        }
        *hasher.finalize().as_bytes()
    }

    /// Takes a block over; whether it differs from what was there.
    pub(super) fn put(&mut self, block: u64, content: &[u8]) -> bool {
        match hash(content) {
            Some(hash) => self.hashes.insert(block, hash) != Some(hash),
            None => self.hashes.remove(&block).is_some(),
        }
    }

    /// Cuts or extends. What is left of a block that is cut is not known.
    pub(super) fn resize(&mut self, size: u64) {
        if size < self.size {
            self.hashes.split_off(&size.div_ceil(BLOCK));
            if !size.is_multiple_of(BLOCK)
                && let Some(last) = self.hashes.get_mut(&(size / BLOCK))
            {
                *last = BlockHash::default();
            }
        }
        self.size = size;
    }

    /// Compares a file of `size` bytes with what is known of it and tells each
    /// difference; afterwards it is known. Returns how many bytes were read.
    pub(super) fn update<E: From<io::Error>>(
        &mut self,
        file: impl AsFd,
        size: u64,
        mut tell: impl FnMut(Change<'_>) -> Result<(), E>,
    ) -> Result<u64, E> {
        let before = self.size;
        if size < before {
            self.resize(size);
            tell(Change::Size(size))?;
        }
        let mut buffer = Vec::new();
        let (mut at, mut read) = (0, 0);
        let mut end = before.min(size);
        while at < size {
            let data = next_data(&file, at)?.unwrap_or(size).min(size);
            let from = data / BLOCK * BLOCK;
            self.hole(at, if data == size { size } else { from }, &mut tell)?;
            if data == size {
                break;
            }
            let length = (WINDOW * BLOCK).min(size - from) as usize;
            buffer.resize(length, 0);
            let got = read_at(&file, &mut buffer, from)?;
            // It shrank meanwhile: it will be looked at again. What is missing is zero.
            buffer[got..].fill(0);
            read += got as u64;
            end = end.max(self.window(from, &buffer, &mut tell)?);
            at = from + length as u64;
        }
        if end < size {
            tell(Change::Size(size))?;
        }
        self.size = size;
        Ok(read)
    }

    /// There is no data from `start`, a block's, up to `end`, a block's or the file's.
    fn hole<E>(
        &mut self,
        start: u64,
        end: u64,
        tell: &mut impl FnMut(Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let filled: Vec<u64> =
            self.hashes.range(start / BLOCK..end.div_ceil(BLOCK)).map(|(block, _)| *block).collect();
        for block in filled {
            self.hashes.remove(&block);
            let offset = block * BLOCK;
            tell(Change::Hole { offset, length: BLOCK.min(end - offset) })?;
        }
        Ok(())
    }

    /// Tells what is new in a window; up to where the file reaches by that.
    fn window<E>(
        &mut self,
        from: u64,
        content: &[u8],
        tell: &mut impl FnMut(Change<'_>) -> Result<(), E>,
    ) -> Result<u64, E> {
        // Of changed blocks with data that follow each other: where they begin.
        let mut run: Option<usize> = None;
        let mut reached = 0;
        let mut flush = |run: &mut Option<usize>, to: usize, tell: &mut _| -> Result<(), E> {
            let tell: &mut dyn FnMut(Change<'_>) -> Result<(), E> = tell;
            if let Some(start) = run.take() {
                tell(Change::Data { offset: from + start as u64, bytes: &content[start..to] })?;
                reached = from + to as u64;
            }
            Ok(())
        };
        let mut at = 0;
        for block in content.chunks(BLOCK as usize) {
            let number = (from + at as u64) / BLOCK;
            let had = self.hashes.contains_key(&number);
            let changed = self.put(number, block);
            let has = self.hashes.contains_key(&number);
            match (changed, has) {
                (true, true) => {
                    run.get_or_insert(at);
                }
                (true, false) if had => {
                    flush(&mut run, at, tell)?;
                    tell(Change::Hole { offset: from + at as u64, length: block.len() as u64 })?;
                }
                _ => flush(&mut run, at, tell)?,
            }
            at += block.len();
        }
        flush(&mut run, at, tell)?;
        Ok(reached)
    }
}

/// The hash of a block; `None` for zeroes.
fn hash(content: &[u8]) -> Option<BlockHash> {
    if is_zero(content) {
        return None;
    }
    let hash = blake3::hash(content);
    hash.as_bytes()[..16].try_into().ok()
}

/// Whether all bytes are zero; sixteen at a time.
pub(super) fn is_zero(content: &[u8]) -> bool {
    let (words, rest) = content.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Where data begins at or after an offset; `None` when there is none.
fn next_data(file: impl AsFd, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        // A file system that does not know its holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}

fn read_at(file: impl AsFd, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match rustix::io::pread(&file, &mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// What somebody who is told the changes has.
    fn told(blocks: &mut Blocks, file: &File, copy: &mut Vec<u8>) -> u64 {
        let size = file.metadata().unwrap().len();
        let mut sent = 0;
        let mut tell = |change: Change<'_>| -> io::Result<()> {
            match change {
                Change::Data { offset, bytes } => {
                    let end = offset as usize + bytes.len();
                    if copy.len() < end {
                        copy.resize(end, 0);
                    }
                    copy[offset as usize..end].copy_from_slice(bytes);
                    sent += bytes.len() as u64;
                }
                Change::Hole { offset, length } => {
                    let end = copy.len().min((offset + length) as usize);
                    copy[offset as usize..end].fill(0);
                }
                Change::Size(size) => copy.resize(size as usize, 0),
            }
            Ok(())
        };
        blocks.update(file, size, &mut tell).unwrap();
        sent
    }

    #[derive(Clone, Debug)]
    enum Write {
        Bytes(u64, usize, u8),
        Cut(u64),
        Punch(u64, u64),
    }

    fn writes() -> impl Strategy<Value = Vec<Vec<Write>>> {
        let write = prop_oneof![
            (0..500_000u64, 1..200_000usize, any::<u8>()).prop_map(|(at, n, with)| Write::Bytes(at, n, with)),
            (0..700_000u64).prop_map(Write::Cut),
            (0..500_000u64, 1..300_000u64).prop_map(|(at, n)| Write::Punch(at, n)),
        ];
        prop::collection::vec(prop::collection::vec(write, 0..4), 1..5)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whoever_is_told_every_change_has_the_file(rounds in writes()) {
            let file = tempfile::tempfile().unwrap();
            let (mut blocks, mut copy) = (Blocks::default(), Vec::new());
            for round in rounds {
                for write in round {
                    match write {
                        Write::Bytes(at, n, with) => file.write_all_at(&vec![with; n], at).unwrap(),
                        Write::Cut(size) => file.set_len(size).unwrap(),
                        Write::Punch(at, n) => {
                            use rustix::fs::FallocateFlags as F;
                            let _ = rustix::fs::fallocate(&file, F::PUNCH_HOLE | F::KEEP_SIZE, at, n);
                        }
                    }
                }
                told(&mut blocks, &file, &mut copy);
                let mut content = vec![0; file.metadata().unwrap().len() as usize];
                file.read_exact_at(&mut content, 0).unwrap();
                prop_assert_eq!(&copy, &content);
                prop_assert_eq!(told(&mut blocks, &file, &mut copy), 0, "nothing is told twice");
            }
        }
    }

    #[test]
    fn only_changed_blocks_are_told() {
        let file = tempfile::tempfile().unwrap();
        let (mut blocks, mut copy) = (Blocks::default(), Vec::new());
        file.write_all_at(&vec![7; 10 << 20], 0).unwrap();
        assert_eq!(told(&mut blocks, &file, &mut copy), 10 << 20);
        file.write_all_at(b"x", 5_000_000).unwrap();
        assert_eq!(told(&mut blocks, &file, &mut copy), BLOCK);
        file.write_all_at(b"appended", 10 << 20).unwrap();
        assert_eq!(told(&mut blocks, &file, &mut copy), 8);
    }

    #[test]
    fn a_sparse_file_takes_what_its_data_takes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"far", 1 << 39).unwrap();
        let mut blocks = Blocks::default();
        let mut told = Vec::new();
        let read = blocks.update(&file, 1 << 40, |change| {
            told.push(match change {
                Change::Data { offset, bytes } => (offset, bytes.len() as u64),
                Change::Hole { .. } => (0, 0),
                Change::Size(size) => (size, 0),
            });
            io::Result::Ok(())
        });
        assert!(read.unwrap() <= WINDOW * BLOCK);
        assert_eq!((told, blocks.hashes.len()), (vec![(1 << 39, BLOCK), (1 << 40, 0)], 1));
    }
}
