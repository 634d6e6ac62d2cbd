//! What a peer sends: control messages and page frames.

use bytes::{BufMut, Bytes, BytesMut};
use ferry_transport::page::{PAGE_SIZE, PageAddr, PageChunk, PageRange, Round, Run, RunKind, SpaceId};
use ferry_transport::units::PageCount;
use ferry_transport::wire::compress::Encoding;
use ferry_transport::wire::control::{
    FinalSpace, FinalState, Hello, ImageFile, Message, MigrationId, Outcome, PROTOCOL_VERSION, RestoreTimes,
    RoundTotals,
};
use ferry_transport::wire::{codec, frame as frames};

/// Control messages. The input is a kind byte and content, framed here with the
/// right length and checksum, so that the decoder proper is reached.
pub fn control(input: &[u8]) {
    let _ = codec::decode(&mut BytesMut::from(input));
    let Some((kind, content)) = input.split_first() else { return };
    let mut bytes = BytesMut::new();
    bytes.put_u32_le(content.len() as u32);
    bytes.put_u8(*kind);
    bytes.put_u32_le(codec::checksum(*kind, content));
    bytes.put_slice(content);
    if let Ok(Some(message)) = codec::decode(&mut bytes) {
        let again = codec::encode(&message).expect("what was decoded can be encoded");
        assert_eq!(codec::decode(&mut BytesMut::from(&again[..])), Ok(Some(message)));
    }
}

/// Length and checksum stand between the kind and its content.
const MESSAGE_HEAD: usize = 9;

pub(super) fn control_seeds() -> Vec<Vec<u8>> {
    let id = MigrationId(7);
    let totals =
        RoundTotals { round: Round(3), chunks: 4, data_pages: PageCount(5), zero_pages: PageCount(6) };
    let range = |start, count| PageRange { start: PageAddr::from_index(start), count: PageCount(count) };
    let space =
        FinalSpace { space: SpaceId(1), image_pid: 42, present: vec![range(16, 3), range(4096, 1 << 20)] };
    let messages = [
        Message::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            revision: "ferry 0.1.0".into(),
            machine: "x86_64".into(),
            page_size: PAGE_SIZE as u32,
            kernel: "6.18.0".into(),
            criu: "4.2.1".into(),
            cpu_features: vec!["sse2".into(), "avx2".into()],
        }),
        Message::RoundEnd(totals),
        Message::RoundAcked(Round(3)),
        Message::Freezing,
        Message::TakenOver,
        Message::Image(ImageFile { name: "mm-42.img".into(), crc: 1, size: 9, offset: 2, data: vec![7; 7] }),
        Message::FinalState(Box::new(FinalState {
            totals,
            spaces: vec![space; 3],
            images: 12,
            root_pid: 42,
        })),
        Message::Ready(RestoreTimes { assemble_us: 10, restore_us: 20_000 }),
        Message::Commit,
        Message::Resumed(1500),
        Message::NotResumed("CRIU failed".into()),
        Message::AskOutcome(id),
        Message::Outcome(id, Outcome::InDoubt("its receiver died".into())),
    ];
    let seed = |message: &Message| {
        let bytes = codec::encode(message).expect("a valid message");
        [&[bytes[4]], &bytes[MESSAGE_HEAD..]].concat()
    };
    messages.iter().map(seed).collect()
}

/// Page frames: what decodes must encode to the same chunk. The checksums are
/// mended, so that what they protect is reached.
pub fn frame(input: &[u8]) {
    decode_frame(input);
    let mut mended = input.to_vec();
    if mend_frame(&mut mended).is_some() {
        decode_frame(&mended);
    }
}

fn decode_frame(bytes: &[u8]) {
    if let Ok((chunk, length)) = frames::decode(&Bytes::copy_from_slice(bytes)) {
        assert!(length <= bytes.len());
        let frame = frames::encode(&chunk, Encoding::Raw).expect("what was decoded keeps the rules");
        let again = [&frame.head[..], &frame.payload[..]].concat();
        let (same, _) = frames::decode(&again.into()).expect("what was encoded decodes");
        assert_eq!((same.runs, same.data), (chunk.runs, chunk.data));
    }
}

/// The layout is that of `docs/protocol.md`.
fn mend_frame(bytes: &mut [u8]) -> Option<()> {
    let runs = u32::from_le_bytes(*bytes.get(16..)?.first_chunk()?) as usize;
    let payload_len = u32::from_le_bytes(*bytes.get(24..)?.first_chunk()?) as usize;
    let payload = runs.checked_mul(12)?.checked_add(36)?;
    let content = crc32fast::hash(bytes.get(payload..payload.checked_add(payload_len)?)?);
    if bytes[5] == Encoding::Raw as u8 {
        bytes[28..32].copy_from_slice(&content.to_le_bytes());
    }
    let mut head = crc32fast::Hasher::new();
    head.update(&bytes[..32]);
    head.update(&bytes[36..payload]);
    bytes[32..36].copy_from_slice(&head.finalize().to_le_bytes());
    Some(())
}

pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    let run = |start, count, kind| Run { start: PageAddr::from_index(start), count, kind };
    let runs = vec![run(16, 2, RunKind::Data), run(18, 9000, RunKind::Zero), run(1 << 30, 1, RunKind::Data)];
    let mut data = vec![0; 3 * PAGE_SIZE];
    data.iter_mut().enumerate().for_each(|(index, byte)| *byte = (index / 7) as u8);
    let chunk = PageChunk { space: SpaceId(2), round: Round(1), runs, data: data.into() };
    let zero = PageChunk { runs: vec![run(1, 4, RunKind::Zero)], data: Bytes::new(), ..chunk.clone() };
    let encoded = |chunk: &PageChunk, encoding| {
        let frame = frames::encode(chunk, encoding).expect("a valid chunk");
        [&frame.head[..], &frame.payload[..]].concat()
    };
    vec![
        encoded(&chunk, Encoding::Raw),
        encoded(&chunk, Encoding::Lz4),
        encoded(&chunk, Encoding::Zstd),
        encoded(&zero, Encoding::Raw),
    ]
}
