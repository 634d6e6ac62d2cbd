//! The native memory source against real processes: what it says it sent is,
//! after any number of rounds and whatever the workload did in between, exactly
//! what the workload holds.

mod native_support;

use ferry_engine::memory::{MemoryError, MemorySource};
use ferry_transport::page::Round;
use native_support::*;
use std::io::Write;

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
    source.disarm();
    workload.tell("scatter a 30 100");
}

#[test]
fn threads_that_never_rest() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map a anonymous 4000");
    workload.tell("map b anonymous 40");
    workload.tell("writers a 2");
    workload.tell("writers b 2");
    let (mut source, mut store) = (workload.source(), Store::default());
    for number in 0..25 {
        round(&mut source, &mut store, number);
    }
    finish_and_compare(&mut source, &mut store, 25, &[workload.pid()]);
    // A freeze that came to nothing: it runs on, and is followed on.
    for number in 26..30 {
        round(&mut source, &mut store, number);
    }
    finish_and_compare(&mut source, &mut store, 30, &[workload.pid()]);
}

#[test]
fn mappings_that_move_grow_and_are_replaced() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    let (mut source, mut store) = (workload.source(), Store::default());
    for area in ["a", "b", "c", "d", "e"] {
        workload.tell(&format!("map {area} anonymous 64"));
        workload.tell(&format!("write {area} 0 64 1"));
    }
    round(&mut source, &mut store, 0);
    for number in 1..8 {
        workload.tell(&format!("grow a {}", 64 + number * 300));
        workload.tell(&format!("write a {} 10 {number}", 64 + number * 300 - 20));
        workload.tell("map-again b");
        workload.tell(&format!("write b {number} 2 {number}"));
        // d, tracked and clean, over c, tracked and clean: everything else there.
        workload.tell("move-over d c");
        workload.tell("map c anonymous 64");
        workload.tell(&format!("write c 0 {} 7", number * 5));
        if number % 2 == 0 {
            round(&mut source, &mut store, number * 2);
        }
        workload.tell(&format!("write d {number} 1 {number}"));
        workload.tell(&format!("scatter a 5 {number}"));
        workload.tell("unmap e");
        workload.tell("map e anonymous 64");
        workload.tell(&format!("write e 3 {number} {number}"));
        round(&mut source, &mut store, number * 2 + 1);
    }
    workload.tell("move-over d c");
    finish_and_compare(&mut source, &mut store, 30, &[workload.pid()]);
}

#[test]
fn protected_memory_and_guards() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map a anonymous 300");
    workload.tell("write a 0 300 1");
    workload.tell("protect a 10 50 none");
    workload.tell("protect a 100 50 read");
    workload.tell("map g anonymous 30");
    workload.tell("write g 0 30 5");
    workload.send("guard g 3 4");
    if !workload.line().starts_with("ok") {
        println!("no guards on this kernel");
    }
    let (mut source, mut store) = (workload.source(), Store::default());
    round(&mut source, &mut store, 0);
    workload.tell("protect a 10 50 write");
    workload.tell("write a 20 5 3");
    workload.tell("protect a 15 20 none");
    workload.tell("protect a 200 20 none");
    workload.tell("write g 20 2 9");
    round(&mut source, &mut store, 1);
    workload.tell("protect a 200 20 write");
    workload.tell("write a 210 2 3");
    workload.tell("protect a 200 20 none");
    finish_and_compare(&mut source, &mut store, 2, &[workload.pid()]);
}

