//! Real processes through the page store, the assembly, the pager and CRIU's
//! restore; each verifies its own memory afterwards.
//!
//! A full dump is the truth: its private pages go into the store and are taken out
//! of the images, which then look as a dump without page payload does.

mod lazy_support;

use ferry_engine::images::assemble;
use ferry_engine::lazy::PagerHandle;
use ferry_transport::wire::control::RestoreMode;
use lazy_support::{Workload, criu, pager_command, report, wait};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use std::fs;
use std::io::IoSliceMut;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Not a test of its own: what the pager process runs.
#[test]
fn pager_process() {
    lazy_support::pager_if_told();
}

fn lazily(mode: &str, results: usize, pause: Duration) {
    let Some(mut workload) = Workload::start(mode, 64) else { return };
    let sealed = workload.dump();
    let mut pager = workload.restore_lazily(sealed, pause);
    workload.go();
    workload.results(results);
    report(pager.wait_drained().unwrap());
}

const SLOW: Duration = Duration::from_millis(2);

#[test]
fn eager_restore() {
    for mode in ["verify", "tree"] {
        let Some(mut workload) = Workload::start(mode, 32) else { return };
        let sealed = workload.dump();
        let assembly = assemble(&workload.images(), sealed, RestoreMode::Eager).unwrap();
        assert!(assembly.lazy.is_empty());
        workload.criu(&["restore", "-d"]);
        workload.go();
        workload.results(if mode == "tree" { 3 } else { 1 });
    }
}

#[test]
fn lazy_restore() {
    lazily("verify", 1, Duration::ZERO);
}

#[test]
fn lazy_restore_faulting() {
    lazily("verify", 1, SLOW);
}

#[test]
fn lazy_restore_of_a_forked_tree() {
    lazily("tree", 3, SLOW);
}

#[test]
fn fork_during_the_fill() {
    lazily("fork", 7, SLOW);
}

#[test]
fn dontneed_during_the_fill() {
    lazily("dontneed", 1, SLOW);
}

#[test]
fn munmap_during_the_fill() {
    lazily("munmap", 1, SLOW);
}

#[test]
fn mremap_during_the_fill() {
    lazily("mremap", 1, SLOW);
}

#[test]
fn mappings_split_during_the_fill() {
    lazily("split", 1, SLOW);
}

#[test]
fn exit_during_the_fill() {
    lazily("exit", 1, SLOW);
}

#[test]
fn kill_during_the_fill() {
    let Some(mut workload) = Workload::start("hang", 64) else { return };
    let sealed = workload.dump();
    let mut pager = workload.restore_lazily(sealed, SLOW);
    workload.go();
    std::thread::sleep(Duration::from_millis(30));
    let pid = nix::unistd::Pid::from_raw(workload.pids[0] as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
    report(pager.wait_drained().unwrap());
}

/// CRIU maps at temporary places and moves: until it says that the tasks are about to
/// run nothing is brought of our own accord, and what somebody waits for is.
#[test]
fn a_held_copy_is_served_and_not_filled() {
    let Some(mut workload) = Workload::start("verify", 64) else { return };
    let sealed = workload.dump();
    let mut pager = workload.pager(sealed, Duration::ZERO);
    let directory = workload.dir.path().to_owned();
    let path = |name: &str| directory.join(name);
    let script = format!(
        "[ \"$CRTOOLS_SCRIPT_ACTION\" = post-restore ] || exit 0\ntouch {dir}/held\nwhile [ -d {dir} -a ! -e {dir}/release ]; do sleep 0.01; done",
        dir = directory.display()
    );
    workload.restore_with(&script);
    wait(|| path("held").exists(), "the copy to be held");
    let arena = workload.arena.clone().unwrap();
    let store = || arena.metadata().unwrap().blocks() * 512;
    let full = store();
    // The largest mapping is the memory that the workload knows by heart.
    let maps = fs::read_to_string(format!("/proc/{}/maps", workload.pids[0])).unwrap();
    let range = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    };
    let (start, _) = maps.lines().filter_map(range).max_by_key(|(start, end)| end - start).unwrap();
    let pid = nix::unistd::Pid::from_raw(workload.pids[0] as i32);
    for page in [0, 1001, 8002] {
        let mut content = [0; 4096];
        let from = RemoteIoVec { base: (start + page * 4096) as usize, len: content.len() };
        let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut content)], &[from]).unwrap();
        assert_eq!(read, content.len());
        let right = |(at, byte): (usize, &u8)| *byte == (page * 31 + at as u64 * 7 + (page >> 8) + 1) as u8;
        assert!(content.iter().enumerate().all(right), "page {page}");
    }
    assert_eq!(store(), full, "filled before the tasks were about to run");
    fs::write(path("release"), "").unwrap();
    assert!(workload.restoring().wait().unwrap().success());
    pager.wait_restored().unwrap();
    workload.go();
    workload.results(1);
    report(pager.wait_drained().unwrap());
    assert!(store() < full / 10, "what was brought was not given back");
}

