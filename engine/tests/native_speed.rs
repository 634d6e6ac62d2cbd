//! What following costs; prints, asserts nothing about time.
//! `cargo test --release -p ferry-engine --test native_speed -- --nocapture`

mod native_support;

use ferry_engine::memory::MemorySource;
use ferry_engine::sys::inject::{InjectionError, run_injector};
use ferry_transport::page::Round;
use native_support::*;
use std::path::Path;
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

/// How long a thread stands still, on a quiet machine and on one with three busy
/// threads a processor.
#[test]
fn stops_by_injection() {
    const INJECTIONS: usize = 200;
    if !can_run() {
        return;
    }
    let processors = std::thread::available_parallelism().unwrap().get();
    for busy_threads in [0, 3 * processors] {
        let mut noise = (busy_threads > 0).then(|| Workload::start(&["spinner", &busy_threads.to_string()]));
        assert!(noise.as_mut().is_none_or(|noise| noise.line() == "ready"));
        let mut workload = Workload::start(&["spinner", "2"]);
        assert_eq!(workload.line(), "ready");
        let mut stops = Vec::new();
        while stops.len() < INJECTIONS {
            match run_injector(Path::new(HELPER), workload.pid()) {
                Ok(taken) => stops.push(taken.stopped),
                Err(InjectionError::NotNow(_)) => {}
                Err(cause) => panic!("{cause}"),
            }
        }
        stops.sort_unstable();
        let at = |share: usize| stops[(stops.len() - 1) * share / 100];
        println!(
            "{INJECTIONS} injections beside {busy_threads} busy threads on {processors} processors: \
             min {:?}, median {:?}, p90 {:?}, p99 {:?}, max {:?}",
            at(0),
            at(50),
            at(90),
            at(99),
            at(100)
        );
        let (words, success) = workload.end();
        assert!(success && words.starts_with("right"), "{words}");
    }
}

/// What the freeze costs of memory that the kernel cannot follow, beside memory of
/// private files, which it can.
#[test]
fn costs_of_what_cannot_be_tracked() {
    const PAGES: usize = 131_072;
    if !can_run() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len((PAGES * 4096) as u64).unwrap();
    for kind in [file.path().to_str().unwrap(), "droppable"] {
        let mut workload = Workload::commanded();
        workload.send(&format!("map u {kind} {PAGES}"));
        if !workload.line().starts_with("ok") {
            println!("skipped: no mapping of kind {kind}");
            continue;
        }
        workload.tell(&format!("write u 0 {PAGES} 1"));
        let mut source = workload.source();
        for number in 0..3 {
            let started = Instant::now();
            let scan = source.round(Round(number), &mut Counter::default()).unwrap();
            let (sent, same) = (scan.dirty_pages.0, scan.unchanged_pages.0);
            println!("{kind}, round {number}: {:?}, {sent} pages sent, {same} unchanged", started.elapsed());
            workload.tell("write u 1000 500 2");
        }
        let freeze = Freeze::tree(&[workload.pid()]);
        let started = Instant::now();
        let (scan, _) = source.finish(Round(3), &mut Counter::default()).unwrap();
        let (sent, same) = (scan.dirty_pages.0, scan.unchanged_pages.0);
        println!("{kind}, finish: {:?}, {sent} pages sent, {same} unchanged", started.elapsed());
        assert!(sent < 2000, "of {PAGES} only what changed: {sent}");
        drop(freeze);
    }
}
