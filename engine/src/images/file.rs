//! The frame of an image file.
//!
//! ```text
//! +------------------+----------------+  +----------+-----------+
//! | 0x54564319 (u32) | kind (u32)     |  | len (u32)| message   |  … to the end
//! +------------------+----------------+  +----------+-----------+
//! ```
//! `inventory.img` lacks the first word. Integers are little-endian. Nothing here trusts a length.

use prost::Message;

/// The word that every image file starts with.
const COMMON_MAGIC: u32 = 0x5456_4319;

/// The most bytes of an image file that is read whole.
pub const MAX_IMAGE: u64 = 512 << 20;

/// The most bytes of one message in it.
const MAX_MESSAGE: usize = 128 << 20;

/// The most messages of a file that are decoded: as many as there can be tasks.
pub const MAX_MESSAGES: usize = 1 << 22;

/// What an image file is about: its second word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// `inventory.img`
    Inventory = 0x5831_3116,
    /// `pstree.img`
    Pstree = 0x5027_3030,
    /// `core-<tid>.img`
    Core = 0x5505_3847,
    /// `mm-<pid>.img`
    Mm = 0x5749_2820,
    /// `pagemap-<pid>.img`
    Pagemap = 0x5608_4025,
}

/// Why an image file could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It is not an image file, or one of another kind.
    #[error("not a CRIU image of kind {0:?}")]
    Magic(Kind),
    /// It ends inside a message.
    #[error("truncated at byte {0}")]
    Truncated(usize),
    /// A message says that it is larger than any real one.
    #[error("a message of {0} bytes")]
    TooLarge(usize),
    /// It has more messages than any real one.
    #[error("more than {MAX_MESSAGES} messages")]
    TooMany,
    /// A message cannot be decoded.
    #[error("message {index}: {cause}")]
    Message {
        /// Which, from 0.
        index: usize,
        /// Why.
        cause: prost::DecodeError,
    },
    /// A message that must be there is not.
    #[error("no message")]
    Empty,
}

/// The messages of an image file, undecoded.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    bytes: &'a [u8],
    at: usize,
    index: usize,
}

impl<'a> Messages<'a> {
    /// Checks the file's head.
    pub fn of(bytes: &'a [u8], kind: Kind) -> Result<Messages<'a>, FormatError> {
        let head = magic(kind);
        if bytes.starts_with(&head) {
            Ok(Messages { bytes, at: head.len(), index: 0 })
        } else {
            Err(FormatError::Magic(kind))
        }
    }

    /// Decodes the next message; `None` at the end of the file.
    pub fn next_message<M: Message + Default>(&mut self) -> Result<Option<M>, FormatError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let rest = &self.bytes[self.at..];
        let Some((len, rest)) = rest.split_first_chunk::<4>() else {
            return Err(FormatError::Truncated(self.bytes.len()));
        };
        let len = u32::from_le_bytes(*len) as usize;
        if len > MAX_MESSAGE {
            return Err(FormatError::TooLarge(len));
        }
        let message = rest.get(..len).ok_or(FormatError::Truncated(self.bytes.len()))?;
        let decoded =
            M::decode(message).map_err(|cause| FormatError::Message { index: self.index, cause })?;
        self.at += 4 + len;
        self.index += 1;
        Ok(Some(decoded))
    }

    /// All messages that are left.
    pub fn rest<M: Message + Default>(mut self) -> Result<Vec<M>, FormatError> {
        let mut messages = Vec::new();
        while let Some(message) = self.next_message()? {
            if messages.len() == MAX_MESSAGES {
                return Err(FormatError::TooMany);
            }
            messages.push(message);
        }
        Ok(messages)
    }
}

/// The one message of a file that holds one.
pub fn single<M: Message + Default>(bytes: &[u8], kind: Kind) -> Result<M, FormatError> {
    Messages::of(bytes, kind)?.next_message()?.ok_or(FormatError::Empty)
}

/// A file of `kind`, to which messages are appended.
pub fn begin(kind: Kind) -> Vec<u8> {
    magic(kind)
}

/// Appends a message to a file.
pub fn append(file: &mut Vec<u8>, message: &impl Message) {
    file.extend((message.encoded_len() as u32).to_le_bytes());
    message.encode(file).expect("a vector grows as needed");
}

/// The inventory, which says what the others look like, has no common word.
fn magic(kind: Kind) -> Vec<u8> {
    let common = (kind != Kind::Inventory).then_some(COMMON_MAGIC);
    common.into_iter().chain([kind as u32]).flat_map(u32::to_le_bytes).collect()
}
