//! Blobs: what a companion's stream consists of, until the stream ends. What is in
//! them is the companion's own; here they are bytes in order.
//!
//! ```text
//!  offset  bytes  all integers little-endian
//!  0       4      magic "FBL1"
//!  4       1      encoding of the payload: 0 raw, 1 lz4 block, 2 zstd frame
//!  5       3      zero
//!  8       4      length before compression, 1 to [`MAX_BLOB`]
//!  12      4      payload length; raw: the same, else less
//!  16      4      CRC32 of the content before compression (end to end)
//!  20      4      CRC32 of bytes 0..20
//!  24      …      payload
//! ```

use super::compress::{self, Encoding};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of the fixed part.
pub const HEADER_LEN: usize = 24;
/// The most content of one blob.
pub const MAX_BLOB: usize = 1 << 20;

const MAGIC: u32 = u32::from_le_bytes(*b"FBL1");

/// Why bytes are not a blob.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// The stream does not hold blobs, or is out of step.
    #[error("not a blob")]
    Magic,
    /// A field that no blob has.
    #[error("invalid {0} of a blob")]
    Field(&'static str),
    /// The header is damaged.
    #[error("checksum mismatch in a blob's header")]
    HeaderChecksum,
    /// The content is damaged.
    #[error("checksum mismatch in a blob's content")]
    ContentChecksum,
    /// The payload does not decompress to what it should.
    #[error("a blob could not be decompressed: {0}")]
    Decompress(String),
}

/// Header and payload of a blob, the content compressed as asked; what does not
/// shrink travels raw. Fails on content that is empty or too long: a bug of its maker.
pub fn encode(content: &Bytes, encoding: Encoding) -> Result<[Bytes; 2], BlobError> {
    if content.is_empty() || content.len() > MAX_BLOB {
        return Err(BlobError::Field("length"));
    }
    let (encoding, payload) = match compress::compress(encoding, content) {
        Some(compressed) => (encoding, compressed),
        None => (Encoding::Raw, content.clone()),
    };
    let mut head = BytesMut::with_capacity(HEADER_LEN);
    head.put_u32_le(MAGIC);
    head.put_u8(encoding as u8);
    head.put_bytes(0, 3);
    head.put_u32_le(content.len() as u32);
    head.put_u32_le(payload.len() as u32);
    head.put_u32_le(crc32fast::hash(content));
    head.put_u32_le(crc32fast::hash(&head));
    Ok([head.freeze(), payload])
}

/// A blob's fixed part, every limit checked: it says how much is to be read.
#[derive(Clone, Debug)]
pub struct Header {
    encoding: Encoding,
    length: usize,
    payload: usize,
    crc: u32,
}

impl Header {
    /// Reads the fixed part.
    pub fn parse(bytes: [u8; HEADER_LEN]) -> Result<Header, BlobError> {
        let mut at = &bytes[..];
        if at.get_u32_le() != MAGIC {
            return Err(BlobError::Magic);
        }
        let encoding = Encoding::from_byte(at.get_u8()).ok_or(BlobError::Field("encoding"))?;
        let reserved = at.get_uint_le(3);
        let length = at.get_u32_le() as usize;
        let payload = at.get_u32_le() as usize;
        let crc = at.get_u32_le();
        if at.get_u32_le() != crc32fast::hash(&bytes[..HEADER_LEN - 4]) {
            return Err(BlobError::HeaderChecksum);
        }
        if reserved != 0 {
            return Err(BlobError::Field("reserved bytes"));
        }
        if length == 0 || length > MAX_BLOB {
            return Err(BlobError::Field("length"));
        }
        let raw = encoding == Encoding::Raw;
        if payload > length || raw != (payload == length) {
            return Err(BlobError::Field("payload length"));
        }
        Ok(Header { encoding, length, payload, crc })
    }

    /// Bytes of the payload, which follows.
    pub fn payload_len(&self) -> usize {
        self.payload
    }

    /// The content, decompressed and checked.
    pub fn content(&self, payload: Bytes) -> Result<Bytes, BlobError> {
        if payload.len() != self.payload {
            return Err(BlobError::Field("payload length"));
        }
        let content =
            compress::decompress(self.encoding, payload, self.length).map_err(BlobError::Decompress)?;
        if crc32fast::hash(&content) != self.crc {
            return Err(BlobError::ContentChecksum);
        }
        Ok(content)
    }

    /// Whether making the content takes so long that it should not be done between
    /// two network events.
    pub(crate) fn is_compressed(&self) -> bool {
        self.encoding != Encoding::Raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(content: Vec<u8>, encoding: Encoding) -> Bytes {
        let [head, payload] = encode(&content.into(), encoding).unwrap();
        let header = Header::parse(head[..].try_into().unwrap()).unwrap();
        assert_eq!(header.payload_len(), payload.len());
        header.content(payload).unwrap()
    }

    #[test]
    fn content_comes_back_in_every_encoding() {
        let plain: Vec<u8> = (0..100_000u32).map(|n| (n / 300) as u8).collect();
        for encoding in [Encoding::Raw, Encoding::Lz4, Encoding::Zstd] {
            assert_eq!(there_and_back(plain.clone(), encoding), plain);
            assert_eq!(there_and_back(vec![7], encoding), vec![7]);
        }
    }

    #[test]
    fn damage_is_seen_wherever_it_is() {
        let [head, payload] = encode(&Bytes::from_static(b"some content"), Encoding::Raw).unwrap();
        let head: [u8; HEADER_LEN] = head[..].try_into().unwrap();
        for at in 0..HEADER_LEN {
            let mut damaged = head;
            damaged[at] ^= 0x10;
            assert!(Header::parse(damaged).is_err(), "byte {at}");
        }
        let mut damaged = payload.to_vec();
        damaged[3] ^= 1;
        let header = Header::parse(head).unwrap();
        assert_eq!(header.content(damaged.into()), Err(BlobError::ContentChecksum));
    }

    #[test]
    fn what_breaks_the_limits_is_refused_on_both_sides() {
        assert!(encode(&Bytes::new(), Encoding::Raw).is_err());
        assert!(encode(&vec![0; MAX_BLOB + 1].into(), Encoding::Raw).is_err());
        let mut head = BytesMut::new();
        head.put_u32_le(MAGIC);
        head.put_u32_le(0);
        head.put_u32_le(u32::MAX);
        head.put_u32_le(u32::MAX);
        head.put_u32_le(0);
        head.put_u32_le(crc32fast::hash(&head));
        assert_eq!(Header::parse(head[..].try_into().unwrap()).unwrap_err(), BlobError::Field("length"));
    }
}
