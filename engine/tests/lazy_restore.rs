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
use std::fs;
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

/// `cargo test --release -p ferry-engine --test lazy_restore measure -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn measure() {
    for mebibytes in [64, 256, 1024] {
        println!("{mebibytes} MiB");
        let Some(mut workload) = Workload::start("verify", mebibytes) else { return };
        let sealed = workload.dump();
        let mut pager = workload.restore_lazily(sealed, Duration::ZERO);
        report(pager.wait_drained().unwrap());
        workload.go();
        workload.results(1);
    }
}
