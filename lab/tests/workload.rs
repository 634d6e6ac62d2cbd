//! The workload and the probe against each other, inside a lab.

use ferry_lab::hosts::{Exit, Lab, LabOptions, Process, Program};
use ferry_lab::probe::{Probe, ProbeResult};
use ferry_lab::workload::{Client, EXIT_MEMORY_WRONG};
use nix::sys::signal::Signal;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const HELPER: &str = env!("CARGO_BIN_EXE_ferry-lab");
const CRIU: &str = "/var/lib/ferry/criu/bin/criu";

fn lab(name: &str) -> Option<Lab> {
    if !nix::unistd::geteuid().is_root() {
        println!("{name} skipped: test hosts need root");
        return None;
    }
    let helper = Some(PathBuf::from(HELPER));
    Some(Lab::new(name, LabOptions { helper, ..LabOptions::default() }).expect("a lab"))
}

/// Starts a workload on the source and a client of it on the client host.
fn start<'lab>(lab: &'lab Lab, options: &str) -> (Process<'lab>, SocketAddr, Client) {
    let address = SocketAddr::from((lab.source().address(), 7000));
    let program = Program::new(HELPER)
        .arg("workload")
        .args(options.split_whitespace())
        .args(["--listen".to_string(), address.to_string()])
        .stderr("/srv/workload.err");
    let process = lab.source().spawn(program).unwrap();
    let connect = || Client::connect(address, PATIENCE);
    let mut client = lab.client().enter(connect).unwrap().unwrap_or_else(|error| {
        panic!("{error}: {:?}", fs::read_to_string(lab.source().path("/srv/workload.err")))
    });
    client.wait_filled(PATIENCE).unwrap();
    (process, address, client)
}

