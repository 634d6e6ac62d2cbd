//! Control messages to bytes and back: the one place where bincode is used, so
//! that a change of serializer is a change of this file.
//!
//! ```text
//!  0        4      5        9
//!  +--------+------+--------+----------------------+
//!  | length | kind | CRC32  | bincode of [Message] |      integers little-endian
//!  +--------+------+--------+----------------------+
//!  length  bytes after the prefix, at most the kind's limit
//!  kind    which message: says the limit before anything else is read
//!  CRC32   of kind and content
//! ```
//!
//! A prefix that breaks the kind's [limit](MessageKind::limit) is an error
//! before a byte of content is awaited or a buffer for it is made. Inside the
//! content bincode's own limit is the same number: no string or byte array can
//! claim more, and the elements of other lists are read one by one, so that
//! memory follows the bytes that really came. By the sizes of the types the worst
//! are empty strings (1 byte becomes 24) and smallest ranges (2 become 16), twice
//! that where a growing list has spare room.

use super::blob::MAX_BLOB;
use super::control::{Accepted, MAX_IMAGE_PART, Message};
use super::finding::Findings;
use bincode::config::standard;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// Bytes before the content of every control message.
pub const PREFIX_LEN: usize = 9;

/// The most content that any message may have: that of the largest kind.
pub const MAX_MESSAGE: usize = FINAL_STATE_LIMIT;

const SMALL_LIMIT: usize = 64 << 10;
const FINDINGS_LIMIT: usize = 256 << 10;
const DESCRIPTION_LIMIT: usize = 4 << 20;
const IMAGE_LIMIT: usize = MAX_IMAGE_PART + (4 << 10);
const FINAL_STATE_LIMIT: usize = 64 << 20;

/// What remains of a text that would make its message exceed the limit.
const SHORTENED_TEXT: usize = 512;
/// And how many texts of a list remain.
const SHORTENED_LIST: usize = 64;

/// Why bytes are not a control message, or a message cannot become bytes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A kind byte that no message of this version has.
    #[error("unknown message kind {0}")]
    UnknownKind(u8),
    /// Longer than its kind may be.
    #[error("{kind:?} message of {length} bytes, at most {limit} are allowed")]
    TooLong {
        /// Of which kind.
        kind: MessageKind,
        /// Its length in bytes.
        length: usize,
        /// The kind's limit in bytes.
        limit: usize,
    },
    /// Damaged on the way, or by the sender.
    #[error("checksum mismatch in a {0:?} message")]
    Checksum(MessageKind),
    /// The content is not what the kind says.
    #[error("malformed {kind:?} message: {cause}")]
    Malformed {
        /// Of which kind.
        kind: MessageKind,
        /// What is wrong with it.
        cause: String,
    },
}

macro_rules! kinds {
    ($($kind:ident = $byte:literal, $pattern:pat,)*) => {
        /// Which message follows: the prefix's kind byte. A number, once given, is never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "each is the message of the same name")]
        pub enum MessageKind { $($kind = $byte,)* }

        impl MessageKind {
            /// The kind of a message.
            pub fn of(message: &Message) -> MessageKind {
                match message { $($pattern => MessageKind::$kind,)* }
            }

            fn from_byte(byte: u8) -> Option<MessageKind> {
                match byte { $($byte => Some(MessageKind::$kind),)* _ => None }
            }
        }
    };
}

kinds! {
    Hello = 1, Message::Hello(_),
    Offer = 2, Message::Offer(_),
    Accepted = 3, Message::Accepted(_),
    Refused = 4, Message::Refused(_),
    RoundEnd = 5, Message::RoundEnd(_),
    RoundAcked = 6, Message::RoundAcked(_),
    Freezing = 7, Message::Freezing,
    Image = 8, Message::Image(_),
    FinalState = 9, Message::FinalState(_),
    Ready = 10, Message::Ready(_),
    Commit = 11, Message::Commit,
    Resumed = 12, Message::Resumed(_),
    NotResumed = 13, Message::NotResumed(_),
    Drained = 14, Message::Drained,
    Abort = 15, Message::Abort(_),
    Failed = 16, Message::Failed(_),
    AskOutcome = 17, Message::AskOutcome(_),
    Outcome = 18, Message::Outcome(..),
    KeepAlive = 19, Message::KeepAlive,
    Check = 20, Message::Check(_),
    Findings = 21, Message::Findings(_),
    TakenOver = 22, Message::TakenOver,
    Along = 23, Message::Along(_),
}

impl MessageKind {
    /// The most content bytes a message of this kind may have.
    pub const fn limit(self) -> usize {
        match self {
            // CPU features, PIDs and file claims grow with the host and the workload.
            MessageKind::Hello | MessageKind::Offer | MessageKind::Check => DESCRIPTION_LIMIT,
            // 256 findings of a line or two; longer texts are shortened.
            MessageKind::Accepted | MessageKind::Refused | MessageKind::Findings => FINDINGS_LIMIT,
            MessageKind::Image => IMAGE_LIMIT,
            // About 11 bytes a range: six million ranges.
            MessageKind::FinalState => FINAL_STATE_LIMIT,
            _ => SMALL_LIMIT,
        }
    }
}

/// The bytes of one message, prefix included.
///
/// A text for people (why something failed) that would break the limit is
/// shortened: that must never keep the failure itself from being told. Anything
/// else over the limit is [`CodecError::TooLong`].
pub fn encode(message: &Message) -> Result<Bytes, CodecError> {
    match encode_exact(message) {
        Err(CodecError::TooLong { .. }) if shortened(message).is_some() => {
            encode_exact(&shortened(message).expect("just tested"))
        }
        other => other,
    }
}

