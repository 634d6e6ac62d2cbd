//! Real runc, real CRIU: containers are frozen, held, rolled back, committed,
//! restored, released and discarded.

mod criu_support;
mod oci_support;

use criu_support::{count, goes_on_from};
use ferry_engine::criu::rpc::PagePayload;
use ferry_engine::target::{Restorer, Target};
use ferry_transport::wire::control::TcpMode;
use oci_support::Stage;
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
        assert_eq!(stage.status("source").as_deref(), Some("running"));
        assert!(stage.runc("source", &["exec", &stage.id, "echo", "in"]).status.success());
    }
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
    let frozen = target.freeze(&plan.images, TcpMode::Established, Duration::from_secs(10)).unwrap();
    let mut held = frozen.hold().unwrap();
    held.pin().unwrap();
    let standing = count(&stage.count_file());

    let copy = restorer.restore(&plan).unwrap();
    assert_eq!(copy.tasks().len(), 1);
    copy.discard().unwrap();
    stage.nothing_is_left("destination");
    assert_eq!(count(&stage.count_file()), standing);

    let copy = restorer.restore(&plan).unwrap();
    assert_eq!(count(&stage.count_file()), standing, "held");
    copy.release().unwrap();
    goes_on_from(&stage.count_file(), standing);
    held.commit().unwrap();
    stage.nothing_is_left("source");
    assert_eq!(stage.status("destination").as_deref(), Some("running"));
    assert!(stage.runc("destination", &["exec", &stage.id, "echo", "in"]).status.success());
    let numbers = std::fs::read_to_string(stage.count_file()).unwrap();
    let lines = numbers.rsplit_once('\n').unwrap().0.lines();
    assert!(lines.enumerate().all(|(at, line)| line == (at + 1).to_string()), "a number is lost or repeated");
}