#[test]
fn private_mappings_of_files() {
    if !can_run() {
        return;
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for page in 0..200u32 {
        file.write_all(&page.wrapping_mul(2_654_435_761).to_le_bytes().repeat(1024)).unwrap();
    }
    file.write_all(b"and a bit of a page").unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let mut workload = Workload::commanded();
    let start = u64::from_str_radix(&workload.tell(&format!("map f {path} 201")), 16).unwrap();
    workload.tell("touch f 0 100");
    workload.tell("write f 10 5 1");
    workload.tell("write f 150 5 1");
    workload.tell("map z /dev/zero 50");
    workload.tell("write z 10 5 1");
    workload.tell("touch z 20 20");
    let (mut source, mut store) = (workload.source(), Store::default());
    round(&mut source, &mut store, 0);
    workload.tell("write f 11 1 2");
    workload.tell("write f 200 1 2");
    let scan = round(&mut source, &mut store, 1);
    assert!(scan.dirty_pages.0 < 60, "only copies are sent: {scan:?}");
    // Copies that are dropped: the file's own pages show again.
    workload.tell("drop f 12 2");
    workload.tell("drop f 150 2");
    workload.tell("touch f 150 1");
    workload.tell("drop z 12 1");
    let scan = round(&mut source, &mut store, 2);
    assert!(scan.notes.is_empty(), "{scan:?}");
    finish_and_compare(&mut source, &mut store, 3, &[workload.pid()]);
    let freeze = Freeze::tree(&[workload.pid()]);
    let (_, spaces) = source.finish(Round(4), &mut store).unwrap();
    let present = present_in(&spaces, start, 201);
    assert!((7..=11).contains(&present), "the copies that are left, and perhaps markers: {present}");
    drop(freeze);
}

#[test]
fn memory_that_cannot_be_tracked_is_sent_where_it_changed() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.send("map u droppable 2000");
    if !workload.line().starts_with("ok") {
        println!("skipped: the kernel has no memory that it cannot track (Linux 6.11)");
        return;
    }
    workload.tell("write u 0 1500 1");
    workload.tell("zero u 1500 100");
    workload.tell("map a anonymous 100");
    let (mut source, mut store) = (workload.source(), Store::default());
    let first = round(&mut source, &mut store, 0);
    assert!(first.notes.iter().any(|note| note.contains("cannot be tracked")), "{first:?}");
    assert!(first.data_pages.0 >= 1500 && first.unchanged_pages.0 == 0, "{first:?}");
    // Nothing, something, back to what it was, to zeroes, and away.
    let quiet = round(&mut source, &mut store, 1);
    assert!(quiet.dirty_pages.0 < 50 && quiet.unchanged_pages.0 >= 1600, "{quiet:?}");
    workload.tell("write u 100 40 2");
    let changed = round(&mut source, &mut store, 2);
    assert!((40..90).contains(&changed.dirty_pages.0), "{changed:?}");
    workload.tell("write u 100 20 1");
    let back = round(&mut source, &mut store, 3);
    assert!((20..70).contains(&back.dirty_pages.0), "what it was once is not what was sent last: {back:?}");
    workload.tell("write u 1550 5 7");
    workload.tell("zero u 200 5");
    workload.tell("drop u 300 5");
    round(&mut source, &mut store, 4);
    workload.tell("write u 300 5 1");
    workload.tell("write u 110 3 9");
    let last = finish_and_compare(&mut source, &mut store, 5, &[workload.pid()]);
    assert!(last.dirty_pages.0 < 60 && last.unchanged_pages.0 >= 1500, "{last:?}");
    // A freeze that came to nothing, then another one.
    workload.tell("write u 110 3 1");
    let again = finish_and_compare(&mut source, &mut store, 6, &[workload.pid()]);
    assert!(again.dirty_pages.0 < 60, "{again:?}");
}

#[test]
fn memory_that_can_be_tracked_only_sometimes() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    let at = workload.tell("map a anonymous 64");
    workload.send(&format!("map-at u droppable 64 {at}"));
    if !workload.line().starts_with("ok") {
        println!("skipped: the kernel has no memory that it cannot track (Linux 6.11)");
        return;
    }
    let (mut source, mut store) = (workload.source(), Store::default());
    for turn in 0..4 {
        // The same content, by turns where it cannot be tracked and where it can.
        workload.tell("write u 0 64 1");
        round(&mut source, &mut store, turn * 3);
        workload.tell(&format!("map-at u anonymous 64 {at}"));
        workload.tell("write u 0 64 2");
        round(&mut source, &mut store, turn * 3 + 1);
        workload.tell("write u 5 3 3");
        if turn % 2 == 0 {
            round(&mut source, &mut store, turn * 3 + 2);
        }
        workload.tell(&format!("map-at u droppable 64 {at}"));
    }
    workload.tell("write u 0 64 1");
    finish_and_compare(&mut source, &mut store, 20, &[workload.pid()]);
}