fn encode_exact(message: &Message) -> Result<Bytes, CodecError> {
    let kind = MessageKind::of(message);
    let mut writer = BytesMut::with_capacity(512).writer();
    writer.get_mut().put_bytes(0, PREFIX_LEN);
    bincode::serde::encode_into_std_write(message, &mut writer, standard())
        .map_err(|cause| CodecError::Malformed { kind, cause: cause.to_string() })?;
    let mut bytes = writer.into_inner();
    let length = bytes.len() - PREFIX_LEN;
    let limit = kind.limit();
    if length > limit || image_part_too_long(message) {
        return Err(CodecError::TooLong { kind, length, limit });
    }
    let crc = checksum(kind as u8, &bytes[PREFIX_LEN..]);
    let mut prefix = &mut bytes[..PREFIX_LEN];
    prefix.put_u32_le(length as u32);
    prefix.put_u8(kind as u8);
    prefix.put_u32_le(crc);
    Ok(bytes.freeze())
}

/// Takes the first message out of `buffer`, or nothing while it is incomplete.
///
/// On `Ok(None)` the buffer is untouched, and it is sure that what is missing
/// stays within the limits. After an error the stream cannot be read on.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Message>, CodecError> {
    let Some(mut prefix) = buffer.get(..PREFIX_LEN) else { return Ok(None) };
    let length = prefix.get_u32_le() as usize;
    let byte = prefix.get_u8();
    let crc = prefix.get_u32_le();
    let kind = MessageKind::from_byte(byte).ok_or(CodecError::UnknownKind(byte))?;
    let limit = kind.limit();
    if length > limit {
        return Err(CodecError::TooLong { kind, length, limit });
    }
    if buffer.len() - PREFIX_LEN < length {
        return Ok(None);
    }
    buffer.advance(PREFIX_LEN);
    let content = buffer.split_to(length);
    if checksum(byte, &content) != crc {
        return Err(CodecError::Checksum(kind));
    }
    let message = decode_content(kind, &content)?;
    if MessageKind::of(&message) != kind {
        let cause = format!("the content is {}", message.name());
        return Err(CodecError::Malformed { kind, cause });
    }
    if image_part_too_long(&message) {
        return Err(CodecError::TooLong { kind, length, limit });
    }
    if let Some(count) = findings(&message).map(|findings| findings.all().len())
        && count > Findings::MOST
    {
        let cause = format!("{count} findings, at most {} are allowed", Findings::MOST);
        return Err(CodecError::Malformed { kind, cause });
    }
    Ok(Some(message))
}

fn decode_content(kind: MessageKind, content: &[u8]) -> Result<Message, CodecError> {
    fn limited<const LIMIT: usize>(content: &[u8]) -> Result<(Message, usize), bincode::error::DecodeError> {
        bincode::serde::decode_from_slice(content, standard().with_limit::<LIMIT>())
    }
    let decoded = match kind.limit() {
        SMALL_LIMIT => limited::<SMALL_LIMIT>(content),
        FINDINGS_LIMIT => limited::<FINDINGS_LIMIT>(content),
        DESCRIPTION_LIMIT => limited::<DESCRIPTION_LIMIT>(content),
        IMAGE_LIMIT => limited::<IMAGE_LIMIT>(content),
        _ => limited::<FINAL_STATE_LIMIT>(content),
    };
    let (message, used) =
        decoded.map_err(|cause| CodecError::Malformed { kind, cause: cause.to_string() })?;
    if used != content.len() {
        let cause = format!("{} bytes too many", content.len() - used);
        return Err(CodecError::Malformed { kind, cause });
    }
    Ok(message)
}

/// Appends a record of a companion's blob: see [`super::blob`].
pub fn append_record<T: Serialize>(record: &T, to: &mut Vec<u8>) -> Result<(), String> {
    bincode::serde::encode_into_std_write(record, to, standard()).map(drop).map_err(|cause| cause.to_string())
}

/// Takes the first record out of a blob's bytes, and says how long it is. No part of
/// it can claim more than a blob may have.
pub fn take_record<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), String> {
    bincode::serde::decode_from_slice(bytes, standard().with_limit::<MAX_BLOB>())
        .map_err(|cause| cause.to_string())
}

/// The prefix's checksum: of the kind byte and the content.
pub fn checksum(kind: u8, content: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind]);
    crc.update(content);
    crc.finalize()
}

fn image_part_too_long(message: &Message) -> bool {
    matches!(message, Message::Image(part) if part.data.len() > MAX_IMAGE_PART)
}

fn findings(message: &Message) -> Option<&Findings> {
    match message {
        Message::Accepted(accepted) => Some(&accepted.findings),
        Message::Refused(findings) | Message::Findings(findings) => Some(findings),
        _ => None,
    }
}

fn shortened(message: &Message) -> Option<Message> {
    let short = |text: &String| -> String {
        let mut end = text.len().min(SHORTENED_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        if end == text.len() { text.clone() } else { format!("{} […]", &text[..end]) }
    };
    match message {
        Message::Accepted(accepted) => {
            let findings = accepted.findings.shortened(SHORTENED_LIST, short);
            Some(Message::Accepted(Accepted { findings, ..accepted.clone() }))
        }
        Message::Refused(findings) => Some(Message::Refused(findings.shortened(SHORTENED_LIST, short))),
        Message::Findings(findings) => Some(Message::Findings(findings.shortened(SHORTENED_LIST, short))),
        Message::NotResumed(why) => Some(Message::NotResumed(short(why))),
        Message::Abort(why) => Some(Message::Abort(short(why))),
        Message::Failed(why) => Some(Message::Failed(short(why))),
        Message::Outcome(id, super::control::Outcome::InDoubt(why)) => {
            Some(Message::Outcome(*id, super::control::Outcome::InDoubt(short(why))))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
