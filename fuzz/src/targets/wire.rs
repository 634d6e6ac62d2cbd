//! What a peer sends: control messages and page frames.

use bytes::{BufMut, Bytes, BytesMut};
use ferry_transport::page::{PAGE_SIZE, PageAddr, PageChunk, PageRange, Round, Run, RunKind, SpaceId};
use ferry_transport::units::{self, PageCount};
use ferry_transport::wire::compress::Encoding;
use ferry_transport::wire::control::{
    Accepted, AddressMove, FileClaim, FinalSpace, FinalState, Hello, ImageFile, LimitClaim, Message,
    MigrationId, Offer, Outcome, PROTOCOL_VERSION, PortClaim, PortProtocol, RestoreMode, RestoreTimes,
    RestorerRequest, RoundTotals, TcpMode,
};
use ferry_transport::wire::finding::{Finding, Findings, Force, Forced, Severity, Subject};
use ferry_transport::wire::{codec, frame as frames};
use std::net::Ipv6Addr;

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
        show(&message);
        let again = codec::encode(&message).expect("what was decoded can be encoded");
        assert_eq!(codec::decode(&mut BytesMut::from(&again[..])), Ok(Some(message)));
    }
}

/// What a person is shown of a message: whatever is in it, their terminal obeys none.
fn show(message: &Message) {
    let (Message::Findings(findings) | Message::Refused(findings)) = message else { return };
    let shown = findings.all().iter().map(Finding::to_string);
    assert!(!shown.chain([findings.to_string()]).any(|line| line.contains('\u{1b}')), "{findings:?}");
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
    let finding = |subject| Finding {
        severity: Severity::Blocks,
        pid: Some(42),
        comm: "redis-server".into(),
        subject,
        what: "it cannot be carried".into(),
        advice: "close it before".into(),
        force: Force::Overridable,
    };
    let findings = Findings::new(vec![
        finding(Subject::Process),
        finding(Subject::Thread { tid: 43 }),
        finding(Subject::Descriptor { fd: 7, link: "socket:[123]".into() }),
        finding(Subject::Mapping { start: 0x7f00_0000_0000, end: 0x7f00_0000_1000, name: "[aio]".into() }),
        finding(Subject::Mount { path: "/proc".into() }),
        finding(Subject::Namespace { of: "net".into() }),
        finding(Subject::File { path: "/etc/passwd".into() }),
        Finding::host(Severity::Risks, Force::Final, "too little memory", ""),
    ]);
    let offer = Offer {
        id,
        restorer: RestorerRequest { kind: "process".into(), setup: vec![1, 2, 3] },
        target: "pid:42 (redis-server)".into(),
        memory: units::Bytes(1 << 30),
        pids: vec![42, 43],
        restore: RestoreMode::Lazy,
        tcp: TcpMode::Established,
        move_address: Some(AddressMove {
            address: [192, 0, 2, 7].into(),
            prefix: 24,
            interface: "eth0".into(),
        }),
        files: vec![FileClaim {
            path: "/usr/bin/redis-server".into(),
            size: Some(9000),
            mode: 0o100_755,
            build_id: Some("00ff".into()),
        }],
        limits: vec![LimitClaim { name: "Max open files".into(), hard: 4096 }],
        ports: vec![PortClaim {
            protocol: PortProtocol::Tcp,
            address: Ipv6Addr::LOCALHOST.into(),
            port: 6379,
        }],
        forced: Forced::No,
        along: Vec::new(),
    };
    let messages = [
        Message::Offer(Box::new(offer.clone())),
        Message::Check(Box::new(offer)),
        Message::Accepted(Accepted { restore_cost_us: 20_000, findings: findings.clone() }),
        Message::Refused(findings.clone()),
        Message::Findings(findings),
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
        Message::Along(300),
        Message::Resumed(1500),
        Message::NotResumed("CRIU failed".into()),
        Message::AskOutcome(id),
        Message::Outcome(id, Outcome::InDoubt("its receiver died".into())),
        Message::Drained,
        Message::Abort("given up".into()),
        Message::Failed("no room".into()),
        Message::KeepAlive,
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
