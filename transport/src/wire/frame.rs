//! Page frames: what a page stream consists of, one [`PageChunk`] each, until the
//! stream ends.
//!
//! ```text
//!  offset  bytes  all integers little-endian
//!  0       4      magic "FPG1"
//!  4       1      version, 1
//!  5       1      encoding of the payload: 0 raw, 1 lz4 block, 2 zstd frame
//!  6       2      zero
//!  8       4      address space
//!  12      4      round
//!  16      4      number of runs, at most 4096
//!  20      4      number of data pages, at most 256
//!  24      4      payload length; raw: data pages × 4096, else less than that
//!  28      4      CRC32 of the pages before compression (end to end)
//!  32      4      CRC32 of bytes 0..32 and the runs
//!  36      12×n   runs, ascending and disjoint:
//!                 8  page number in bits 0..52; bit 63 set: the pages are zero
//!                 4  number of pages, at least 1
//!  …       …      payload: the content of the data runs, one after another
//! ```
//!
//! A zero run takes 12 bytes however many pages it covers; whoever takes a chunk
//! must not do work in proportion to a zero run's length. The limits make a frame
//! at most [`MAX_FRAME_LEN`] bytes, and are checked before anything is allocated.

use super::compress::{self, Encoding};
use crate::page::{MAX_CHUNK_PAGES, PAGE_SIZE, PageAddr, PageChunk, Round, Run, RunKind, SpaceId};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of the fixed part of a frame.
pub const HEADER_LEN: usize = 36;
/// Bytes of one run.
pub const RUN_LEN: usize = 12;
/// The most runs, of both kinds together, in one chunk.
pub const MAX_CHUNK_RUNS: usize = 4096;
/// The longest frame in bytes.
pub const MAX_FRAME_LEN: usize = HEADER_LEN + MAX_CHUNK_RUNS * RUN_LEN + MAX_CHUNK_PAGES * PAGE_SIZE;

const MAGIC: u32 = u32::from_le_bytes(*b"FPG1");
const VERSION: u8 = 1;
const ZERO_RUN: u64 = 1 << 63;
/// Page numbers of a 64-bit address space.
const PAGE_NUMBERS: u64 = 1 << 52;

/// Why bytes are not a page frame, or a chunk cannot become one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream does not hold frames, or is out of step.
    #[error("not a page frame")]
    Magic,
    /// A frame of another protocol version.
    #[error("page frame version {0} is not supported")]
    Version(u8),
    /// A field that no frame of this version has.
    #[error("invalid {0} in a page frame")]
    Field(&'static str),
    /// More than a frame may have.
    #[error("a page frame with {count} {what}, at most {limit} are allowed")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many it has.
        count: u64,
        /// How many it may have.
        limit: u64,
    },
    /// Runs that are empty, overlap, go backwards or leave the address space.
    #[error("the runs of a page frame are not ascending and disjoint")]
    RunOrder,
    /// The counts, the runs and the payload tell different stories.
    #[error("the runs of a page frame do not match its {0}")]
    Mismatch(&'static str),
    /// Header or runs are damaged.
    #[error("checksum mismatch in a page frame's header")]
    HeaderChecksum,
    /// The content is damaged.
    #[error("checksum mismatch in the content of pages")]
    ContentChecksum,
    /// The payload does not decompress to what it should.
    #[error("pages could not be decompressed: {0}")]
    Decompress(String),
    /// The stream ended inside a frame.
    #[error("the page stream ended inside a frame")]
    Truncated,
}

/// A chunk as it goes out: two buffers, so that raw content is never copied.
#[derive(Clone, Debug)]
pub struct EncodedFrame {
    /// Header and runs.
    pub head: Bytes,
    /// The payload; the chunk's own buffer where the encoding is raw.
    pub payload: Bytes,
}