#[test]
fn a_sink_that_closes_loses_nothing_of_what_cannot_be_tracked() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.send("map u droppable 3000");
    if !workload.line().starts_with("ok") {
        println!("skipped: the kernel has no memory that it cannot track (Linux 6.11)");
        return;
    }
    workload.tell("write u 0 3000 1");
    let (mut source, mut store) = (workload.source(), Store::default());
    for (number, patience) in [0, 3, 7, 2].into_iter().enumerate() {
        store.patience = Some(patience);
        let outcome = source.round(Round(number as u32), &mut store);
        assert!(outcome.is_err() || number > 2, "{outcome:?}");
        workload.tell(&format!("scatter u 900 {number}"));
    }
    store.patience = None;
    finish_and_compare(&mut source, &mut store, 4, &[workload.pid()]);
}

#[test]
fn transparent_huge_pages() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map h huge 4096");
    workload.tell("write h 0 3000 1");
    workload.tell("touch h 3584 10");
    let (mut source, mut store) = (workload.source(), Store::default());
    round(&mut source, &mut store, 0);
    for number in 1..4 {
        workload.tell(&format!("scatter h 40 {number}"));
        workload.tell(&format!("drop h {} 3", number * 100));
        round(&mut source, &mut store, number);
    }
    workload.tell("scatter h 10 9");
    let scan = finish_and_compare(&mut source, &mut store, 4, &[workload.pid()]);
    println!("after huge pages: {scan:?}");
}

#[test]
fn huge_pages_of_hugetlb() {
    if !can_run() {
        return;
    }
    let setting = "/proc/sys/vm/nr_hugepages";
    let before = std::fs::read_to_string(setting).unwrap_or_default();
    let wanted = before.trim().parse::<u64>().unwrap_or(0) + 4;
    if std::fs::write(setting, wanted.to_string()).is_err()
        || std::fs::read_to_string(setting).unwrap_or_default().trim() != wanted.to_string()
    {
        let _ = std::fs::write(setting, before);
        println!("skipped: no huge pages can be reserved");
        return;
    }
    struct Restore(String);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = std::fs::write("/proc/sys/vm/nr_hugepages", &self.0);
        }
    }
    let _restore = Restore(before);
    let mut workload = Workload::commanded();
    let start = u64::from_str_radix(&workload.tell("map h hugetlb 2048"), 16).unwrap();
    workload.tell("write h 0 700 1");
    let (mut source, mut store) = (workload.source(), Store::default());
    let scan = round(&mut source, &mut store, 0);
    assert!(scan.notes.is_empty(), "{scan:?}");
    workload.tell("write h 100 3 2");
    let scan = round(&mut source, &mut store, 1);
    assert!((512..700).contains(&scan.dirty_pages.0), "one huge page: {scan:?}");
    workload.tell("write h 1025 3 2");
    let freeze = Freeze::tree(&[workload.pid()]);
    let (_, spaces) = source.finish(Round(2), &mut store).unwrap();
    assert_eq!(present_in(&spaces, start, 2048), 1536);
    drop(freeze);
    // Last, because the comparison reads, and thereby makes, the fourth huge page.
    finish_and_compare(&mut source, &mut store, 3, &[workload.pid()]);
    drop(workload);
}

