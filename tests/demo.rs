//! A demo leaves nothing behind: interrupted at any time, failed, or killed.

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

/// What is under way when something happens to the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first host is there, others may not be.
    Hosts,
    Receiver,
    /// The workload fills its memory.
    Workload,
    /// Rounds, or the preparation of them.
    Migration,
    /// The source's CRIU has been started.
    Freeze,
    /// The engine of the source has ended; the clients go on.
    Moved,
}

/// A demo as a terminal starts it, in a process group of its own.
struct Demo {
    child: Child,
    /// Namespaces of its hosts, as they were seen.
    namespaces: BTreeSet<String>,
    migrated: bool,
    before: BTreeSet<String>,
}

impl Demo {
    fn start(arguments: &[&str]) -> Option<Demo> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return None;
        }
        let before = outside();
        let child = Command::new(env!("CARGO_BIN_EXE_ferry"))
            .args(["demo", "--memory", "96M", "--working-set", "32M", "--dirty-rate", "20M"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Some(Demo { child, namespaces: BTreeSet::new(), migrated: false, before })
    }

    /// Waits until the demo is that far.
    fn reach(&mut self, phase: Phase) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_in(phase) {
            assert!(self.child.try_wait().unwrap().is_none(), "the demo ended before {phase:?}");
            assert!(Instant::now() < deadline, "the demo does not reach {phase:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_in(&mut self, phase: Phase) -> bool {
        let running = self.look();
        let runs = |word: &str| running.iter().any(|line| line.contains(word));
        self.migrated |= runs("ferry migrate");
        match phase {
            Phase::Hosts => !running.is_empty(),
            Phase::Receiver => runs("ferry receive"),
            Phase::Workload => runs("ferry workload"),
            Phase::Migration => runs("ferry migrate"),
            Phase::Freeze => runs("criu") && runs("swrk"),
            Phase::Moved => self.migrated && !runs("ferry migrate"),
        }
    }

    /// The command lines of all processes in its hosts.
    fn look(&mut self) -> Vec<String> {
        let keepers = children(self.child.id() as i32);
        for first in keepers.iter().flat_map(|keeper| children(*keeper)) {
            // A host that is still being made may be in ours.
            let own = namespaces_of("self");
            self.namespaces.extend(namespaces_of(&first.to_string()).difference(&own).cloned());
        }
        let inside = |pid: &i32| !namespaces_of(&pid.to_string()).is_disjoint(&self.namespaces);
        processes().into_iter().filter(inside).map(command_line).collect()
    }

    /// The PID here of a process of its hosts.
    fn find(&mut self, word: &str) -> Pid {
        self.look();
        let inside = |pid: &i32| !namespaces_of(&pid.to_string()).is_disjoint(&self.namespaces);
        let found = processes().into_iter().filter(inside).find(|pid| command_line(*pid).contains(word));
        Pid::from_raw(found.unwrap_or_else(|| panic!("no {word} runs")))
    }

    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the demo does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What there is of it now: processes in its namespaces, mounts, files.
    fn left(&mut self) -> Vec<String> {
        let mut left = self.look();
        left.extend(outside().difference(&self.before).cloned());
        left
    }
}

fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let lists: String = tasks.flatten().map(of_task).collect();
    lists.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn command_line(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

fn namespaces_of(pid: &str) -> BTreeSet<String> {
    let link = |kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let links = ["net", "pid", "mnt"].into_iter().filter_map(link);
    links.map(|link| link.to_string_lossy().into_owned()).collect()
}

/// Mounts of this machine, and the names in the places that a demo may touch.
fn outside() -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut all: BTreeSet<String> = mounts.lines().map(|line| format!("mount {line}")).collect();
    for directory in ["/srv", "/var/lib/ferry", "/var/lib/ferry/reports", "/var/lib/ferry/tmp"] {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        all.extend(entries.map(|entry| entry.path().display().to_string()));
    }
    all
}

#[test]
fn an_interrupted_demo_leaves_nothing_in_any_phase() {
    use Phase::*;
    for phase in [Hosts, Receiver, Workload, Migration, Freeze, Moved] {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let Some(mut demo) = Demo::start(&[]) else { return };
            demo.reach(phase);
            killpg(Pid::from_raw(demo.child.id() as i32), signal).unwrap();
            let status = demo.end();
            // At once: it waited for the end of its hosts.
            let left = demo.left();
            assert!(left.is_empty(), "{signal} in {phase:?} left {left:#?}");
            assert_eq!(status.code(), Some(128 + signal as i32), "{signal} in {phase:?}: {status:?}");
        }
    }
}

#[test]
fn a_demo_that_fails_leaves_nothing() {
    // Refused before anything is sent.
    let Some(mut demo) = Demo::start(&["--strategy", "no-such-strategy"]) else { return };
    demo.reach(Phase::Workload);
    assert_eq!(demo.end().code(), Some(1));
    assert_eq!(demo.left(), Vec::<String>::new());
    // Aborted: the workload was not moved, which a demo calls an error.
    let mut demo = Demo::start(&[]).unwrap();
    demo.reach(Phase::Migration);
    let receiver = demo.find("ferry receive");
    kill(receiver, Signal::SIGKILL).unwrap();
    assert_eq!(demo.end().code(), Some(1));
    assert_eq!(demo.left(), Vec::<String>::new());
}

#[test]
fn a_demo_that_is_killed_takes_its_hosts_along() {
    let Some(mut demo) = Demo::start(&[]) else { return };
    demo.reach(Phase::Migration);
    demo.child.kill().unwrap();
    assert_eq!(demo.end().signal(), Some(Signal::SIGKILL as i32));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = demo.left();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left {left:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