impl EncodedFrame {
    /// Bytes of the whole frame.
    pub fn len(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// Never true: a frame has a header.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Encodes a chunk, the payload compressed as asked; content that does not shrink
/// travels raw.
///
/// Fails on a chunk that breaks the rules of the frame: that is a bug of its maker.
pub fn encode(chunk: &PageChunk, encoding: Encoding) -> Result<EncodedFrame, FrameError> {
    check_runs(&chunk.runs)?;
    let data_pages = chunk.data_pages().0;
    if data_pages.saturating_mul(PAGE_SIZE as u64) != chunk.data.len() as u64 {
        return Err(FrameError::Mismatch("content"));
    }
    let (encoding, payload) = match compress::compress(encoding, &chunk.data) {
        Some(compressed) => (encoding, compressed),
        None => (Encoding::Raw, chunk.data.clone()),
    };
    let mut head = BytesMut::with_capacity(HEADER_LEN + chunk.runs.len() * RUN_LEN);
    head.put_u32_le(MAGIC);
    head.put_u8(VERSION);
    head.put_u8(encoding as u8);
    head.put_u16_le(0);
    head.put_u32_le(chunk.space.0);
    head.put_u32_le(chunk.round.0);
    head.put_u32_le(chunk.runs.len() as u32);
    head.put_u32_le(data_pages as u32);
    head.put_u32_le(payload.len() as u32);
    head.put_u32_le(crc32fast::hash(&chunk.data));
    head.put_u32_le(0);
    for run in &chunk.runs {
        let kind = if run.kind == RunKind::Zero { ZERO_RUN } else { 0 };
        head.put_u64_le(run.start.index() | kind);
        head.put_u32_le(run.count);
    }
    let crc = header_checksum(&head[..HEADER_LEN], &head[HEADER_LEN..]);
    head[32..36].copy_from_slice(&crc.to_le_bytes());
    Ok(EncodedFrame { head: head.freeze(), payload })
}

/// A frame's fixed part, every limit checked: it says how much is to be read.
#[derive(Clone, Debug)]
pub struct Header {
    bytes: [u8; HEADER_LEN],
    encoding: Encoding,
    space: SpaceId,
    round: Round,
    runs: usize,
    data_pages: usize,
    payload_len: usize,
    content_crc: u32,
    header_crc: u32,
}

impl Header {
    /// Reads the fixed part of a frame.
    pub fn parse(bytes: [u8; HEADER_LEN]) -> Result<Header, FrameError> {
        let mut at = &bytes[..];
        if at.get_u32_le() != MAGIC {
            return Err(FrameError::Magic);
        }
        let version = at.get_u8();
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let encoding = Encoding::from_byte(at.get_u8()).ok_or(FrameError::Field("encoding"))?;
        if at.get_u16_le() != 0 {
            return Err(FrameError::Field("reserved bytes"));
        }
        let space = SpaceId(at.get_u32_le());
        let round = Round(at.get_u32_le());
        let runs = limited("runs", at.get_u32_le(), MAX_CHUNK_RUNS)?;
        let data_pages = limited("data pages", at.get_u32_le(), MAX_CHUNK_PAGES)?;
        let payload_len = limited("payload bytes", at.get_u32_le(), data_pages * PAGE_SIZE)?;
        let raw = payload_len == data_pages * PAGE_SIZE;
        if raw != (encoding == Encoding::Raw) {
            return Err(FrameError::Field("payload length"));
        }
        let content_crc = at.get_u32_le();
        let header_crc = at.get_u32_le();
        Ok(Header { bytes, encoding, space, round, runs, data_pages, payload_len, content_crc, header_crc })
    }

    /// Bytes of the runs, which follow.
    pub fn runs_len(&self) -> usize {
        self.runs * RUN_LEN
    }

    /// Bytes of the payload, which follows the runs.
    pub fn payload_len(&self) -> usize {
        self.payload_len
    }

    /// Reads the runs and checks them and the header against their checksum.
    pub fn runs(&self, bytes: &[u8]) -> Result<Vec<Run>, FrameError> {
        if bytes.len() != self.runs_len() {
            return Err(FrameError::Mismatch("run count"));
        }
        if header_checksum(&self.bytes, bytes) != self.header_crc {
            return Err(FrameError::HeaderChecksum);
        }
        let mut runs = Vec::with_capacity(self.runs);
        for mut at in bytes.chunks_exact(RUN_LEN) {
            let word = at.get_u64_le();
            let count = at.get_u32_le();
            let kind = if word & ZERO_RUN != 0 { RunKind::Zero } else { RunKind::Data };
            let index = word & !ZERO_RUN;
            if index >= PAGE_NUMBERS {
                return Err(FrameError::RunOrder);
            }
            runs.push(Run { start: PageAddr::from_index(index), count, kind });
        }
        let data_pages = check_runs(&runs)?;
        if data_pages != self.data_pages as u64 {
            return Err(FrameError::Mismatch("page count"));
        }
        Ok(runs)
    }

    /// The chunk, from what [`runs`](Header::runs) gave and the payload, its content
    /// decompressed and checked.
    pub fn chunk(&self, runs: Vec<Run>, payload: Bytes) -> Result<PageChunk, FrameError> {
        if payload.len() != self.payload_len {
            return Err(FrameError::Mismatch("payload length"));
        }
        let data = compress::decompress(self.encoding, payload, self.data_pages * PAGE_SIZE)
            .map_err(FrameError::Decompress)?;
        if crc32fast::hash(&data) != self.content_crc {
            return Err(FrameError::ContentChecksum);
        }
        Ok(PageChunk { space: self.space, round: self.round, runs, data })
    }

    /// Whether making the chunk takes so long that it should not be done between
    /// two network events.
    pub(crate) fn is_compressed(&self) -> bool {
        self.encoding != Encoding::Raw
    }
}

/// Decodes one frame from the front of `bytes`: the chunk and the frame's length.
pub fn decode(bytes: &Bytes) -> Result<(PageChunk, usize), FrameError> {
    let header = bytes.get(..HEADER_LEN).ok_or(FrameError::Truncated)?;
    let header = Header::parse(header.try_into().expect("the length was taken"))?;
    let payload_at = HEADER_LEN + header.runs_len();
    let end = payload_at + header.payload_len();
    let runs = header.runs(bytes.get(HEADER_LEN..payload_at).ok_or(FrameError::Truncated)?)?;
    if bytes.len() < end {
        return Err(FrameError::Truncated);
    }
    Ok((header.chunk(runs, bytes.slice(payload_at..end))?, end))
}

/// Ascending, disjoint, inside the address space and the limits; the data pages.
fn check_runs(runs: &[Run]) -> Result<u64, FrameError> {
    if runs.len() > MAX_CHUNK_RUNS {
        return Err(over("runs", runs.len() as u64, MAX_CHUNK_RUNS));
    }
    let mut next = 0;
    let mut data_pages = 0;
    for run in runs {
        let end = run.start.index() + u64::from(run.count);
        let aligned = run.start.address() % PAGE_SIZE as u64 == 0;
        if run.count == 0 || run.start.index() < next || end > PAGE_NUMBERS || !aligned {
            return Err(FrameError::RunOrder);
        }
        next = end;
        if run.kind == RunKind::Data {
            data_pages += u64::from(run.count);
        }
    }
    if data_pages > MAX_CHUNK_PAGES as u64 {
        return Err(over("data pages", data_pages, MAX_CHUNK_PAGES));
    }
    Ok(data_pages)
}

fn limited(what: &'static str, count: u32, limit: usize) -> Result<usize, FrameError> {
    if count as usize > limit { Err(over(what, u64::from(count), limit)) } else { Ok(count as usize) }
}

fn over(what: &'static str, count: u64, limit: usize) -> FrameError {
    FrameError::Limit { what, count, limit: limit as u64 }
}

fn header_checksum(header: &[u8], runs: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..HEADER_LEN - 4]);
    crc.update(runs);
    crc.finalize()
}

#[cfg(test)]
mod tests;
