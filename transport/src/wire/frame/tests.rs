use super::*;
use proptest::prelude::*;

fn run(index: u64, count: u32, kind: RunKind) -> Run {
    Run { start: PageAddr::from_index(index), count, kind }
}

fn chunk(runs: Vec<Run>, fill: impl Fn(usize) -> u8) -> PageChunk {
    let pages: u32 = runs.iter().filter(|r| r.kind == RunKind::Data).map(|r| r.count).sum();
    let data: Vec<u8> = (0..pages as usize * PAGE_SIZE).map(fill).collect();
    PageChunk { space: SpaceId(7), round: Round(2), runs, data: data.into() }
}

fn wire(frame: &EncodedFrame) -> Bytes {
    [&frame.head[..], &frame.payload[..]].concat().into()
}

fn assert_same(a: &PageChunk, b: &PageChunk) {
    assert_eq!((a.space, a.round, &a.runs, &a.data), (b.space, b.round, &b.runs, &b.data));
}

const ENCODINGS: [Encoding; 3] = [Encoding::Raw, Encoding::Lz4, Encoding::Zstd];

#[test]
fn raw_content_is_not_copied() {
    let chunk = chunk(vec![run(5, 3, RunKind::Data)], |i| i as u8);
    let frame = encode(&chunk, Encoding::Raw).unwrap();
    assert_eq!(frame.payload.as_ptr(), chunk.data.as_ptr());
}

#[test]
fn content_that_does_not_shrink_travels_raw() {
    let random: Vec<u8> = rand::random_iter().take(PAGE_SIZE).collect();
    let chunk = chunk(vec![run(5, 1, RunKind::Data)], |i| random[i]);
    for encoding in ENCODINGS {
        let frame = encode(&chunk, encoding).unwrap();
        assert_eq!(frame.payload.len(), PAGE_SIZE);
        assert_same(&decode(&wire(&frame)).unwrap().0, &chunk);
    }
}

#[test]
fn chunks_that_break_the_rules_are_not_sent() {
    let bad = [
        vec![run(5, 0, RunKind::Zero)],
        vec![run(5, 2, RunKind::Zero), run(6, 1, RunKind::Data)],
        vec![run(5, 1, RunKind::Zero), run(4, 1, RunKind::Zero)],
        vec![run(0, MAX_CHUNK_PAGES as u32 + 1, RunKind::Data)],
        vec![run(PAGE_NUMBERS - 1, 2, RunKind::Zero)],
        (0..=MAX_CHUNK_RUNS as u64).map(|i| run(2 * i, 1, RunKind::Zero)).collect(),
    ];
    for runs in bad {
        assert!(encode(&chunk(runs, |_| 1), Encoding::Raw).is_err());
    }
    let mut short = chunk(vec![run(5, 2, RunKind::Data)], |_| 1);
    short.data = short.data.slice(..PAGE_SIZE);
    assert_eq!(encode(&short, Encoding::Raw).unwrap_err(), FrameError::Mismatch("content"));
}

/// Changes fields and makes the header's checksum right again.
fn forged(frame: &EncodedFrame, change: impl Fn(&mut [u8])) -> Bytes {
    let mut bytes = wire(frame).to_vec();
    change(&mut bytes);
    let runs = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    let end = (HEADER_LEN + runs.min(MAX_CHUNK_RUNS) * RUN_LEN).min(bytes.len());
    let crc = header_checksum(&bytes[..HEADER_LEN], &bytes[HEADER_LEN..end]);
    bytes[32..36].copy_from_slice(&crc.to_le_bytes());
    bytes.into()
}

