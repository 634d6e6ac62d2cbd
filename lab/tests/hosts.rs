//! Hosts, with real namespaces: root is needed.

use ferry_lab::hosts::{Cable, Exit, FileSystem, Lab, LabOptions, Program};
use ferry_lab::quantity::parse_link_rate;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A lab, or `None` and the reason printed where there can be none.
fn lab(name: &str, options: LabOptions) -> Option<Lab> {
    if !nix::unistd::geteuid().is_root() {
        println!("{name} skipped: test hosts need root");
        return None;
    }
    let helper = Some(PathBuf::from(env!("CARGO_BIN_EXE_ferry-lab")));
    Some(Lab::new(name, LabOptions { helper, ..options }).expect("a lab"))
}

fn two_hosts() -> LabOptions {
    LabOptions { hosts: vec!["source".into(), "destination".into()], ..LabOptions::default() }
}

/// Sends `bytes` from the destination to the source; returns the seconds taken.
fn transfer(lab: &Lab, bytes: usize) -> f64 {
    let address = SocketAddr::from((lab.source().address(), 9000));
    let listener = lab.source().enter(|| TcpListener::bind(address)).unwrap().unwrap();
    let mut sender = lab.destination().enter(|| TcpStream::connect(address)).unwrap().unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    let start = Instant::now();
    let writer = std::thread::spawn(move || {
        let block = vec![1u8; 64 * 1024];
        for _ in 0..bytes / block.len() {
            sender.write_all(&block).unwrap();
        }
    });
    let mut received = Vec::with_capacity(bytes);
    receiver.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert_eq!(received.len(), bytes);
    start.elapsed().as_secs_f64()
}

#[test]
fn hosts_reach_each_other_and_are_separate() {
    let Some(lab) = lab("separate", LabOptions::default()) else { return };
    let megabytes = 256;
    let seconds = transfer(&lab, megabytes << 20);
    println!("unlimited link: {:.2} Gbit/s", megabytes as f64 * 8.0 / 1024.0 / seconds);
    let out = lab
        .source()
        .run(Program::shell("hostname; echo $$; ls /run /tmp; readlink /proc/self/fd/* | sort -u"))
        .unwrap();
    assert_eq!(out.exit, Exit::Code(0), "{out:?}");
    assert!(out.stdout.starts_with("source\n"), "{out:?}");
    assert!(!out.stdout.contains("socket:"), "an inherited descriptor: {out:?}");
    // Own /tmp, one shared directory.
    lab.source().run(Program::shell("echo own > /tmp/f; echo all > /srv/f")).unwrap();
    let out = lab.destination().run(Program::shell("cat /tmp/f; cat /srv/f")).unwrap();
    assert_eq!(out.stdout, "all\n");
    assert!(!PathBuf::from("/srv/f").exists(), "the shared directory shows outside the lab");
    assert_eq!(fs::read_to_string(lab.client().path("/srv/f")).unwrap(), "all\n");
    // Own PIDs.
    let sleeper = lab.source().spawn(Program::new("/bin/sleep").arg("1000").user(65534, 65534)).unwrap();
    assert!(
        fs::read_to_string(format!("/proc/{}/cmdline", sleeper.outer_pid().unwrap()))
            .unwrap()
            .contains("sleep")
    );
    sleeper.kill(Signal::SIGKILL).unwrap();
    assert_eq!(sleeper.wait().unwrap(), Exit::Signal(9));
    lab.source().spawn(Program::new("/no/such/program")).expect_err("no such program");
    assert!(lab.client().addresses().unwrap().contains(&lab.client().address().into()));
}

#[test]
fn a_limited_link_is_slower_than_its_limit() {
    let link = parse_link_rate("200mbit").unwrap();
    let Some(lab) = lab("limited", LabOptions { link: Some(link), ..two_hosts() }) else { return };
    let megabytes = 32;
    let seconds = transfer(&lab, megabytes << 20);
    let megabits = (megabytes << 20) as f64 * 8.0 / 1e6 / seconds;
    println!("200mbit link: {megabits:.0} Mbit/s of payload");
    assert!(megabits < 205.0, "the limit does not hold: {megabits} Mbit/s");
}

