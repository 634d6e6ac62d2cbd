//! Memory beside the page store, in a process of its own so that nothing else counts.

use bytes::Bytes;
use ferry_engine::page_store::PageStore;
use ferry_transport::page::{PAGE_SIZE, PageAddr, PageChunk, PageRange, Round, Run, RunKind, SpaceId};
use ferry_transport::units::{self, PageCount};
use ferry_transport::wire::control::FinalSpace;

/// Memory of this process that is its own: the store's content is in a file.
fn own_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() << 10
}

/// What stands beside the store while a workload passes, at its worst: every second
/// page exists, so that no two make one extent.
#[test]
fn memory_beside_the_store_is_small() {
    const PAGES: u64 = (1 << 30) / PAGE_SIZE as u64 / 2;
    const RUNS: u64 = 256;
    let before = own_memory();
    let store = PageStore::new(units::Bytes(1 << 30)).unwrap();
    let data = Bytes::from(vec![7; RUNS as usize * PAGE_SIZE]);
    for first in (0..PAGES).step_by(RUNS as usize) {
        let run = |page| Run { start: PageAddr::from_index(page * 2), count: 1, kind: RunKind::Data };
        let runs = (first..first + RUNS).map(run).collect();
        let (space, round) = (SpaceId(0), Round((first / RUNS % 3) as u32));
        store.put(&PageChunk { space, round, runs, data: data.clone() }).unwrap();
    }
    let passing = own_memory().saturating_sub(before);
    let held = store.held();
    assert_eq!(held.data_pages, PageCount(PAGES));
    let present = (0..PAGES)
        .map(|page| PageRange { start: PageAddr::from_index(page * 2), count: PageCount(1) })
        .collect();
    let sealed = store.seal(&[FinalSpace { space: SpaceId(0), image_pid: 7, present }]).unwrap();
    assert_eq!(sealed.spaces[0].extents.len() as u64, PAGES);
    let complete = own_memory().saturating_sub(before);
    println!(
        "{} of pages, beside them {} KiB, {} KiB once sealed",
        PageCount(PAGES).bytes(),
        passing >> 10,
        complete >> 10
    );
    let charged = held.memory.0 - held.data_pages.bytes().0;
    assert!(charged >= passing / 2, "{passing} bytes beside the pages, and {charged} are charged for");
    assert!(complete < 64 << 20, "{complete}");
}
