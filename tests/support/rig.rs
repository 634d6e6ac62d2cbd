//! Two hosts, a client host, and a workload that goes there and back.

use anyhow::{Context, Result, bail, ensure};
use ferry_lab::hosts::{Cable, Host, Lab, LabOptions, Process, Program};
use serde_json::{Value, json};
use std::cell::Cell;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The address that moves with the workload.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 231, 0, 100);
/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const FERRY: &str = env!("CARGO_BIN_EXE_ferry");
const CRIU: &str = "/var/lib/ferry/criu/bin/criu";
pub const NFT: &str = "/var/lib/ferry/criu/bin/nft";
pub const STATE: &str = "/run/ferry-state";
pub const PORT: u16 = 4433;

/// What moves the workload. `FERRY_TEST_MOVER=criu` chooses plain CRIU, to see
/// whether a failing test is ferry's fault or the test's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mover {
    /// `ferry migrate` to `ferry receive`.
    Ferry,
    /// `criu dump` and `criu restore` through the shared directory.
    Criu,
}

/// A lab with a workload's address and its place.
pub struct Rig {
    pub lab: Lab,
    pub mover: Mover,
    /// The workload is on `lab.hosts()[place]`.
    place: Cell<usize>,
    moves: Cell<u32>,
}

impl Rig {
    /// Hosts with the service address on the source; `None`, with the reason
    /// printed, where the test cannot run.
    pub fn new(name: &str, programs: &[&str]) -> Option<Rig> {
        let mover = match std::env::var("FERRY_TEST_MOVER").as_deref() {
            Ok("criu") => Mover::Criu,
            _ => Mover::Ferry,
        };
        if let Some(reason) = reason_to_skip(mover, programs) {
            println!("{name} skipped: {reason}");
            return None;
        }
        let helper = match mover {
            Mover::Ferry => PathBuf::from(FERRY),
            Mover::Criu => Path::new(FERRY).with_file_name("ferry-lab"),
        };
        let options = LabOptions { helper: Some(helper), ..LabOptions::default() };
        let lab = Lab::new(name, options).expect("a lab");
        lab.source().add_address(IpAddr::V4(SERVICE), 24).expect("the service address");
        let rig = Rig { lab, mover, place: Cell::new(0), moves: Cell::new(0) };
        if mover == Mover::Ferry {
            rig.start_receivers().expect("receivers");
        }
        Some(rig)
    }

    /// Where the workload is.
    pub fn here(&self) -> &Host {
        &self.lab.hosts()[self.place.get()]
    }

    /// The other host.
    pub fn there(&self) -> &Host {
        &self.lab.hosts()[1 - self.place.get()]
    }

    /// The workload turned out to be on the other host.
    pub fn it_moved(&self) {
        self.place.set(1 - self.place.get());
    }

    /// The user to run a program as: another than root, except under plain
    /// CRIU, which cannot dump other users' processes without CAP_SYS_RESOURCE.
    pub fn user(&self) -> (u32, u32) {
        match self.mover {
            Mover::Ferry => (65534, 65534),
            Mover::Criu => (0, 0),
        }
    }

    /// Copies a file of `tests/apps` into the shared directory.
    pub fn install(&self, name: &str) -> String {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps").join(name);
        let inside = format!("/srv/{name}");
        fs::copy(&from, self.lab.source().path(&inside)).expect("a file of tests/apps");
        inside
    }

