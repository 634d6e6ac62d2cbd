//! Several migrations at once, to one receiver.

mod support;

use ferry_lab::hosts::Program;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use support::Rig;
use support::rig::{FERRY, PATIENCE, PORT, STATE};

#[test]
fn four_workloads_move_at_once() {
    let Some(rig) = Rig::new("together", &["/usr/bin/python3"]) else { return };
    // Each keeps memory of its own and counts in a file of its own.
    let script = "import os, sys, time\n\
        memory = os.urandom(16 << 20)\n\
        before = hash(memory[::4096])\n\
        with open(sys.argv[1], 'ab', buffering=0) as file:\n\
        \x20   step = 0\n\
        \x20   while hash(memory[::4096]) == before:\n\
        \x20       step += 1\n\
        \x20       file.write(b'%d\\n' % step)\n\
        \x20       time.sleep(0.005)\n";
    let (here, there) = (rig.here(), rig.there());
    let files: Vec<String> = (0..4).map(|number| format!("/srv/steps-{number}")).collect();
    let workloads: Vec<_> = files
        .iter()
        .map(|file| rig.start(Program::new("/usr/bin/python3").args(["-c", script, file])))
        .collect();
    // How many steps were done; each once and in order.
    let steps = |file: &str| {
        let text = fs::read_to_string(here.path(file)).unwrap_or_default();
        let complete = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        for (index, line) in complete.lines().enumerate() {
            assert_eq!(line, (index + 1).to_string(), "{file}: a step was lost or done twice");
        }
        complete.lines().count()
    };
    let goes_on = |file: &str| {
        let (before, deadline) = (steps(file), Instant::now() + PATIENCE);
        while steps(file) <= before {
            assert!(Instant::now() < deadline, "{file} stands still");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    files.iter().for_each(|file| goes_on(file));
    let to = SocketAddr::from((there.address(), PORT)).to_string();
    let engines: Vec<_> = workloads
        .iter()
        .map(|workload| {
            let target = format!("pid:{}", workload.pid);
            let migrate = ["migrate", &target, "--to", &to, "--state", STATE];
            let log = format!("/run/migrate-{}", workload.pid);
            here.spawn(Program::new(FERRY).args(migrate).stdout(&log).stderr(&log)).unwrap()
        })
        .collect();
    for (engine, workload) in engines.iter().zip(&workloads) {
        let exit = engine.wait_for(PATIENCE).unwrap().expect("the engine ends");
        let log = || fs::read_to_string(here.path(format!("/run/migrate-{}", workload.pid))).unwrap();
        assert!(exit.success(), "{exit:?}\n{}", log());
        assert!(there.outer_pid(workload.pid).is_ok() && here.outer_pid(workload.pid).is_err());
    }
    files.iter().for_each(|file| goes_on(file));
}
