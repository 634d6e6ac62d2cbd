//! Docker containers that move between two hosts, each with an engine of its own.

mod support;

use ferry_lab::docker::Image;
use support::dock::{self, Dock};

const COUNT: &str = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 0.1; done";

#[test]
fn a_counting_container_goes_on_at_the_other_host() {
    let Some(rig) = dock::rig("docker-count") else { return };
    let dock = Dock::new(&rig);
    dock.image(&Image::busybox(), "busybox");
    let run = "run --detach --name looper2 --security-opt seccomp:unconfined busybox /bin/sh -c";
    dock.here().expect(run.split(' ').chain([COUNT])).unwrap();
    let before = *dock.counts_beyond(dock.here(), "looper2", 3).last().unwrap();
    dock.move_on("looper2", &[]);
    let numbers = dock.counts_beyond(dock.here(), "looper2", before + 5);
    assert!(numbers[0] > 3, "it began anew: {numbers:?}");
    dock.stop();
}