#[test]
fn a_cut_cable_is_silence_and_mends() {
    let Some(lab) = lab("cable", two_hosts()) else { return };
    let address = SocketAddr::from((lab.source().address(), 9001));
    let listener = lab.source().enter(|| TcpListener::bind(address)).unwrap().unwrap();
    let mut stream = lab.destination().enter(|| TcpStream::connect(address)).unwrap().unwrap();
    let (mut other, _) = listener.accept().unwrap();
    lab.source().set_cable(Cable::Down).unwrap();
    stream.write_all(b"x").unwrap();
    other.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    other.read(&mut [0]).expect_err("nothing passes a cut cable");
    lab.source().set_cable(Cable::Up).unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(other.read(&mut [0]).unwrap(), 1);
}

#[test]
fn the_first_process_reaps_orphans() {
    let Some(lab) = lab("reaps", two_hosts()) else { return };
    // Ten grandchildren that are orphaned at once and end a little later.
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.1 &) ; done";
    assert!(lab.source().run(Program::shell(script)).unwrap().exit.success());
    let deadline = Instant::now() + PATIENCE;
    while lab.source().processes().unwrap().len() > 1 {
        assert!(Instant::now() < deadline, "left: {:?}", lab.source().processes());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_overlay_host_writes_for_itself_only() {
    let options = LabOptions { file_system: FileSystem::Overlay, ..two_hosts() };
    let Some(lab) = lab("overlay", options) else { return };
    let script = "echo mine > /etc/ferry-lab-overlay && echo shared > /srv/f && cat /etc/ferry-lab-overlay && ls /proc/1/exe /dev/null /sys/kernel";
    let out = lab.source().run(Program::shell(script)).unwrap();
    assert!(out.exit.success() && out.stdout.starts_with("mine\n"), "{out:?}");
    let out = lab.destination().run(Program::shell("cat /etc/ferry-lab-overlay; cat /srv/f")).unwrap();
    assert_eq!(out.stdout, "shared\n");
    assert!(!PathBuf::from("/etc/ferry-lab-overlay").exists());
    let helper = env!("CARGO_BIN_EXE_ferry-lab");
    assert!(lab.source().run(Program::new(helper).arg("--help")).unwrap().exit.success());
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", lab.source().first_process())).unwrap();
    assert!(mounts.lines().next().unwrap().contains("overlay"), "{mounts}");
}

#[test]
fn dropping_a_lab_leaves_nothing() {
    let Some(lab) = lab("drop", two_hosts()) else { return };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    lab.source().spawn(Program::shell("sleep 1000 & sleep 1000 & exec sleep 1000")).unwrap();
    let processes: Vec<i32> =
        lab.hosts().iter().flat_map(|h| h.processes().unwrap()).map(|(outer, _)| outer).collect();
    assert!(processes.len() >= 3);
    let namespaces: Vec<_> =
        processes.iter().map(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap()).collect();
    drop(lab);
    for pid in &processes {
        assert!(kill(Pid::from_raw(*pid), None).is_err(), "process {pid} is left");
    }
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts, "a mount is left");
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        if let Ok(namespace) = fs::read_link(entry.path().join("ns/net")) {
            assert!(!namespaces.contains(&namespace), "{entry:?} is left in {namespace:?}");
        }
    }
    // Named namespaces would be here.
    let names = fs::read_dir("/run/netns")
        .map(|d| d.flatten().filter(|e| e.file_name().to_string_lossy().contains("lab")).count());
    assert_eq!(names.unwrap_or(0), 0);
}

/// Not a test by itself: the process that the next test kills.
#[test]
#[ignore = "started by killing_the_labs_process_ends_the_hosts"]
fn hold_a_lab_until_killed() {
    let Some(lab) = lab("killed", two_hosts()) else { return };
    lab.source().spawn(Program::shell("sleep 1000 & exec sleep 1000")).unwrap();
    for (outer, _) in lab.hosts().iter().flat_map(|h| h.processes().unwrap()) {
        println!("\nprocess {outer}");
    }
    println!("\nready");
    std::thread::sleep(Duration::from_secs(1000));
}

#[test]
fn killing_the_labs_process_ends_the_hosts() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: test hosts need root");
    }
    use std::io::{BufRead, BufReader};
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "hold_a_lab_until_killed"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut processes = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        if let Some(pid) = line.strip_prefix("process ") {
            processes.push(pid.parse::<i32>().unwrap());
        }
        if line == "ready" {
            break;
        }
    }
    assert!(processes.len() >= 3, "{processes:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while processes.iter().any(|pid| kill(Pid::from_raw(*pid), None).is_ok()) {
        assert!(Instant::now() < deadline, "processes outlive the lab");
        std::thread::sleep(Duration::from_millis(10));
    }
}
