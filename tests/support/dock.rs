//! Two hosts with Docker and ferry, and a container that goes from one to the other.

use super::rig::{FERRY, PATIENCE, PORT, Rig, STATE};
use anyhow::{Context, Result, ensure};
use ferry_lab::docker::{DAEMON, Daemon, DaemonOptions, Image, SOCKET};
use ferry_lab::hosts::{Host, Output, Program};
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What Docker needs on a host to take part.
const NEEDED: [&str; 2] = [DAEMON, "/bin/busybox"];

/// The hosts, where they can be had.
pub fn rig(name: &str) -> Option<Rig> {
    Rig::new(name, &NEEDED)
}

/// An engine on each of a rig's two hosts.
pub struct Dock<'rig> {
    rig: &'rig Rig,
    daemons: Vec<Daemon<'rig>>,
}

impl<'rig> Dock<'rig> {
    /// Starts the engines, and puts ferry where they look for CRIU.
    pub fn new(rig: &'rig Rig) -> Dock<'rig> {
        let start = |host: &'rig Host| {
            let daemon = Daemon::start(host, &DaemonOptions::default()).expect("a daemon");
            let out = ferry(host, &["setup", "--engine"]).expect("ferry setup");
            assert!(out.exit.success(), "{out:#?}");
            daemon
        };
        Dock { rig, daemons: rig.lab.hosts()[..2].iter().map(start).collect() }
    }

    /// The engine of the host that the workload is on.
    pub fn here(&self) -> &Daemon<'rig> {
        self.of(self.rig.here())
    }

    /// The other one.
    pub fn there(&self) -> &Daemon<'rig> {
        self.of(self.rig.there())
    }

    fn of(&self, host: &Host) -> &Daemon<'rig> {
        self.daemons.iter().find(|daemon| std::ptr::eq(daemon.host(), host)).expect("each host has one")
    }

    /// Makes an image on both hosts, the very same.
    pub fn image(&self, image: &Image, name: &str) {
        self.here().import(image, name).expect("an image");
        let archive = format!("/srv/{}.tar", name.replace(['/', ':'], "-"));
        self.here().expect(["save", "--output", &archive, name]).expect("saved");
        self.there().expect(["load", "--input", &archive]).expect("loaded");
        fs::remove_file(self.rig.here().path(&archive)).expect("removed");
    }

    /// `ferry migrate` of a container to the other host. Returns the report.
    pub fn move_on(&self, container: &str, extra: &[&str]) -> Value {
        let report =
            self.try_move(container, extra).unwrap_or_else(|error| panic!("{error:#}\n{}", self.logs()));
        self.rig.it_moved();
        println!(
            "  {container} to {}: {} ms {}",
            self.rig.here().name(),
            report["downtime_ms"],
            report["downtime"]
        );
        report
    }

    /// The same, where it may fail.
    pub fn try_move(&self, container: &str, extra: &[&str]) -> Result<Value> {
        let to = SocketAddr::from((self.rig.there().address(), PORT)).to_string();
        let target = format!("docker:{container}");
        let arguments = [&["migrate", &target, "--to", &to, "--json"], extra].concat();
        let out = ferry(self.rig.here(), &arguments)?;
        ensure!(out.exit.success(), "ferry migrate: {out:#?}");
        let documents = serde_json::Deserializer::from_str(&out.stdout).into_iter::<Value>();
        documents.map_while(Result::ok).last().with_context(|| format!("no report: {out:#?}"))
    }

    /// `ferry check` of a container, asking the other host too: what it printed.
    pub fn check(&self, container: &str) -> Value {
        let to = SocketAddr::from((self.rig.there().address(), PORT)).to_string();
        let target = format!("docker:{container}");
        let out = ferry(self.rig.here(), &["check", &target, "--to", &to, "--json"]).expect("ferry check");
        serde_json::from_str(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:#?}"))
    }

    /// The numbers that a container has printed; each follows the one before.
    pub fn numbers(&self, daemon: &Daemon<'_>, container: &str) -> Vec<u64> {
        let logs = daemon.logs(container).expect("logs");
        let numbers: Vec<u64> = logs.lines().map(|line| line.parse().expect("a number")).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap or a repeat: {numbers:?}");
        numbers
    }

    /// Waits until a container has printed a number beyond this one.
    pub fn counts_beyond(&self, daemon: &Daemon<'_>, container: &str, number: u64) -> Vec<u64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let numbers = self.numbers(daemon, container);
            if numbers.last().is_some_and(|last| *last > number) {
                return numbers;
            }
            assert!(Instant::now() < deadline, "it stands still at {numbers:?}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the engines: nothing of them is left.
    pub fn stop(self) {
        for daemon in self.daemons {
            daemon.stop().expect("a clean end");
        }
    }

    /// What engines and receivers have logged.
    pub fn logs(&self) -> String {
        let of = |daemon: &Daemon<'_>| {
            let receiver = fs::read_to_string(daemon.host().path("/run/receive.log")).unwrap_or_default();
            let log = daemon.log();
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            format!("--- {}: ferry\n{receiver}\n--- Docker\n{}\n", daemon.host().name(), last.join("\n"))
        };
        self.daemons.iter().map(of).collect()
    }
}

/// Runs ferry on a host, with its state and the host's Docker.
pub fn ferry(host: &Host, arguments: &[&str]) -> Result<Output> {
    let program = Program::new(FERRY).args(arguments.iter().copied());
    host.run(program.env("FERRY_STATE", STATE).env("FERRY_DOCKER", SOCKET))
}
