//! Real servers with real clients move there and back three times in a row.

mod support;

use ferry_lab::apps::load::Load;
use ferry_lab::apps::nginx::{self, Http, Workers};
use ferry_lab::apps::redis::{self, Redis, RedisLoad, Resp};
use ferry_lab::hosts::Program;
use ferry_transport::units::Bytes;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;
use support::Rig;
use support::counter::{Counter, finish};
use support::rig::SERVICE;

/// Load goes on for this long between moves.
const PAUSE: Duration = Duration::from_millis(500);

fn pause() {
    std::thread::sleep(PAUSE);
}

#[test]
fn redis_with_500_megabytes_and_10_000_commands_a_second() {
    let Some(rig) = Rig::new("redis", &[redis::SERVER]) else { return };
    let address = SocketAddr::from((SERVICE, 6379));
    let (uid, gid) = rig.user();
    let server = rig.start(redis::server(address).user(uid, gid));
    let mut control = rig.connect(|| Redis::connect(address));
    control.set_patience(Duration::from_secs(120)).unwrap();
    assert_eq!(control.populate(Bytes(500_000_000)).unwrap(), 500_000);
    let before = control.digest().unwrap();
    // At rest: nothing is lost.
    rig.move_on(server.pid, &[]);
    assert_eq!(control.digest().unwrap(), before, "the data set changed on the way");
    rig.move_on(server.pid, &[]);
    assert_eq!(control.digest().unwrap(), before, "the data set changed on the way back");
    // Under load.
    let clients = (0..4).map(|name| rig.connect(|| RedisLoad::connect(address, name))).collect();
    let load = Load::start(clients, 2500.0);
    rig.there_and_back(server.pid, pause);
    finish(load);
    let size = control.command(&["DBSIZE"]).unwrap();
    assert!(matches!(size, Resp::Integer(keys) if keys >= 500_000), "{size:?}");
}

#[test]
fn nginx_under_load() {
    let Some(rig) = Rig::new("nginx", &[nginx::SERVER]) else { return };
    let address = SocketAddr::from((SERVICE, 8080));
    let workers = if rig.user().0 == 0 { Workers::Root } else { Workers::Nobody };
    let (program, content) = nginx::server(rig.here(), address, workers).unwrap();
    let server = rig.start(program);
    let clients = (0..4).map(|_| rig.connect(|| Http::connect(address))).collect();
    let mut large = rig.connect(|| Http::connect(address));
    let load = Load::start(clients, 500.0);
    rig.there_and_back(server.pid, || {
        pause();
        assert!(large.get(nginx::CONTENT).unwrap() == content, "a file was served wrong");
    });
    finish(load);
}

#[test]
fn python_with_threads_and_children() {
    let Some(rig) = Rig::new("python", &["/usr/bin/python3"]) else { return };
    let script = rig.install("counter.py");
    counter_server(&rig, Program::new("/usr/bin/python3").args([script]));
}

#[test]
fn nodejs() {
    let Some(rig) = Rig::new("nodejs", &["/usr/bin/node"]) else { return };
    let script = rig.install("counter.js");
    // libuv's io_uring, where its version has it, cannot be carried by CRIU.
    counter_server(&rig, Program::new("/usr/bin/node").args([script]).env("UV_USE_IO_URING", "0"));
}

fn counter_server(rig: &Rig, program: Program) {
    let address = SocketAddr::from((SERVICE, 7100));
    let (uid, gid) = rig.user();
    let server = rig
        .start(program.args([SERVICE.to_string(), "7100".into()]).user(uid, gid).stderr("/srv/server.err"));
    let clients = (0..4).map(|_| rig.connect(|| Counter::connect(address))).collect();
    let load = Load::start(clients, 200.0);
    rig.there_and_back(server.pid, pause);
    finish(load);
}

#[test]
fn a_shell_loop_writing_numbers() {
    let Some(rig) = Rig::new("shell", &[]) else { return };
    let script = "i=0; while :; do i=$((i+1)); echo $i >>/srv/numbers; sleep 0.01; done";
    let numbers = rig.here().path("/srv/numbers");
    fs::write(&numbers, "").unwrap();
    fs::set_permissions(&numbers, fs::Permissions::from_mode(0o666)).unwrap();
    let (uid, gid) = rig.user();
    chown(&numbers, Some(uid), Some(gid)).unwrap();
    let shell = rig.start(Program::shell(script).user(uid, gid));
    let mut seen = 0;
    rig.there_and_back(shell.pid, || {
        pause();
        let text = fs::read_to_string(rig.here().path("/srv/numbers")).unwrap();
        // The last line may be in the making.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        let count =
            complete.lines().enumerate().map(|(i, line)| assert_eq!(line, (i + 1).to_string())).count();
        assert!(count > seen, "the loop stands still at {count}");
        seen = count;
    });
    println!("  {seen} numbers, none missing, none twice");
}
