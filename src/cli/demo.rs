//! `ferry demo`: two hosts, a client and a self-checking workload on this
//! machine; one migration, measured from both ends.

use super::{Common, print_json};
use crate::exit::End;
use crate::host;
use anyhow::{Context, Result, bail};
use ferry_engine::report::{ClientReport, Report, text};
use ferry_lab::hosts::{Host, Lab, LabOptions, Program};
use ferry_lab::probe::Probe;
use ferry_lab::quantity::{parse_byte_rate, parse_bytes, parse_link_rate};
use ferry_lab::workload::Client;
use ferry_transport::quic::trust::{Peer, Role};
use ferry_transport::quic::{Identity, Trust};
use ferry_transport::units::{ByteRate, Bytes};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

/// The address that the workload serves on and takes along.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 231, 0, 100);
const PORT: u16 = 7000;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Memory of the workload.
    #[arg(long, default_value = "512M", value_parser = parse_bytes)]
    memory: Bytes,
    /// Unique bytes that it dirties per second.
    #[arg(long, default_value = "50M", value_parser = parse_byte_rate)]
    dirty_rate: ByteRate,
    /// The part of its memory that it dirties.
    #[arg(long, default_value = "256M", value_parser = parse_bytes)]
    working_set: Bytes,
    /// Its processes.
    #[arg(long, default_value_t = 1)]
    processes: u32,
    /// The speed of every cable, for example 1gbit; unlimited unless given.
    #[arg(long, value_parser = parse_link_rate)]
    link: Option<ByteRate>,
    /// The convergence strategy.
    #[arg(long, default_value = "downtime-budget")]
    strategy: String,
    /// The downtime that is wanted.
    #[arg(long, default_value = "100ms")]
    downtime: String,
    /// How memory comes back: lazy or eager.
    #[arg(long, default_value = "lazy")]
    restore: String,
    /// The same once more with stop-and-copy, side by side.
    #[arg(long)]
    compare: bool,
}

/// One run's results.
struct Run {
    report: Report,
    right: bool,
}

pub fn run(options: Options) -> Result<End> {
    host::need_root("demo")?;
    host::criu(None)?;
    let first = once(&options, &options.strategy)?;
    let second = options.compare.then(|| once(&options, "stop-and-copy")).transpose()?;
    let runs: Vec<&Run> = std::iter::once(&first).chain(&second).collect();
    if options.common.json {
        print_json(&runs.iter().map(|run| &run.report).collect::<Vec<_>>())?;
    } else {
        for run in &runs {
            println!(
                "{} ({})",
                run.report.strategy.name,
                if run.right { "memory and every reply right" } else { "WRONG" }
            );
            print!("{}", text::render(&run.report));
        }
        if let (Some(mine), Some(base)) =
            (first.report.downtime_ms, second.as_ref().and_then(|run| run.report.downtime_ms))
        {
            println!("downtime {mine:.1} ms, stop-and-copy {base:.1} ms: {:.1} times less", base / mine);
        }
    }
    if runs.iter().all(|run| run.right) {
        Ok(End::Done)
    } else {
        bail!("the workload or a client saw an error")
    }
}

fn once(options: &Options, strategy: &str) -> Result<Run> {
    let lab = Lab::new("demo", LabOptions { link: options.link, ..LabOptions::default() })?;
    let (source, destination) = (lab.source(), lab.destination());
    pair(source, &lab.shared().join("source"), destination, &lab.shared().join("destination"))?;
    source.add_address(IpAddr::V4(SERVICE), 24)?;
    let own = std::env::current_exe()?.display().to_string();
    let service = SocketAddr::from((SERVICE, PORT));

    eprintln!("a workload of {} that dirties {} on the source", options.memory, options.dirty_rate);
    let workload = source.spawn(Program::new(own.clone()).args([
        "workload".into(),
        "--memory".into(),
        options.memory.0.to_string(),
        "--dirty-rate".into(),
        options.dirty_rate.0.to_string(),
        "--working-set".into(),
        options.working_set.0.to_string(),
        "--processes".into(),
        options.processes.to_string(),
        "--listen".into(),
        service.to_string(),
    ]))?;
    let filled = |client: &Host| {
        client.enter(|| -> Result<()> {
            let mut client = Client::connect(service, Duration::from_secs(60))?;
            client.wait_filled(Duration::from_secs(300))?;
            Ok(())
        })
    };
    filled(lab.client())??;

    let listen = SocketAddr::from((destination.address(), 4433)).to_string();
    let log = lab.shared().join("receive.log");
    let receiver = destination.spawn(
        Program::new(own.clone())
            .args(["receive", "--listen", &listen, "--state"])
            .arg(lab.shared().join("destination").display().to_string())
            .stdout(log.clone())
            .stderr(log.clone()),
    )?;
    let outside = destination.path(&log);
    wait_for(Duration::from_secs(60), || {
        std::fs::read_to_string(&outside).is_ok_and(|text| text.contains("listening"))
    })
    .with_context(|| format!("the receiver: {}", std::fs::read_to_string(&outside).unwrap_or_default()))?;

    let probe = Probe::start_in(lab.client(), service, 4, Duration::from_millis(1))?;
    std::thread::sleep(Duration::from_millis(500));
    // Hosts start programs with a bare environment.
    let preload = std::env::var("FERRY_PRELOAD").unwrap_or_else(|_| "auto".into());
    let migrated = source.run(Program::new(own).env("FERRY_PRELOAD", preload).args([
        "migrate".to_owned(),
        format!("pid:{}", workload.pid),
        "--to".into(),
        listen,
        "--state".into(),
        lab.shared().join("source").display().to_string(),
        "--move-ip".into(),
        format!("{SERVICE}/24@eth0"),
        "--strategy".into(),
        strategy.to_owned(),
        "--downtime".into(),
        options.downtime.clone(),
        "--restore".into(),
        options.restore.clone(),
        "--json".into(),
    ]))?;
    std::thread::sleep(Duration::from_secs(1));
    let seen = probe.stop();
    let mut report: Report = serde_json::from_str(&migrated.stdout).with_context(|| {
        let receiver = std::fs::read_to_string(&outside).unwrap_or_default();
        format!("{}\n{}\nreceiver:\n{receiver}", migrated.stdout, migrated.stderr)
    })?;
    for line in migrated.stderr.lines() {
        eprintln!("  {line}");
    }
    if report.outcome != ferry_engine::report::ReportOutcome::Completed {
        eprintln!("receiver:\n{}", std::fs::read_to_string(&outside).unwrap_or_default());
    }
    // Every page is checked where the workload now is.
    let checked = lab
        .client()
        .enter(|| -> Result<_> { Ok(Client::connect(service, Duration::from_secs(60))?.check()?) })??;
    let lost = seen.lost + seen.repeated + seen.reordered + seen.errors;
    report.client =
        Some(ClientReport { longest_gap_ms: seen.longest_gap_ms, operations: seen.operations, lost });
    let right = seen.is_clean() && checked.errors == 0 && checked.checked > 0;
    for message in &seen.messages {
        eprintln!("client: {message}");
    }
    let _ = receiver.kill(nix::sys::signal::Signal::SIGTERM);
    let _ = receiver.wait_for(Duration::from_secs(10));
    Ok(Run { report, right })
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

fn wait_for(patience: Duration, mut is: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !is() {
        if Instant::now() > deadline {
            bail!("not ready within {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
