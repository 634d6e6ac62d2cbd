//! Changing a request that somebody else made, losing nothing of it.
//!
//! A runtime's request has fields that ferry has no use for and that the next
//! version of CRIU may not have yet. It is therefore never decoded and encoded
//! again: fields are cut out and others put behind, byte for byte.

use crate::criu::proto::{Options, REPEATED};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};

const KIND: u32 = 1;
const OPTIONS: u32 = 2;

/// Why a request cannot be changed.
#[derive(Debug, thiserror::Error)]
#[error("the runtime's request is no protobuf message")]
pub(super) struct Unreadable;

/// The kind of a request: `criu_req_type`. Of a field that is there twice the later
/// one counts.
pub(super) fn kind(request: &[u8]) -> Result<i32, Unreadable> {
    let (_, mut field) = fields(request)?.into_iter().rfind(|(tag, _)| *tag == KIND).ok_or(Unreadable)?;
    match decode_key(&mut field) {
        Ok((_, WireType::Varint)) => {}
        _ => return Err(Unreadable),
    }
    let kind = decode_varint(&mut field).map_err(|_| Unreadable)?;
    i32::try_from(kind).map_err(|_| Unreadable)
}

/// The request with `ours` in place of the options of the same number, or beside
/// them where there may be several, and without the options in `without`.
pub(super) fn with_options(request: &[u8], ours: &Options, without: &[u32]) -> Result<Vec<u8>, Unreadable> {
    let ours = ours.encode_to_vec();
    let replaced: Vec<u32> = fields(&ours)?.into_iter().map(|(tag, _)| tag).collect();
    let goes = |tag: u32| without.contains(&tag) || (replaced.contains(&tag) && !REPEATED.contains(&tag));
    let mut options = Vec::new();
    let mut changed = Vec::new();
    for (tag, field) in fields(request)? {
        if tag != OPTIONS {
            changed.extend_from_slice(field);
            continue;
        }
        for (tag, option) in fields(content(field)?)? {
            if !goes(tag) {
                options.extend_from_slice(option);
            }
        }
    }
    options.extend(ours);
    prost::encoding::bytes::encode(OPTIONS, &options, &mut changed);
    Ok(changed)
}

/// Every field of a message: its number, and all of its bytes, key included.
fn fields(message: &[u8]) -> Result<Vec<(u32, &[u8])>, Unreadable> {
    let mut fields = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let begin = rest;
        let (tag, kind) = decode_key(&mut rest).map_err(|_| Unreadable)?;
        let length = match kind {
            WireType::Varint => {
                decode_varint(&mut rest).map_err(|_| Unreadable)?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => length(&mut rest)?,
            WireType::StartGroup | WireType::EndGroup => return Err(Unreadable),
        };
        rest = rest.get(length..).ok_or(Unreadable)?;
        fields.push((tag, &begin[..begin.len() - rest.len()]));
    }
    Ok(fields)
}

/// What is inside a field that is a message.
fn content(mut field: &[u8]) -> Result<&[u8], Unreadable> {
    match decode_key(&mut field) {
        Ok((_, WireType::LengthDelimited)) => {}
        _ => return Err(Unreadable),
    }
    let length = length(&mut field)?;
    field.get(..length).ok_or(Unreadable)
}

fn length(rest: &mut &[u8]) -> Result<usize, Unreadable> {
    let length = decode_varint(rest).map_err(|_| Unreadable)?;
    usize::try_from(length).map_err(|_| Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::proto::{FREEZE_CGROUP, Fd, Request, request_type};
    use proptest::prelude::*;

    /// Every field of `criu_opts` as `(number, bytes)`: varints, strings and messages
    /// alike, those that nobody has invented yet among them.
    fn any_options() -> impl Strategy<Value = Vec<(u32, Vec<u8>)>> {
        let field = (
            1u32..200,
            prop_oneof![
                any::<u64>().prop_map(|value| (WireType::Varint, {
                    let mut bytes = Vec::new();
                    prost::encoding::encode_varint(value, &mut bytes);
                    bytes
                })),
                prop::collection::vec(any::<u8>(), 0..40).prop_map(|content| (WireType::LengthDelimited, {
                    let mut bytes = Vec::new();
                    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
                    bytes.extend(content);
                    bytes
                })),
                any::<[u8; 4]>().prop_map(|content| (WireType::ThirtyTwoBit, content.to_vec())),
                any::<[u8; 8]>().prop_map(|content| (WireType::SixtyFourBit, content.to_vec())),
            ],
        )
            .prop_map(|(tag, (kind, value))| {
                let mut bytes = Vec::new();
                prost::encoding::encode_key(tag, kind, &mut bytes);
                bytes.extend(value);
                (tag, bytes)
            });
        prop::collection::vec(field, 0..40)
    }

    fn request(options: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut request =
            Request { kind: request_type::DUMP, keep_open: Some(true), ..Request::default() }.encode_to_vec();
        let options: Vec<u8> = options.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        prost::encoding::bytes::encode(OPTIONS, &options, &mut request);
        request
    }

    fn options_of(request: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let all = fields(request).unwrap();
        let field = all.iter().find(|(tag, _)| *tag == OPTIONS).unwrap().1;
        fields(content(field).unwrap())
            .unwrap()
            .into_iter()
            .map(|(tag, bytes)| (tag, bytes.to_vec()))
            .collect()
    }

    proptest! {
        #[test]
        fn nothing_is_lost_but_what_is_replaced_or_taken_out(theirs in any_options()) {
            let ours = Options {
                images_dir_fd: -1,
                log_file: Some("ours.log".into()),
                inherit_fd: vec![Fd { key: "pipe:[1]".into(), fd: 1 }],
                external: vec!["file[1:2]".into()],
                ..Options::default()
            };
            let theirs_whole = request(&theirs);
            let changed = with_options(&theirs_whole, &ours, &[FREEZE_CGROUP]).unwrap();
            let gone = [1, 10, FREEZE_CGROUP];
            let mut expected: Vec<_> = theirs.into_iter().filter(|(tag, _)| !gone.contains(tag)).collect();
            let own = ours.encode_to_vec();
            expected.extend(fields(&own).unwrap().into_iter().map(|(tag, bytes)| (tag, bytes.to_vec())));
            prop_assert_eq!(options_of(&changed), expected);
            prop_assert_eq!(kind(&changed).unwrap(), request_type::DUMP);
            let beside = |request: &[u8]| -> Vec<Vec<u8>> {
                let all = fields(request).unwrap();
                all.into_iter().filter(|(tag, _)| *tag != OPTIONS).map(|(_, bytes)| bytes.to_vec()).collect()
            };
            prop_assert_eq!(beside(&changed), beside(&theirs_whole));
        }

        #[test]
        fn any_bytes_are_taken_calmly(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = with_options(&bytes, &Options::default(), &[]);
            let _ = kind(&bytes);
        }
    }
}
