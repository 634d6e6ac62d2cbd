//! The page store against a map that does the same the obvious way.

use bytes::Bytes;
use ferry_engine::page_store::{Content, PageStore, SealError, Sealed, StoreError};
use ferry_transport::page::{PAGE_SIZE, PageAddr, PageChunk, PageRange, Round, Run, RunKind, SpaceId};
use ferry_transport::units::{self, PageCount};
use ferry_transport::wire::control::FinalSpace;
use proptest::prelude::*;
use std::collections::HashMap;
use std::os::unix::fs::FileExt;

const MEMORY: units::Bytes = units::Bytes(256 << 20);

/// The content of a page as a function of who, where and when.
fn content(space: u32, page: u64, round: u32) -> Vec<u8> {
    let word = (u64::from(space) << 56) ^ (page << 20) ^ u64::from(round) ^ 0x5bd1_e995;
    word.to_le_bytes().repeat(PAGE_SIZE / 8)
}

fn chunk(space: u32, round: u32, runs: &[(u64, u32, RunKind)]) -> PageChunk {
    let mut data = Vec::new();
    for &(page, count, kind) in runs {
        if kind == RunKind::Data {
            (page..page + u64::from(count)).for_each(|page| data.extend(content(space, page, round)));
        }
    }
    let run = |&(page, count, kind)| Run { start: PageAddr::from_index(page), count, kind };
    let runs = runs.iter().map(run).collect();
    PageChunk { space: SpaceId(space), round: Round(round), runs, data: Bytes::from(data) }
}

fn range(page: u64, count: u64) -> PageRange {
    PageRange { start: PageAddr::from_index(page), count: PageCount(count) }
}

fn read(sealed: &Sealed, space: u32) -> HashMap<u64, Option<Vec<u8>>> {
    let mut pages = HashMap::new();
    let space = sealed.spaces.iter().find(|sealed| sealed.space == SpaceId(space)).expect("space");
    for extent in &space.extents {
        for index in 0..extent.pages.count.0 {
            let content = match extent.content {
                Content::Zero => None,
                Content::Arena(offset) => {
                    let mut page = vec![0; PAGE_SIZE];
                    sealed.arena.read_exact_at(&mut page, offset + index * PAGE_SIZE as u64).expect("read");
                    Some(page)
                }
            };
            assert!(pages.insert(extent.pages.start.index() + index, content).is_none());
        }
    }
    pages
}

/// One chunk's space, round and runs: gap before, length, kind.
fn any_chunk() -> impl Strategy<Value = (u32, u32, u64, Vec<(u64, u32, bool)>)> {
    let runs = prop::collection::vec((0..3u64, 1..60u32, any::<bool>()), 1..6);
    (0..2u32, 0..4u32, prop::sample::select(vec![0u64, 100, 470, 512, 1000, 1 << 35]), runs)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn agrees_with_a_map(chunks in prop::collection::vec(any_chunk(), 1..40)) {
        let store = PageStore::new(MEMORY).unwrap();
        let mut model: HashMap<(u32, u64), (u32, bool)> = HashMap::new();
        for (space, round, start, gaps) in chunks {
            let (mut page, mut runs) = (start, Vec::new());
            for (gap, count, data) in gaps {
                page += gap;
                runs.push((page, count, if data { RunKind::Data } else { RunKind::Zero }));
                for page in page..page + u64::from(count) {
                    let known = model.entry((space, page)).or_insert((round, data));
                    if known.0 <= round {
                        *known = (round, data);
                    }
                }
                page += u64::from(count);
            }
            store.put(&chunk(space, round, &runs)).unwrap();
        }
        let held = store.held();
        prop_assert_eq!(held.data_pages.0, model.values().filter(|page| page.1).count() as u64);
        prop_assert_eq!(held.zero_pages.0, model.values().filter(|page| !page.1).count() as u64);
        let finals = [0, 1].map(|space| {
            let mut pages: Vec<u64> = model.keys().filter(|key| key.0 == space).map(|key| key.1).collect();
            pages.sort_unstable();
            let present = pages.into_iter().map(|page| range(page, 1)).collect();
            FinalSpace { space: SpaceId(space), image_pid: 100 + space, present }
        });
        let sealed = store.seal(&finals).unwrap();
        for space in [0, 1] {
            let found = read(&sealed, space);
            prop_assert_eq!(found.len(), model.keys().filter(|key| key.0 == space).count());
            for (page, found) in found {
                let (round, data) = model[&(space, page)];
                prop_assert_eq!(found, data.then(|| content(space, page, round)));
            }
        }
    }

    #[test]
    fn survives_any_chunk(
        runs in prop::collection::vec((any::<u64>(), any::<u32>(), any::<bool>()), 0..5),
        round: u32, length in 0usize..20000,
    ) {
        let store = PageStore::new(units::Bytes(1 << 20)).unwrap();
        let run = |(address, count, data)| Run {
            start: PageAddr::containing(address), count, kind: if data { RunKind::Data } else { RunKind::Zero },
        };
        let runs = runs.into_iter().map(run).collect();
        let data = Bytes::from(vec![1; length]);
        let _ = store.put(&PageChunk { space: SpaceId(0), round: Round(round), runs, data });
        prop_assert!(store.held().memory.0 <= 1 << 20);
    }

    #[test]
    fn survives_any_final_state(ranges in prop::collection::vec((any::<u64>(), any::<u64>()), 0..5)) {
        let store = PageStore::new(MEMORY).unwrap();
        store.put(&chunk(0, 0, &[(100, 10, RunKind::Data)])).unwrap();
        let present = ranges.into_iter()
            .map(|(start, count)| PageRange { start: PageAddr::containing(start), count: PageCount(count) })
            .collect::<Vec<_>>();
        let empty = present.is_empty();
        let sealed = store.seal(&[FinalSpace { space: SpaceId(0), image_pid: 1, present }]);
        prop_assert_eq!(sealed.is_ok(), empty);
    }
}