#[test]
fn a_forged_frame_with_right_checksums_is_refused() {
    let chunk = chunk(vec![run(5, 2, RunKind::Data), run(9, 1 << 30, RunKind::Zero)], |i| (i / 512) as u8);
    let set = |at: usize, value: u32| move |b: &mut [u8]| b[at..at + 4].copy_from_slice(&value.to_le_bytes());
    for encoding in ENCODINGS {
        let frame = encode(&chunk, encoding).unwrap();
        assert_same(&decode(&forged(&frame, |_| ())).unwrap().0, &chunk);
        assert!(decode(&forged(&frame, set(16, u32::MAX))).is_err()); // runs
        assert!(decode(&forged(&frame, set(16, 1))).is_err());
        assert!(decode(&forged(&frame, set(20, u32::MAX))).is_err()); // data pages
        assert!(decode(&forged(&frame, set(20, 1))).is_err());
        assert!(decode(&forged(&frame, set(20, 3))).is_err());
        assert!(decode(&forged(&frame, set(24, u32::MAX))).is_err()); // payload
        assert!(decode(&forged(&frame, set(24, 5))).is_err());
        assert!(decode(&forged(&frame, set(28, 0))).is_err()); // content
        assert!(decode(&forged(&frame, set(36, 9))).is_err()); // a run's start
        assert!(decode(&forged(&frame, set(44, 0))).is_err()); // a run's count
        assert!(decode(&forged(&frame, |b| b[5] = 3)).is_err());
        assert!(decode(&forged(&frame, |b| b[5] = (b[5] + 1) % 3)).is_err());
        assert!(decode(&forged(&frame, |b| b[7] = 1)).is_err());
    }
}

#[test]
fn a_compressed_bomb_is_refused() {
    // 100 MiB of zeroes in a payload that says it is two pages.
    let bomb = zstd::bulk::compress(&vec![0u8; 100 << 20], 1).unwrap();
    let fits = bomb.len().min(2 * PAGE_SIZE - 1);
    assert!(compress::decompress(Encoding::Zstd, Bytes::from(bomb).slice(..fits), 2 * PAGE_SIZE).is_err());
    let bomb = lz4_flex::block::compress(&vec![0u8; 1 << 20]);
    assert!(compress::decompress(Encoding::Lz4, bomb.into(), 2 * PAGE_SIZE).is_err());
}

fn any_chunk() -> impl Strategy<Value = PageChunk> {
    let run = (0u64..50, 1u32..8, any::<bool>(), 0u32..3);
    (any::<u32>(), any::<u32>(), prop::collection::vec(run, 0..12), any::<u8>()).prop_map(
        |(space, round, steps, salt)| {
            let mut at = 0;
            let mut runs = Vec::new();
            for (gap, count, data, huge) in steps {
                let kind = if data { RunKind::Data } else { RunKind::Zero };
                let count = if !data && huge == 0 { count << 25 } else { count };
                runs.push(run_at(at + gap, count, kind));
                at += gap + u64::from(count);
            }
            let mut made = chunk(runs, |i| ((i / 64) as u8).wrapping_mul(salt));
            (made.space, made.round) = (SpaceId(space), Round(round));
            made
        },
    )
}

fn run_at(index: u64, count: u32, kind: RunKind) -> Run {
    run(index, count, kind)
}

proptest! {
    #[test]
    fn a_chunk_comes_back(chunk in any_chunk(), encoding in 0usize..3) {
        let frame = encode(&chunk, ENCODINGS[encoding]).unwrap();
        prop_assert!(frame.len() <= MAX_FRAME_LEN);
        let (back, length) = decode(&wire(&frame)).unwrap();
        assert_same(&back, &chunk);
        prop_assert_eq!(length, frame.len());
    }

    #[test]
    fn a_changed_byte_is_an_error_or_changes_nothing(
        chunk in any_chunk(), encoding in 0usize..3, at: prop::sample::Index, to: u8,
    ) {
        let mut bytes = wire(&encode(&chunk, ENCODINGS[encoding]).unwrap()).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok((back, _)) = decode(&bytes.into()) {
            assert_same(&back, &chunk);
        }
    }

    #[test]
    fn a_cut_frame_is_an_error(chunk in any_chunk(), at: prop::sample::Index) {
        let bytes = wire(&encode(&chunk, Encoding::Lz4).unwrap());
        let cut = bytes.slice(..at.index(bytes.len()));
        prop_assert_eq!(decode(&cut).unwrap_err(), FrameError::Truncated);
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400), payload in 0u32..5000) {
        let _ = decode(&Bytes::from(bytes.clone()));
        for encoding in ENCODINGS {
            let _ = compress::decompress(encoding, bytes.clone().into(), payload as usize);
        }
    }
}