    /// Starts a program where the workload is.
    pub fn start(&self, program: Program) -> Process<'_> {
        self.here().spawn(program).expect("the program starts")
    }

    /// Runs `connect` in the client's network until it succeeds.
    pub fn connect<T: Send>(&self, connect: impl Fn() -> Result<T> + Sync) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lab.client().enter(&connect).and_then(|result| result) {
                Ok(connection) => return connection,
                Err(error) => {
                    assert!(Instant::now() < deadline, "the program does not serve: {error:#}");
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    /// Moves the tree of `pid` to the other host, and its address with it.
    /// Returns the report.
    pub fn move_on(&self, pid: i32, extra: &[&str]) -> Value {
        let (from, to) = (self.place.get(), 1 - self.place.get());
        let (source, destination) = (&self.lab.hosts()[from], &self.lab.hosts()[to]);
        destination.forget_exit(pid);
        let report = match self.mover {
            Mover::Ferry => migrate(source, destination, pid, extra),
            Mover::Criu => self.move_with_criu(source, destination, pid),
        };
        let report = report.unwrap_or_else(|error| panic!("moving {pid} failed: {error:#}"));
        self.place.set(to);
        self.moves.set(self.moves.get() + 1);
        println!("  to {}: downtime {} ms", destination.name(), report["downtime_ms"]);
        report
    }

    /// There and back three times, with `between` before each move and at the end.
    pub fn there_and_back(&self, pid: i32, mut between: impl FnMut()) {
        for _ in 0..6 {
            between();
            self.move_on(pid, &[]);
        }
        between();
    }

    fn start_receivers(&self) -> Result<()> {
        let hosts = &self.lab.hosts()[..2];
        let mut fingerprints = Vec::new();
        for host in hosts {
            let out = host.run(Program::new(FERRY).args(["identity", "--state", STATE, "--json"]))?;
            ensure!(out.exit.success(), "ferry identity: {out:?}");
            let identity: Value = serde_json::from_str(&out.stdout).context("ferry identity --json")?;
            fingerprints.push(identity["fingerprint"].as_str().context("no fingerprint")?.to_string());
        }
        for (host, (name, fingerprint)) in
            hosts.iter().zip([("destination", &fingerprints[1]), ("source", &fingerprints[0])])
        {
            let pair = ["pair", "--add", name, "--fingerprint", fingerprint, "--state", STATE];
            let out = host.run(Program::new(FERRY).args(pair))?;
            ensure!(out.exit.success(), "ferry pair: {out:?}");
            start_receiver(host, None)?;
        }
        Ok(())
    }

    fn move_with_criu(&self, source: &Host, destination: &Host, pid: i32) -> Result<Value> {
        let images = format!("/srv/images-{}", self.moves.get());
        fs::create_dir(source.path(&images))?;
        let criu = |host: &Host, verb: &str, rest: &[&str]| -> Result<()> {
            let log = format!("{verb}.log");
            let common = ["--images-dir", &images, "--tcp-established", "--network-lock", "nftables", "-v4"];
            let program = Program::new(CRIU)
                .arg(verb)
                .args(common)
                .args(["--log-file", &log])
                .args(rest.iter().copied());
            let out = host.run(program)?;
            if !out.exit.success() {
                let log = fs::read_to_string(host.path(format!("{images}/{log}"))).unwrap_or_default();
                let errors: Vec<&str> = log.lines().filter(|line| line.contains("Error")).collect();
                bail!("criu {verb}: {} {errors:#?}", out.stderr);
            }
            Ok(())
        };
        let start = Instant::now();
        criu(source, "dump", &["--tree", &pid.to_string()])?;
        // CRIU leaves its network lock where it dumped; it would still drop
        // the connections' packets when they come back.
        let flushed = source.run(Program::new(NFT).args(["flush", "ruleset"]))?;
        ensure!(flushed.exit.success(), "nft: {flushed:?}");
        source.remove_address(IpAddr::V4(SERVICE))?;
        // With the cable cut, the destination's kernel resets no connection
        // before the sockets are there.
        destination.set_cable(Cable::Down)?;
        destination.add_address(IpAddr::V4(SERVICE), 24)?;
        let restored = criu(destination, "restore", &["--restore-detached"]);
        destination.set_cable(Cable::Up)?;
        restored?;
        // Any packet from the address makes the client learn its new place.
        let client = self.lab.client().address();
        destination.enter(|| UdpSocket::bind((SERVICE, 0))?.send_to(b"here", (client, 9)))??;
        fs::remove_dir_all(source.path(&images))?;
        Ok(json!({ "downtime_ms": start.elapsed().as_millis() as u64 }))
    }
}

/// Starts `ferry receive` on a host, and waits until it listens.
pub fn start_receiver<'lab>(host: &'lab Host, breakpoint: Option<&str>) -> Result<Process<'lab>> {
    start_receiver_with(host, breakpoint, &[])
}

/// The same with further arguments.
pub fn start_receiver_with<'lab>(
    host: &'lab Host,
    breakpoint: Option<&str>,
    more: &[&str],
) -> Result<Process<'lab>> {
    let listen = SocketAddr::from((host.address(), PORT)).to_string();
    let log = "/run/receive.log";
    let _ = fs::remove_file(host.path(log));
    let mut program = Program::new(FERRY)
        .args(["receive", "--listen", &listen, "--state", STATE])
        .args(more.iter().copied())
        .env("FERRY_LOG", "ferry_engine=debug")
        .env("FERRY_DOCKER", ferry_lab::docker::SOCKET)
        .stdout(log)
        .stderr(log);
    if let Some(breakpoint) = breakpoint {
        program = program.env("FERRY_BREAKPOINT", breakpoint);
    }
    let receiver = host.spawn(program)?;
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(host.path(log)).is_ok_and(|text| text.contains("listening")) {
        ensure!(Instant::now() < deadline, "the receiver does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(receiver)
}

/// `ferry migrate` of a tree from one host to another, the service address
/// with it. Returns the report.
pub fn migrate(from: &Host, to: &Host, pid: i32, extra: &[&str]) -> Result<Value> {
    let program = Program::new(FERRY)
        .args(["migrate".to_string(), format!("pid:{pid}")])
        .args(["--to".to_string(), SocketAddr::from((to.address(), PORT)).to_string()])
        .args(["--state", STATE, "--json"])
        .args(["--move-ip".to_string(), format!("{SERVICE}/24@eth0")])
        .args(extra.iter().copied());
    let out = from.run(program)?;
    let receiver = || fs::read_to_string(to.path("/run/receive.log")).unwrap_or_default();
    ensure!(out.exit.success(), "ferry migrate: {out:#?}\nreceiver:\n{}", receiver());
    // The report is the last document on standard output.
    let documents = serde_json::Deserializer::from_str(&out.stdout).into_iter::<Value>();
    documents.map_while(Result::ok).last().with_context(|| format!("no report: {out:#?}"))
}

fn reason_to_skip(mover: Mover, programs: &[&str]) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !status.lines().any(|line| line.split_whitespace().eq(["Uid:", "0", "0", "0", "0"])) {
        return Some("needs root".into());
    }
    if let Some(missing) = programs.iter().find(|program| !Path::new(program).exists()) {
        return Some(format!("{missing} is not installed (scripts/install-test-apps)"));
    }
    match mover {
        Mover::Ferry => {
            let help = Command::new(FERRY).arg("--help").output().ok()?;
            let can = String::from_utf8_lossy(&help.stdout).contains("migrate");
            (!can).then(|| "this ferry has no `migrate` yet".into())
        }
        Mover::Criu => (!Path::new(CRIU).exists()).then(|| format!("no CRIU at {CRIU}")),
    }
}
