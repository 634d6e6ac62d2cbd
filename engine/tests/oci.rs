//! Real runc, real CRIU: containers are frozen, held, rolled back, committed,
//! restored, released and discarded.

mod criu_support;
mod oci_support;

use criu_support::{count, goes_on_from};
use ferry_engine::check::{Severity, SourceOptions};
use ferry_engine::criu::rpc::PagePayload;
use ferry_engine::target::oci::OciTarget;
use ferry_engine::target::{HeldDump, RestorePlan, Restorer, Target};
use ferry_transport::wire::control::TcpMode;
use oci_support::Stage;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const COUNTS: &str = "n=0; while :; do n=$((n+1)); echo $n >> /count; done";

#[test]
fn a_rolled_back_container_runs_on_under_its_runtime() {
    let Some(stage) = Stage::set(COUNTS) else { return };
    stage.run(Stdio::null());
    count(&stage.count_file());
    let mut target = stage.target();
    for pinned in [false, true] {
        let images = stage.make(&format!("images-{pinned}"));
        let frozen = target.freeze(&images, TcpMode::Established, Duration::from_secs(10)).unwrap();
        let mut held = frozen.hold().unwrap();
        eprintln!("{:?}", held.times());
        let standing = count(&stage.count_file());
        if pinned {
            held.pin().unwrap();
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(count(&stage.count_file()), standing, "frozen");
        held.roll_back().unwrap();
        goes_on_from(&stage.count_file(), standing);
        is_under_runc(&stage, "source");
    }
}

/// Freezes it with all its pages in the images, and holds.
fn freeze(stage: &Stage, target: &mut OciTarget, images: &Path) -> (Box<dyn HeldDump>, u64) {
    let frozen = target.freeze(images, TcpMode::Established, Duration::from_secs(10)).unwrap();
    let mut held = frozen.hold().unwrap();
    held.pin().unwrap();
    (held, count(&stage.count_file()))
}

fn no_number_is_lost_or_repeated(stage: &Stage) {
    let numbers = std::fs::read_to_string(stage.count_file()).unwrap();
    let lines = numbers.rsplit_once('\n').unwrap().0.lines();
    assert!(lines.enumerate().all(|(at, line)| line == (at + 1).to_string()), "a number is lost or repeated");
}

fn is_under_runc(stage: &Stage, side: &str) {
    assert_eq!(stage.status(side).as_deref(), Some("running"));
    assert!(stage.runc(side, &["exec", &stage.id, "echo", "in"]).status.success());
}

#[test]
fn a_container_goes_on_from_where_it_was() {
    let Some(stage) = Stage::set(COUNTS) else { return };
    stage.run(Stdio::null());
    count(&stage.count_file());
    let mut target = stage.target().with_pages(PagePayload::Criu);
    let mut restorer = stage.restorer(&target);
    let plan = stage.plan();
    restorer.prepare(&plan.work).unwrap();
    let (held, standing) = freeze(&stage, &mut target, &plan.images);

    let copy = restorer.restore(&plan).unwrap();
    assert_eq!(copy.tasks().len(), 1);
    copy.discard().unwrap();
    stage.nothing_is_left("destination");
    assert_eq!(count(&stage.count_file()), standing);

    let copy = restorer.restore(&plan).unwrap();
    assert_eq!(count(&stage.count_file()), standing, "held");
    copy.release(&mut || {}).unwrap();
    goes_on_from(&stage.count_file(), standing);
    held.commit().unwrap();
    stage.nothing_is_left("source");
    is_under_runc(&stage, "destination");
    no_number_is_lost_or_repeated(&stage);
}

#[test]
fn a_restore_that_fails_leaves_nothing() {
    let Some(stage) = Stage::set(COUNTS) else { return };
    stage.run(Stdio::null());
    count(&stage.count_file());
    let mut target = stage.target().with_pages(PagePayload::Criu);
    let mut restorer = stage.restorer(&target);
    let plan = stage.plan();
    let (held, standing) = freeze(&stage, &mut target, &plan.images);
    std::fs::write(plan.images.join("files.img"), b"no image").unwrap();
    let error = restorer.restore(&plan).err().expect("it fails").to_string();
    assert!(error.contains("restore failed"), "{error}");
    stage.nothing_is_left("destination");
    held.roll_back().unwrap();
    goes_on_from(&stage.count_file(), standing);
    is_under_runc(&stage, "source");
    no_number_is_lost_or_repeated(&stage);
}

#[test]
fn a_restore_that_never_begins_leaves_nothing() {
    let Some(stage) = Stage::set(COUNTS) else { return };
    stage.run(Stdio::null());
    let target = stage.target();
    for killed in [false, true] {
        let mut restorer = stage.restorer(&target);
        restorer.prepare(&stage.make("work")).unwrap();
        assert!(stage.directory.path().join("destination").join(&stage.id).exists());
        if killed {
            // Half-made, and the mount of the root in it.
            kill_runc(&stage, "restore");
        }
        drop(restorer);
        stage.nothing_is_left("destination");
    }
    is_under_runc(&stage, "source");
}

/// Whatever is killed while both sides hold, the source can be let run again.
#[test]
fn killed_runtimes_and_crius_decide_nothing() {
    let Some(stage) = Stage::set(COUNTS) else { return };
    stage.run(Stdio::null());
    count(&stage.count_file());
    for kill in [kill_source_runtime, kill_source_criu, kill_destination_runtime, kill_destination_criu] {
        let mut target = stage.target().with_pages(PagePayload::Criu);
        let mut restorer = stage.restorer(&target);
        let plan = stage.plan();
        let (held, standing) = freeze(&stage, &mut target, &plan.images);
        let copy = restorer.restore(&plan).unwrap();
        kill(&stage, &plan);
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(count(&stage.count_file()), standing, "nobody runs");
        copy.discard().unwrap();
        stage.nothing_is_left("destination");
        assert_eq!(count(&stage.count_file()), standing, "nobody runs");
        held.roll_back().unwrap();
        goes_on_from(&stage.count_file(), standing);
        is_under_runc(&stage, "source");
        std::fs::remove_dir_all(&plan.images).unwrap();
    }
    no_number_is_lost_or_repeated(&stage);
}

/// After the commit nothing is asked of a runtime any more.
#[test]
fn a_commit_needs_no_runtime() {
    let Some(stage) = Stage::set(COUNTS) else { return };
    stage.run(Stdio::null());
    count(&stage.count_file());
    let mut target = stage.target().with_pages(PagePayload::Criu);
    let mut restorer = stage.restorer(&target);
    let plan = stage.plan();
    let (held, standing) = freeze(&stage, &mut target, &plan.images);
    let copy = restorer.restore(&plan).unwrap();
    kill_source_runtime(&stage, &plan);
    kill_destination_runtime(&stage, &plan);
    copy.release(&mut || {}).unwrap();
    goes_on_from(&stage.count_file(), standing);
    held.commit().unwrap();
    stage.nothing_is_left("source");
    is_under_runc(&stage, "destination");
    no_number_is_lost_or_repeated(&stage);
}

#[test]
fn a_session_from_outside_is_named_and_refused() {
    let Some(stage) = Stage::set(COUNTS) else { return };
    stage.run(Stdio::null());
    count(&stage.count_file());
    stage.exec_in_background(&["sleep", "1000"]);
    let mut target = stage.target();
    let error = target.prepare().unwrap_err().to_string();
    assert!(error.contains("exec"), "{error}");
    let findings =
        ferry_engine::target::oci::check(&stage.id, &stage.runtime("source"), &SourceOptions::default());
    assert!(
        findings.iter().any(|finding| finding.severity == Severity::Blocks && finding.what.contains("exec"))
    );
    goes_on_from(&stage.count_file(), count(&stage.count_file()));
}

fn kill_runc(stage: &Stage, verb: &str) {
    // The runtime and nothing that it started.
    let is_it = |line: &[u8]| {
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.first().is_some_and(|first| first.ends_with(b"runc"))
            && words.contains(&verb.as_bytes())
            && words.contains(&stage.id.as_bytes())
    };
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| is_it(&line)) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
            killed += 1;
        }
    }
    assert_eq!(killed, 1, "runc {verb}");
}

fn kill_source_runtime(stage: &Stage, _: &RestorePlan) {
    kill_runc(stage, "checkpoint");
}

fn kill_destination_runtime(stage: &Stage, _: &RestorePlan) {
    kill_runc(stage, "restore");
}

fn kill_source_criu(_: &Stage, plan: &RestorePlan) {
    criu_support::kill_process_with_open(&plan.images.join("dump.log"));
}

fn kill_destination_criu(_: &Stage, plan: &RestorePlan) {
    criu_support::kill_process_with_open(&plan.work.join("restore.log"));
}
