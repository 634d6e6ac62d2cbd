//! Docker daemons on hosts: root and scripts/install-test-docker are needed.

use ferry_lab::docker::{Daemon, DaemonOptions, Image};
use ferry_lab::hosts::{Host, Lab, LabOptions};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A lab, or `None` and the reason printed where there can be none.
fn lab(name: &str) -> Option<Lab> {
    let reason = match nix::unistd::geteuid().is_root() {
        true => Daemon::reason_to_skip(),
        false => Some("test hosts need root".into()),
    };
    if let Some(reason) = reason {
        println!("{name} skipped: {reason}");
        return None;
    }
    let helper = Some(PathBuf::from(env!("CARGO_BIN_EXE_ferry-lab")));
    let hosts = vec!["source".into(), "destination".into()];
    Some(Lab::new(name, LabOptions { helper, hosts, ..LabOptions::default() }).expect("a lab"))
}

/// Processes of the host, those of its containers included, and its mounts.
fn traces(host: &Host) -> BTreeSet<String> {
    let first = host.first_process();
    let mounts = fs::read_to_string(format!("/proc/{first}/mountinfo")).unwrap();
    let mut found: BTreeSet<String> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|place| format!("mount {place}"))
        .collect();
    let mut waiting = vec![first];
    while let Some(pid) = waiting.pop() {
        found.insert(format!(
            "process {}",
            fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
        ));
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            waiting.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
    }
    found
}

/// Control groups that this test's labs made.
fn cgroups() -> Vec<PathBuf> {
    let ours = format!("ferry-lab-{}-", std::process::id());
    let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    roots
        .chain([PathBuf::from("/sys/fs/cgroup")])
        .flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&ours)))
        .collect()
}

#[test]
fn two_daemons_run_side_by_side_and_leave_nothing() {
    let Some(lab) = lab("daemons") else { return };
    let before: Vec<_> = lab.hosts().iter().map(traces).collect();
    let options = DaemonOptions::default();
    let daemons = lab.hosts().iter().map(|host| Daemon::start(host, &options).expect("a daemon"));
    let daemons: Vec<Daemon<'_>> = daemons.collect();
    for daemon in &daemons {
        daemon.import(&Image::busybox(), "busybox").expect("an image");
        assert!(daemon.expect(["info"]).unwrap().contains("overlay2"));
    }
    let layers = |daemon: &Daemon<'_>| {
        daemon.expect(["image", "inspect", "--format", "{{json .RootFS.Layers}}", "busybox"]).unwrap()
    };
    assert_eq!(layers(&daemons[0]), layers(&daemons[1]), "the same content is the same layer");

    let [source, destination] = &daemons[..] else { panic!("two daemons") };
    let run = ["run", "--detach", "--name", "web", "busybox", "sh", "-c"];
    source.expect(run.into_iter().chain(["hostname; exec httpd -f -p 80"])).unwrap();
    assert_eq!(
        destination.expect(["ps", "--all", "--quiet"]).unwrap(),
        "",
        "the other one knows nothing of it"
    );
    // The bridge works: a container is reached by its address from the host.
    let format = "{{.NetworkSettings.IPAddress}}";
    let address = source.expect(["inspect", "--format", format, "web"]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while source.host().enter(|| std::net::TcpStream::connect((address.as_str(), 80))).unwrap().is_err() {
        assert!(Instant::now() < deadline, "nobody serves on {address}:80");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!cgroups().is_empty(), "its containers are in groups of ours");

    for daemon in daemons {
        daemon.stop().expect("a clean end");
    }
    for (host, before) in lab.hosts().iter().zip(before) {
        assert_eq!(traces(host), before, "on {}", host.name());
    }
    assert_eq!(cgroups(), Vec::<PathBuf>::new());
}

#[test]
fn a_daemon_that_was_killed_leaves_nothing_either() {
    let Some(lab) = lab("killed-daemon") else { return };
    let host = lab.source();
    let before = traces(host);
    let daemon = Daemon::start(host, &DaemonOptions::default()).expect("a daemon");
    daemon.import(&Image::busybox(), "busybox").expect("an image");
    daemon.expect(["run", "--detach", "busybox", "sleep", "1000"]).unwrap();
    daemon.kill().unwrap();
    daemon.stop().expect("a clean end");
    assert_eq!(traces(host), before);
    assert_eq!(cgroups(), Vec::<PathBuf>::new());
}
