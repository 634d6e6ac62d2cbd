//! `--deadline`: a round that the network cannot do in time ends the migration.

mod support;

use ferry_lab::hosts::Program;
use std::fs;
use std::time::{Duration, Instant};
use support::Rig;
use support::rig::{PATIENCE, migrate};

#[test]
fn a_round_past_the_deadline_ends_the_migration_and_the_workload_runs_on() {
    let Some(rig) = Rig::new("deadline", &["/usr/bin/python3"]) else { return };
    let script = "import os, sys, time\n\
        memory = os.urandom(64 << 20)\n\
        step = 0\n\
        while True:\n\
        \x20   step += 1\n\
        \x20   open('/srv/step', 'w').write(f'{step}.')\n\
        \x20   time.sleep(0.005)\n";
    let workload = rig.start(Program::new("/usr/bin/python3").args(["-c", script]));
    let step = || -> Option<u64> {
        fs::read_to_string(rig.here().path("/srv/step")).ok()?.strip_suffix('.')?.parse().ok()
    };
    let goes_on = || {
        let deadline = Instant::now() + PATIENCE;
        let next = |after: u64| loop {
            assert!(Instant::now() < deadline, "it stands still");
            match step() {
                Some(now) if now > after => return now,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        next(next(0));
    };
    goes_on();
    // The network as allowed takes a minute for its memory.
    let slow = ["--deadline", "300ms", "--freeze-deadline", "300ms", "--max-bandwidth", "1M"];
    let given_up = migrate(rig.here(), rig.there(), workload.pid, &slow).unwrap_err().to_string();
    assert!(given_up.contains("the deadline of 300ms passed in round 0"), "{given_up}");
    assert!(rig.here().outer_pid(workload.pid).is_ok() && rig.there().outer_pid(workload.pid).is_err());
    goes_on();
    // With enough of either it moves.
    rig.move_on(workload.pid, &["--deadline", "300ms"]);
    assert!(rig.here().outer_pid(workload.pid).is_ok(), "here is where it is");
}