#[test]
fn a_tree_of_processes_serves_and_checks_itself() {
    let Some(lab) = lab("tree") else { return };
    let options = "--memory 96M --working-set 48M --dirty-rate 20M --processes 5 --threads 2";
    let (process, address, mut client) = start(&lab, options);
    let before = client.count().unwrap();
    assert_eq!((before.processes, before.errors), (5, 0));
    let measured = Instant::now();
    let probe = Probe::start_in(lab.client(), address, 4, Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let result = probe.stop();
    let after = client.count().unwrap();
    let rate = (after.steps - before.steps) as f64 * 4096.0 / 1048576.0 / measured.elapsed().as_secs_f64();
    println!(
        "asked for 20 MiB/s, dirtied {rate:.1} MiB/s; no migration: longest gap {:.2} ms of {} replies",
        result.longest_gap_ms, result.operations
    );
    assert!(result.is_clean() && result.operations > 0, "{result:?}");
    assert!(after.steps > before.steps && after.verified > before.verified);
    let check = client.check().unwrap();
    assert_eq!((check.checked, check.errors), ((96 << 20) / 4096 / 5 * 5, 0));
    assert_eq!(lab.source().processes().unwrap().len(), 6);
    // The tree ends as a whole.
    process.kill(Signal::SIGKILL).unwrap();
    process.wait().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while lab.source().processes().unwrap().len() > 1 {
        assert!(Instant::now() < deadline, "a child outlives the workload");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_corrupted_page_is_noticed_and_ends_the_workload() {
    let Some(lab) = lab("corrupt") else { return };
    let (process, _, mut client) =
        start(&lab, "--memory 16M --working-set 4M --dirty-rate 1M --check-rate 0");
    assert_eq!(client.check().unwrap().errors, 0);
    // The last word of the memory, which is not in the working set. Its
    // mapping is found by its size.
    let outer = process.outer_pid().unwrap();
    let maps = fs::read_to_string(format!("/proc/{outer}/maps")).unwrap();
    let end = maps.lines().find_map(|line| {
        let (start, rest) = line.split_once('-')?;
        let end = u64::from_str_radix(rest.split(' ').next()?, 16).ok()?;
        let length = end - u64::from_str_radix(start, 16).ok()?;
        (16 << 20..20 << 20).contains(&length).then_some((end, length))
    });
    let (end, length) = end.expect("the workload's memory in its map");
    let memory = fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{outer}/mem")).unwrap();
    println!("mapping of {length} bytes");
    memory.write_all_at(&[0xff; 8], end - 8).unwrap();
    assert_eq!(client.check().unwrap().errors, 1);
    assert_eq!(process.wait().unwrap(), Exit::Code(EXIT_MEMORY_WRONG));
    let words = fs::read_to_string(lab.source().path("/srv/workload.err")).unwrap();
    assert!(words.contains("MEMORY WRONG"), "{words}");
}

#[test]
fn a_stopped_process_is_seen_from_inside_it() {
    let Some(lab) = lab("pulse") else { return };
    let options = "--memory 8M --working-set 4M --dirty-rate 1M --processes 2 --watching pulse";
    let (process, _, mut client) = start(&lab, options);
    client.longest_gap().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(client.longest_gap().unwrap() > Duration::ZERO, "there is a pulse");
    // The first process answers; its child is the one that stands still.
    let child = lab.source().processes().unwrap().into_iter().map(|(_, inner)| inner).max().unwrap();
    assert!(child > process.pid);
    lab.source().kill(child, Signal::SIGSTOP).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    lab.source().kill(child, Signal::SIGCONT).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let gap = client.longest_gap().unwrap();
    assert!(gap >= Duration::from_millis(90), "{gap:?}");
}

#[test]
fn the_probe_as_a_program_writes_its_result() {
    let Some(lab) = lab("probe") else { return };
    let (_process, address, _client) = start(&lab, "--memory 8M --working-set 4M --dirty-rate 1M");
    let out = lab
        .client()
        .run(Program::new(HELPER).args(["__probe", "--connect", &address.to_string(), "--seconds", "0.5"]))
        .unwrap();
    assert!(out.exit.success(), "{out:?}");
    let result: ProbeResult = serde_json::from_str(&out.stdout).unwrap();
    assert!(result.is_clean() && result.connections.len() == 4, "{result:?}");
    // Stopped by a signal, result in a file.
    let probe =
        Program::new(HELPER).args(["__probe", "--connect", &address.to_string(), "--out", "/srv/probe.json"]);
    let probe = lab.client().spawn(probe).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    probe.kill(Signal::SIGTERM).unwrap();
    assert!(probe.wait().unwrap().success());
    let text = fs::read_to_string(lab.client().path("/srv/probe.json")).unwrap();
    assert!(serde_json::from_str::<ProbeResult>(&text).unwrap().is_clean(), "{text}");
}

#[test]
fn criu_carries_the_workload_with_its_connections() {
    if !Path::new(CRIU).exists() {
        return println!("skipped: no CRIU at {CRIU} (`ferry setup` makes one)");
    }
    let Some(lab) = lab("criu") else { return };
    let options = "--memory 48M --working-set 24M --dirty-rate 20M --processes 3 --threads 2";
    let (process, address, mut client) = start(&lab, options);
    let probe = Probe::start_in(lab.client(), address, 4, Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let before = client.count().unwrap();
    let criu = |verb: &str, rest: &[&str]| {
        let common =
            ["--images-dir", "/run/images", "--tcp-established", "--network-lock", "nftables", "-v4"];
        let log = ["--log-file", &format!("{verb}.log")].map(String::from);
        let program = Program::new(CRIU).arg(verb).args(common).args(log).args(rest.iter().copied());
        let out = lab.source().run(program).unwrap();
        let log =
            fs::read_to_string(lab.source().path(format!("/run/images/{verb}.log"))).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        assert!(out.exit.success(), "criu {verb}: {out:?}\n{tail:#?}");
    };
    fs::create_dir(lab.source().path("/run/images")).unwrap();
    criu("dump", &["--tree", &process.pid.to_string()]);
    assert_eq!(process.wait().unwrap(), Exit::Signal(9));
    criu("restore", &["--restore-detached"]);
    std::thread::sleep(Duration::from_millis(300));
    let check = client.check().unwrap();
    assert_eq!(check.errors, 0);
    assert!(check.steps > before.steps, "writers go on: {check:?} after {before:?}");
    let result = probe.stop();
    println!(
        "by hand, full dump and restore: longest gap {:.0} ms, {} replies",
        result.longest_gap_ms, result.operations
    );
    assert!(result.is_clean(), "{result:?}");
}

/// Not a test: prints what the probe sees when nothing moves, which bounds
/// what it can say about a downtime.
#[test]
#[ignore = "a measurement of ten seconds"]
fn measure_the_probes_noise() {
    let Some(lab) = lab("noise") else { return };
    let (_process, address, mut client) = start(&lab, "--memory 1G --dirty-rate 50M --working-set 256M");
    let before = client.count().unwrap();
    let start = Instant::now();
    let probe = Probe::start_in(lab.client(), address, 4, Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_secs(10));
    let result = probe.stop();
    let after = client.count().unwrap();
    let mut gaps: Vec<f64> = result.series.iter().map(|bucket| bucket.longest_gap_ms).collect();
    gaps.sort_by(f64::total_cmp);
    let rate = (after.steps - before.steps) as f64 / 256.0 / start.elapsed().as_secs_f64();
    let checked = (after.verified - before.verified) as f64 / 256.0 / start.elapsed().as_secs_f64();
    println!(
        "longest gap {:.2} ms; per 100 ms: median {:.2}, 90 % {:.2} ms; {} replies; dirtied {rate:.1}, checked {checked:.0} MiB/s",
        result.longest_gap_ms,
        gaps[gaps.len() / 2],
        gaps[gaps.len() * 9 / 10],
        result.operations
    );
    let check = Instant::now();
    let reply = client.check().unwrap();
    println!(
        "a check of all {} pages: {:.0} ms, {} errors",
        reply.checked,
        check.elapsed().as_secs_f64() * 1e3,
        reply.errors
    );
    assert!(result.is_clean() && reply.errors == 0);
}
