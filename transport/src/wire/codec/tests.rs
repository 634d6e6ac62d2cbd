use super::*;
use crate::page::{PageAddr, PageRange, Round, SpaceId};
use crate::units::PageCount;
use crate::wire::control::*;
use crate::wire::finding::{Finding, Findings, Force, Forced, Severity, Subject};
use proptest::prelude::*;

fn totals() -> RoundTotals {
    RoundTotals { round: Round(3), chunks: 9, data_pages: PageCount(300), zero_pages: PageCount(7) }
}

fn every_message() -> Vec<Message> {
    let range = PageRange { start: PageAddr::from_index(0x7_fff1_2345), count: PageCount(12) };
    let offer = Offer {
        id: MigrationId(u128::MAX),
        target: "pid:4711 (redis-server)".into(),
        restorer: RestorerRequest { kind: "container".into(), setup: vec![7; 300] },
        memory: crate::units::Bytes::GIB,
        pids: vec![1, 4711, u32::MAX],
        restore: RestoreMode::Lazy,
        tcp: TcpMode::Established,
        move_address: Some(AddressMove {
            address: "fd00::1".parse().unwrap(),
            prefix: 64,
            interface: "eth0".into(),
        }),
        files: vec![FileClaim { path: "/bin/x".into(), size: Some(1), mode: 0o100755, build_id: None }],
        ports: vec![PortClaim { protocol: PortProtocol::Udp, address: [0; 4].into(), port: 53 }],
        limits: vec![LimitClaim { name: "Max open files".into(), hard: u64::MAX }],
        forced: Forced::Yes,
        along: Vec::new(),
    };
    let image = ImageFile { name: "core-1.img".into(), crc: 7, size: 3, offset: 0, data: vec![1, 2, 3] };
    let state = FinalState {
        totals: totals(),
        spaces: vec![FinalSpace { space: SpaceId(1), image_pid: 4711, present: vec![range; 40] }],
        images: 12,
        root_pid: 4711,
    };
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        revision: "ferry 0.1".into(),
        machine: "x86_64".into(),
        page_size: 4096,
        kernel: "6.18".into(),
        criu: "4.2.1".into(),
        cpu_features: vec!["sse".into(), "avx".into()],
    };
    vec![
        Message::Hello(hello),
        Message::Offer(Box::new(offer.clone())),
        Message::Accepted(Accepted { restore_cost_us: 80_000, findings: every_finding() }),
        Message::Refused(every_finding()),
        Message::RoundEnd(totals()),
        Message::RoundAcked(Round(3)),
        Message::Freezing,
        Message::TakenOver,
        Message::Image(image),
        Message::FinalState(Box::new(state)),
        Message::Ready(RestoreTimes { assemble_us: 1, restore_us: 2 }),
        Message::Commit,
        Message::Resumed(99),
        Message::NotResumed("why".into()),
        Message::Drained,
        Message::Abort("why".into()),
        Message::Failed("why".into()),
        Message::AskOutcome(MigrationId(5)),
        Message::Outcome(MigrationId(5), Outcome::InDoubt("power cut".into())),
        Message::KeepAlive,
        Message::Check(Box::new(offer)),
        Message::Findings(every_finding()),
    ]
}

/// One of every kind of subject.
fn every_finding() -> Findings {
    let subjects = [
        Subject::Process,
        Subject::Thread { tid: 4712 },
        Subject::Descriptor { fd: 3, link: "pipe:[1]".into() },
        Subject::Mapping { start: 1 << 40, end: 1 << 41, name: "/SYSV0".into() },
        Subject::Mount { path: "/mnt".into() },
        Subject::Namespace { of: "ipc".into() },
        Subject::File { path: "/bin/x".into() },
        Subject::Host,
    ];
    let finding = |subject| Finding {
        severity: Severity::Blocks,
        pid: Some(4711),
        comm: "redis".into(),
        subject,
        what: "what".into(),
        advice: "advice".into(),
        force: Force::Final,
    };
    Findings::new(subjects.map(finding).into())
}

#[test]
fn every_message_comes_back_whole_and_in_order() {
    let mut stream = BytesMut::new();
    for message in every_message() {
        stream.extend_from_slice(&encode(&message).unwrap());
    }
    for message in every_message() {
        assert_eq!(decode(&mut stream).unwrap(), Some(message));
    }
    assert_eq!(decode(&mut stream), Ok(None));
}

#[test]
fn an_incomplete_message_is_left_in_the_buffer() {
    for message in every_message() {
        let whole = encode(&message).unwrap();
        for cut in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..cut]);
            assert_eq!(decode(&mut part), Ok(None));
            assert_eq!(part.len(), cut);
        }
    }
}

#[test]
fn a_long_prefix_is_refused_before_the_content_is_awaited() {
    let mut bytes = BytesMut::new();
    bytes.put_u32_le(SMALL_LIMIT as u32 + 1);
    bytes.put_u8(MessageKind::Commit as u8);
    bytes.put_u32_le(0);
    assert!(matches!(decode(&mut bytes), Err(CodecError::TooLong { .. })));
}

/// Content that claims a huge list, correctly framed and summed.
fn framed(kind: MessageKind, content: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    bytes.put_u32_le(content.len() as u32);
    bytes.put_u8(kind as u8);
    bytes.put_u32_le(checksum(kind as u8, content));
    bytes.put_slice(content);
    bytes
}