#[test]
fn many_streams_at_once() {
    let store = PageStore::new(MEMORY).unwrap();
    std::thread::scope(|scope| {
        for stream in 0..4u32 {
            let store = &store;
            scope.spawn(move || {
                // Each stream carries another round of the same pages, in another order.
                for step in 0..64u64 {
                    let page = (step * [1, 3, 5, 7][stream as usize] % 64) * 64;
                    store.put(&chunk(0, stream, &[(page, 64, RunKind::Data)])).unwrap();
                }
            });
        }
    });
    assert_eq!(store.held().data_pages, PageCount(4096));
    assert_eq!(store.totals(Round(2)).data_pages, PageCount(4096));
    assert_eq!(store.totals(Round(2)).chunks, 64);
    let present = vec![range(0, 4096)];
    let sealed = store.seal(&[FinalSpace { space: SpaceId(0), image_pid: 1, present }]).unwrap();
    for (page, found) in read(&sealed, 0) {
        assert_eq!(found, Some(content(0, page, 3)), "page {page}");
    }
    assert!(matches!(store.put(&chunk(0, 9, &[(0, 1, RunKind::Zero)])), Err(StoreError::Sealed)));
}

#[test]
fn refuses_what_does_not_fit() {
    let store = PageStore::new(units::Bytes(100 * PAGE_SIZE as u64)).unwrap();
    store.put(&chunk(0, 0, &[(0, 90, RunKind::Data)])).unwrap();
    let refused = store.put(&chunk(0, 0, &[(512, 20, RunKind::Data)]));
    assert!(matches!(refused, Err(StoreError::Full { .. })), "{refused:?}");
    // Room again once pages turn zero.
    store.put(&chunk(0, 1, &[(0, 90, RunKind::Zero)])).unwrap();
    store.put(&chunk(0, 1, &[(512, 20, RunKind::Data)])).unwrap();
    // A zero run over terabytes is refused as well, not booked page by page.
    let refused = store.put(&chunk(0, 1, &[(4096, u32::MAX, RunKind::Zero)]));
    assert!(matches!(refused, Err(StoreError::Full { .. })), "{refused:?}");
}

#[test]
fn names_what_is_missing() {
    let store = PageStore::new(MEMORY).unwrap();
    for page in [0x10, 0x110] {
        store.put(&chunk(3, 0, &[(page, 256, RunKind::Data)])).unwrap();
    }
    store.put(&chunk(3, 0, &[(0x210, 88, RunKind::Data), (0x2000, 5, RunKind::Zero)])).unwrap();
    let present = vec![range(0x10, 600), range(0x1fff, 9)];
    let error = store.seal(&[FinalSpace { space: SpaceId(3), image_pid: 7, present }]).unwrap_err();
    match error {
        SealError::Missing { space, image_pid, first, pages } => {
            assert_eq!((space, image_pid, first, pages), (SpaceId(3), 7, 0x1fff000, 4));
        }
        other => panic!("{other}"),
    }
}

/// `cargo test --release -p ferry-engine --test store_model measure -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn measure() {
    for streams in [1u64, 2] {
        let store = PageStore::new(units::Bytes(2 << 30)).unwrap();
        let sample = chunk(0, 0, &[(0, 256, RunKind::Data)]);
        let began = std::time::Instant::now();
        std::thread::scope(|scope| {
            for stream in 0..streams {
                let (store, sample) = (&store, &sample);
                scope.spawn(move || {
                    for number in (stream..1024).step_by(streams as usize) {
                        let mut chunk = sample.clone();
                        chunk.runs[0].start = PageAddr::from_index(number * 256);
                        store.put(&chunk).unwrap();
                    }
                });
            }
        });
        let inserted = began.elapsed();
        let present = vec![range(0, 1024 * 256)];
        let began = std::time::Instant::now();
        let sealed = store.seal(&[FinalSpace { space: SpaceId(0), image_pid: 1, present }]).unwrap();
        println!(
            "{streams} stream(s): 1 GiB in {inserted:?} ({}), sealed in {:?}, {} extents",
            units::Bytes::GIB.per(inserted),
            began.elapsed(),
            sealed.spaces[0].extents.len()
        );
    }
}