#[test]
fn a_sparse_reservation_costs_nothing() {
    if !can_run() {
        return;
    }
    let pages = 256u64 << 18;
    let mut workload = Workload::commanded();
    let start = u64::from_str_radix(&workload.tell(&format!("map s reserved {pages}")), 16).unwrap();
    let table_kib = |workload: &Workload| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", workload.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmPTE")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    for page in [5, 1 << 20, (200 << 18) + 3] {
        workload.tell(&format!("protect s {page} 4 write"));
        workload.tell(&format!("write s {page} 2 1"));
    }
    let before = table_kib(&workload);
    let (mut source, mut store) = (workload.source(), Store::default());
    let started = std::time::Instant::now();
    let scan = round(&mut source, &mut store, 0);
    println!("round 0 with 256 GiB reserved: {:?}, scan {:?}", started.elapsed(), scan.scan);
    workload.tell(&format!("write s {} 2 7", 1 << 20));
    let scan = round(&mut source, &mut store, 1);
    println!("round 1 with 256 GiB reserved: scan {:?}", scan.scan);
    let scan = finish_and_compare(&mut source, &mut store, 2, &[workload.pid()]);
    println!("finish with 256 GiB reserved: scan {:?}", scan.scan);
    assert!(table_kib(&workload) <= before + 64, "page tables grew: {before} to {}", table_kib(&workload));
    let freeze = Freeze::tree(&[workload.pid()]);
    let (_, spaces) = source.finish(Round(3), &mut store).unwrap();
    assert_eq!(present_in(&spaces, start, pages), 6);
    drop(freeze);
}

#[test]
fn swapped_pages() {
    if !can_run() {
        return;
    }
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() < 2 {
        println!("skipped: no swap here");
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map a anonymous 2000");
    workload.tell("write a 0 2000 1");
    workload.tell("page-out a 0 1000");
    let (mut source, mut store) = (workload.source(), Store::default());
    round(&mut source, &mut store, 0);
    workload.tell("page-out a 0 2000");
    workload.tell("write a 100 10 2");
    let scan = round(&mut source, &mut store, 1);
    assert!(scan.dirty_pages.0 < 200, "swapping is not writing: {scan:?}");
    workload.tell("page-out a 0 2000");
    workload.tell("write a 300 10 2");
    finish_and_compare(&mut source, &mut store, 2, &[workload.pid()]);
}

#[test]
fn a_sink_that_closes_loses_nothing() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map a anonymous 5000");
    workload.tell("map b anonymous 3000");
    workload.tell("write a 0 4000 1");
    workload.tell("write b 0 3000 1");
    let (mut source, mut store) = (workload.source(), Store::default());
    let mut number = 0;
    for patience in [0, 1, 3, 7, 12] {
        store.patience = Some(patience);
        let outcome = source.round(Round(number), &mut store);
        assert!(matches!(outcome, Err(MemoryError::Sink(_))), "{outcome:?}");
        workload.tell(&format!("scatter a 2000 {number}"));
        number += 1;
    }
    store.patience = None;
    round(&mut source, &mut store, number);
    // Much is owed again, at random places, when the freeze comes.
    for patience in [2, 0] {
        workload.tell(&format!("scatter a 900 {patience}"));
        workload.tell(&format!("scatter b 900 {patience}"));
        number += 1;
        store.patience = Some(patience);
        source.round(Round(number), &mut store).unwrap_err();
    }
    let freeze = Freeze::tree(&[workload.pid()]);
    number += 1;
    store.patience = Some(1);
    source.finish(Round(number), &mut store).unwrap_err();
    store.patience = None;
    drop(freeze);
    finish_and_compare(&mut source, &mut store, number + 1, &[workload.pid()]);
}

#[test]
fn finish_without_any_round_sends_everything() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map a anonymous 500");
    workload.tell("write a 0 400 1");
    let (mut source, mut store) = (workload.source(), Store::default());
    let scan = finish_and_compare(&mut source, &mut store, 0, &[workload.pid()]);
    assert_eq!(scan.injected, 0, "nothing is injected at the freeze");
    assert!(scan.dirty_pages.0 > 400);
}
