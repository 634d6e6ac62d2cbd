//! What following costs; prints, asserts nothing about time.
//! `cargo test --release -p ferry-engine --test native_speed -- --nocapture`

mod native_support;

use ferry_engine::memory::MemorySource;
use ferry_transport::page::Round;
use native_support::*;
use std::time::{Duration, Instant};

/// Of this thread: what a busy machine does not lengthen.
fn processor_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    Duration::new(time.tv_sec() as u64, time.tv_nsec() as u32)
}

#[test]
fn costs_per_gib() {
    if !can_run() {
        return;
    }
    let mut workload = Workload::commanded();
    workload.tell("map a anonymous 262144");
    workload.tell("write a 0 262144 1");
    let mut source = workload.source();
    let mut sink = Counter::default();
    let mut timed = |what: &str, round: &mut dyn FnMut(&mut Counter) -> (Duration, Duration, u64)| {
        let before = sink.bytes;
        let (started, used) = (Instant::now(), processor_time());
        let (scan, frozen, pages) = round(&mut sink);
        let (elapsed, used) = (started.elapsed(), processor_time() - used);
        let rate = (sink.bytes - before) as f64 / used.as_secs_f64() / 1e9;
        println!(
            "{what}: {elapsed:?} (on a processor {used:?}), scan {scan:?}, stopped {frozen:?}, {pages} pages, \
             {rate:.2} GB per processor second"
        );
    };
    let mut run = |what: &str, number: u32, source: &mut ferry_engine::memory::native::NativeSource| {
        timed(what, &mut |sink| {
            let scan = source.round(Round(number), sink).unwrap();
            (scan.scan, scan.frozen, scan.dirty_pages.0)
        });
    };
    run("round 0, 1 GiB", 0, &mut source);
    for number in 1..4 {
        run("round, 1 GiB clean", number, &mut source);
    }
    workload.tell("scatter a 2600 3");
    run("round, 1 % scattered", 4, &mut source);
    workload.tell("scatter a 26000 3");
    run("round, 10 % scattered", 5, &mut source);
    let started = Instant::now();
    let peeked = source.peek().unwrap();
    println!("peek: {:?} ({} pages)", started.elapsed(), peeked.0);
    let freeze = Freeze::tree(&[workload.pid()]);
    for _ in 0..3 {
        let started = Instant::now();
        let (scan, spaces) = source.finish(Round(6), &mut Counter::default()).unwrap();
        let present: u64 = spaces.iter().flat_map(|s| &s.present).map(|range| range.count.0).sum();
        println!(
            "finish: {:?}, scan {:?}, {} dirty of {present} present",
            started.elapsed(),
            scan.scan,
            scan.dirty_pages.0
        );
    }
    drop(freeze);
    let started = Instant::now();
    source.disarm();
    println!("disarm: {:?}", started.elapsed());
}
