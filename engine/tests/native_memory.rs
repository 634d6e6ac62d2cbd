//! The native memory source against real processes: what it says it sent is,
//! after any number of rounds and whatever the workload did in between, exactly
//! what the workload holds.

mod native_support;

use ferry_engine::memory::MemorySource;
use ferry_transport::page::Round;
use native_support::*;
use std::collections::HashSet;

#[test]
fn random_writes_over_rounds() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map a anonymous 3000");
    workload.tell("map b anonymous 500");
    workload.tell("write a 0 2000 1");
    workload.tell("zero a 2000 100");
    let (mut source, mut store) = (workload.source(), Store::default());
    let first = round(&mut source, &mut store, 0);
    assert_eq!(first.injected, 1);
    assert!(first.data_pages.0 >= 2000 && first.zero_pages.0 >= 100, "{first:?}");
    for number in 1..6 {
        workload.tell(&format!("scatter a 100 {number}"));
        workload.tell(&format!("scatter b 50 {number}"));
        workload.tell(&format!("zero a {} 3", number * 40));
        workload.tell(&format!("drop a {} 5", number * 70));
        workload.tell(&format!("kernel-write a {}", number * 11));
        let expected = source.peek().unwrap();
        let scan = round(&mut source, &mut store, number);
        assert_eq!((scan.injected, scan.frozen.as_nanos()), (0, 0), "no round but the first stops anything");
        assert!(scan.dirty_pages.0 < 400, "only what was written: {scan:?}");
        assert_eq!(expected, scan.dirty_pages, "peek tells what a round sends");
    }
    workload.tell("scatter a 30 99");
    let last = finish_and_compare(&mut source, &mut store, 6, &[workload.pid()]);
    assert!(last.dirty_pages.0 < 200, "{last:?}");
}