#[test]
fn the_pager_survives_its_engine() {
    let Some(mut workload) = Workload::start("verify", 64) else { return };
    let sealed = workload.dump();
    drop(workload.restore_lazily(sealed, SLOW));
    workload.go();
    workload.results(1);
}

#[test]
fn a_parked_pager_leaves_with_its_engine() {
    let Some(_) = criu() else { return };
    let dir = tempfile::tempdir().unwrap();
    let pager = PagerHandle::spawn_command(&mut pager_command(), dir.path()).unwrap();
    let pid = pager.pid();
    drop(pager);
    let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    wait(|| state().is_empty() || state().contains(") Z "), "the parked pager to leave");
}

/// What the fill costs in time and memory, for a workload that leaves its memory
/// alone, one that reads it in order, and one that reads here and there.
///
/// `cargo test --release -p ferry-engine --test lazy_restore measure -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn measure() {
    for (mode, mebibytes, touched) in
        [("verify", 64, "no"), ("verify", 1024, "no"), ("verify", 1024, "yes"), ("hang", 1024, "yes")]
    {
        println!("--- {mode}, {mebibytes} MiB, touched meanwhile: {touched}");
        let Some(mut workload) = Workload::start(mode, mebibytes) else { return };
        let sealed = workload.dump();
        let mut pager = workload.pager(sealed, Duration::ZERO);
        let meter = Meter::of(&workload, pager.pid());
        workload.restore();
        if touched == "yes" {
            workload.go();
        }
        report(pager.wait_drained().unwrap());
        meter.stop();
        workload.go();
        if mode != "hang" {
            workload.results(1);
        }
    }
}

/// Watches what store, workload and pager take together.
struct Meter {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Meter {
    fn of(workload: &Workload, pager: u32) -> Meter {
        let (arena, pids) = (workload.arena.clone().unwrap(), workload.pids.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut peak, mut first, mut last) = ((0, 0, 0), 0, 0);
            while !told.load(Ordering::Relaxed) {
                let store = arena.metadata().unwrap().blocks() / 2;
                let copy: u64 = pids.iter().map(|pid| anonymous(*pid)).sum();
                let worker: u64 = children(pager).into_iter().map(anonymous).sum();
                first = first.max(store);
                last = copy.max(last);
                peak = peak.max((store + copy + worker, copy, worker));
                std::thread::sleep(Duration::from_millis(1));
            }
            let (all, copy, worker) = peak;
            println!(
                "KiB: store at first {first}, copy at last {last}, peak of all {all} (copy {copy}, worker {worker})"
            );
            println!("peak: {:.1} % of the copy's memory", all as f64 * 100.0 / last as f64);
        });
        Meter { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// KiB of anonymous memory in a process.
fn anonymous(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
}

fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}
