//! Two hosts that know each other, the address that moves, and one migration.

use anyhow::{Context, Result, bail, ensure};
use ferry_engine::report::{Report, ReportOutcome};
use ferry_lab::hosts::{Host, Lab, Process, Program, Signal};
use ferry_transport::quic::trust::{Peer, Role};
use ferry_transport::quic::{Identity, Trust};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The address that the workload serves on and takes along.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 231, 0, 100);
const PORT: u16 = 4433;

/// A lab in which a workload on the source can be moved to the destination.
pub struct Stage<'lab> {
    lab: &'lab Lab,
    own: String,
    receiver: Process<'lab>,
    log: PathBuf,
}

/// How to move it.
pub struct Move<'a> {
    pub pid: i32,
    pub strategy: &'a str,
    pub downtime: &'a str,
    pub restore: &'a str,
}

impl<'lab> Stage<'lab> {
    /// Gives the source the service address, pairs the hosts, and starts the receiver.
    pub fn new(lab: &'lab Lab) -> Result<Stage<'lab>> {
        let (source, destination) = (lab.source(), lab.destination());
        pair(source, &state_of(lab, source), destination, &state_of(lab, destination))?;
        source.add_address(IpAddr::V4(SERVICE), 24)?;
        let own = std::env::current_exe()?.display().to_string();
        let log = lab.shared().join("receive.log");
        let receiver = destination.spawn(
            Program::new(own.clone())
                .args(["receive", "--listen", &listen_address(destination), "--state"])
                .arg(state_of(lab, destination).display().to_string())
                .stdout(log.clone())
                .stderr(log.clone()),
        )?;
        let stage = Stage { lab, own, receiver, log };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !stage.receiver_said().contains("listening") {
            ensure!(Instant::now() < deadline, "the receiver does not listen: {}", stage.receiver_said());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(stage)
    }

    /// One `ferry migrate`; its report, whatever its outcome.
    pub fn migrate(&self, how: &Move) -> Result<Report> {
        // Hosts start programs with a bare environment.
        let preload = std::env::var("FERRY_PRELOAD").unwrap_or_else(|_| "auto".into());
        let source = self.lab.source();
        let migrated = source.run(
            Program::new(self.own.clone())
                .env("FERRY_PRELOAD", preload)
                .args(["migrate".to_owned(), format!("pid:{}", how.pid)])
                .args(["--to".to_owned(), listen_address(self.lab.destination())])
                .args(["--state".to_owned(), state_of(self.lab, source).display().to_string()])
                .args(["--move-ip".to_owned(), format!("{SERVICE}/24@eth0")])
                .args(["--strategy", how.strategy, "--downtime", how.downtime])
                .args(["--restore", how.restore, "--json"]),
        )?;
        let report: Report = serde_json::from_str(&migrated.stdout).with_context(|| {
            format!("{}\n{}\nreceiver:\n{}", migrated.stdout, migrated.stderr, self.receiver_said())
        })?;
        for line in migrated.stderr.lines() {
            eprintln!("  {line}");
        }
        if report.outcome != ReportOutcome::Completed {
            eprintln!("receiver:\n{}", self.receiver_said());
        }
        Ok(report)
    }

    /// Ends the receiver in an orderly way.
    pub fn close(self) -> Result<()> {
        self.receiver.kill(Signal::SIGTERM)?;
        match self.receiver.wait_for(Duration::from_secs(10))? {
            Some(_) => Ok(()),
            None => bail!("the receiver does not end"),
        }
    }

    fn receiver_said(&self) -> String {
        std::fs::read_to_string(self.lab.destination().path(&self.log)).unwrap_or_default()
    }
}

fn listen_address(destination: &Host) -> String {
    SocketAddr::from((destination.address(), PORT)).to_string()
}

/// Where a host keeps its state: in what the lab's hosts share, and gone with it.
fn state_of(lab: &Lab, host: &Host) -> PathBuf {
    lab.shared().join(host.name())
}

/// Makes both identities and lets each host know the other.
fn pair(source: &Host, source_state: &Path, destination: &Host, destination_state: &Path) -> Result<()> {
    let (here, there) = (source.path(source_state), destination.path(destination_state));
    let ours = Identity::load_or_create(&here)?.fingerprint();
    let theirs = Identity::load_or_create(&there)?.fingerprint();
    Trust::open(&here).add(&Peer {
        name: "destination".into(),
        fingerprint: theirs,
        role: Role::Receiver,
    })?;
    Trust::open(&there).add(&Peer { name: "source".into(), fingerprint: ours, role: Role::Sender })?;
    Ok(())
}