#[test]
fn a_list_that_claims_more_than_it_has_is_refused_without_the_memory() {
    // Variant index, then a length of 2^62 as bincode's 8-byte varint.
    let huge = [&[253u8][..], &(1u64 << 62).to_le_bytes()].concat();
    for (kind, variant) in [(MessageKind::Refused, 3u8), (MessageKind::Abort, 14), (MessageKind::Hello, 0)] {
        let content = [&[variant][..], &[1][..], &huge].concat();
        assert!(matches!(decode(&mut framed(kind, &content)), Err(CodecError::Malformed { .. })));
        let content = [&[variant][..], &huge].concat();
        assert!(matches!(decode(&mut framed(kind, &content)), Err(CodecError::Malformed { .. })));
    }
    // FinalState: totals (4 varints), then the list of spaces.
    let content = [&[8u8, 0, 0, 0, 0][..], &huge].concat();
    assert!(matches!(
        decode(&mut framed(MessageKind::FinalState, &content)),
        Err(CodecError::Malformed { .. })
    ));
    // One space whose list of ranges is huge.
    let content = [&[8u8, 0, 0, 0, 0, 1, 1, 1][..], &huge].concat();
    assert!(matches!(
        decode(&mut framed(MessageKind::FinalState, &content)),
        Err(CodecError::Malformed { .. })
    ));
    // Image: name, crc, size, offset, then the data.
    let content = [&[7u8, 1, b'a', 0, 0, 0][..], &huge].concat();
    assert!(matches!(decode(&mut framed(MessageKind::Image, &content)), Err(CodecError::Malformed { .. })));
}

#[test]
fn the_kind_and_the_content_must_agree() {
    let commit = bincode::serde::encode_to_vec(Message::Commit, standard()).unwrap();
    assert!(matches!(
        decode(&mut framed(MessageKind::FinalState, &commit)),
        Err(CodecError::Malformed { .. })
    ));
    let longer = [&commit[..], &[0]].concat();
    assert!(matches!(decode(&mut framed(MessageKind::Commit, &longer)), Err(CodecError::Malformed { .. })));
}

#[test]
fn a_failure_with_a_long_text_is_still_told() {
    let long = "ü".repeat(200_000);
    for message in [
        Message::Failed(long.clone()),
        Message::Abort(long.clone()),
        Message::NotResumed(long.clone()),
        Message::Refused(Findings::new(vec![long_finding(&long); 500])),
        Message::Findings(Findings::new(vec![long_finding(&long); 500])),
        Message::Accepted(Accepted {
            restore_cost_us: 0,
            findings: Findings::new(vec![long_finding(&long); 500]),
        }),
        Message::Outcome(MigrationId(1), Outcome::InDoubt(long)),
    ] {
        let mut bytes = BytesMut::from(&encode(&message).unwrap()[..]);
        let told = decode(&mut bytes).unwrap().unwrap();
        assert_eq!(MessageKind::of(&told), MessageKind::of(&message));
    }
    let part = ImageFile { name: "a".into(), crc: 0, size: 0, offset: 0, data: vec![0; MAX_IMAGE_PART + 1] };
    assert!(matches!(encode(&Message::Image(part)), Err(CodecError::TooLong { .. })));
}

fn long_finding(text: &str) -> Finding {
    let mut finding = Finding::host(Severity::Blocks, Force::Final, text, text);
    finding.subject = Subject::File { path: text.into() };
    finding
}

#[test]
fn more_findings_than_a_message_may_hold_are_refused() {
    // Variant, then a list of one more than allowed: blocks, no process, "", Host, "", "", final.
    let count = (Findings::MOST as u16 + 1).to_le_bytes();
    let one = [2u8, 0, 0, 7, 0, 0, 1];
    let content = [&[3u8, 251][..], &count, &one.repeat(Findings::MOST + 1)].concat();
    let refused = decode(&mut framed(MessageKind::Refused, &content));
    assert!(
        matches!(&refused, Err(CodecError::Malformed { cause, .. }) if cause.contains("257")),
        "{refused:?}"
    );
}

#[test]
fn a_full_image_part_fits() {
    let name = "a".repeat(255);
    let data = vec![0xa5; MAX_IMAGE_PART];
    let message = Message::Image(ImageFile { name, crc: 1, size: 1 << 40, offset: 1 << 39, data });
    let mut bytes = BytesMut::from(&encode(&message).unwrap()[..]);
    assert_eq!(decode(&mut bytes).unwrap(), Some(message));
}

proptest! {
    #[test]
    fn a_changed_byte_is_an_error_or_incomplete(which in 0usize..21, at: prop::sample::Index, to: u8) {
        let message = every_message().swap_remove(which);
        let mut bytes = BytesMut::from(&encode(&message).unwrap()[..]);
        let at = at.index(bytes.len());
        let same = bytes[at] == to;
        bytes[at] = to;
        match decode(&mut bytes) {
            Ok(Some(decoded)) => prop_assert!(same && decoded == message),
            Ok(None) => prop_assert!(at < 4 && !same),
            Err(_) => prop_assert!(!same),
        }
    }

    #[test]
    fn garbage_never_panics(kind in 0u8..24, content in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Some(kind) = MessageKind::from_byte(kind) {
            let _ = decode(&mut framed(kind, &content));
        }
        let _ = decode(&mut BytesMut::from(&content[..]));
    }
}
