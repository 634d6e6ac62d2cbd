//! Workloads of three sizes, one move each: what crosses the wire, and what memory
//! the engines take for it.

use crate::limits::Limits;
use crate::sampler::{Peaks, Sampler};
use crate::support::Rig;
use crate::support::rig::{FERRY, SERVICE};
use anyhow::{Context, Result, bail, ensure};
use ferry_lab::hosts::{Host, Program};
use ferry_lab::workload::Client;
use serde::Serialize;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

const SIZES_MIB: [u64; 3] = [256, 1024, 4096];
/// Wire bytes by content bytes.
const WIRE_LIMIT: f64 = 1.1;
/// MiB of an engine's memory, the page store aside.
const MEMORY_LIMIT: f64 = 256.0;

#[derive(Serialize)]
pub struct Move {
    size_mib: u64,
    /// Pages with content that were read and sent in rounds, in bytes.
    content_in_rounds: u64,
    /// What frames, page numbers and checksums made of it.
    wire_in_rounds: u64,
    /// What the pages of the freeze took on the wire.
    wire_in_freeze: u64,
    /// All that came out of the destination's cable meanwhile: images and control
    /// messages, and what QUIC, UDP, IP and Ethernet add; acknowledgements not.
    cable: u64,
    wire_ratio: f64,
    cable_ratio: f64,
    source: Peaks,
    destination: Peaks,
    report: Value,
}

pub fn run(limits: &mut Limits) -> Result<Vec<Move>> {
    SIZES_MIB.into_iter().map(|size| one(size, limits)).collect()
}

fn one(size_mib: u64, limits: &mut Limits) -> Result<Move> {
    let Some(rig) = Rig::new("moves", &[]) else { bail!("this machine cannot make the hosts") };
    let address = SocketAddr::from((SERVICE, 7000));
    let program = Program::new(FERRY)
        .args(["workload", "--listen", &address.to_string(), "--memory", &format!("{size_mib}M")])
        .args(["--dirty-rate", "50M", "--working-set", "128M"]);
    let workload = rig.start(program);
    let mut client = rig.connect(|| Ok(Client::connect(address, Duration::ZERO)?));
    client.wait_filled(Duration::from_secs(300))?;

    let (here, there) = (rig.here(), rig.there());
    let before = received(there)?;
    let (report, source, destination) = std::thread::scope(|scope| {
        let (source, destination) = (Sampler::start(scope, here), Sampler::start(scope, there));
        let report = rig.move_on(workload.pid, &[]);
        (report, source.stop(), destination.stop())
    });
    let cable = received(there)? - before;
    let check = client.check()?;
    ensure!(check.errors == 0 && check.checked > 0, "the memory is wrong: {check:?}");

    let rounds = report["rounds"].as_array().context("no rounds in the report")?;
    let sum = |name: &str| rounds.iter().filter_map(|round| round[name].as_u64()).sum::<u64>();
    let (content_in_rounds, wire_in_rounds) = (sum("raw_bytes"), sum("wire_bytes"));
    let wire_in_freeze = report["final_bytes"].as_u64().context("no final_bytes in the report")?;
    let wire = report["wire_bytes"].as_u64().context("no wire_bytes in the report")?;
    // What the freeze sent counts as content as it is: its frames are a hundredth of
    // a per cent of all.
    let content = (content_in_rounds + wire_in_freeze) as f64;
    let (wire_ratio, cable_ratio) = (wire as f64 / content, cable as f64 / content);
    println!(
        "  {size_mib} MiB: {:.1} MiB of content in {} rounds and the freeze, {:.1} MiB on the wire",
        content / 1048576.0,
        rounds.len(),
        wire as f64 / 1048576.0
    );
    limits.at_most("wire bytes by content, as reported", wire_ratio, WIRE_LIMIT, "");
    limits.at_most("wire bytes by content, at the cable", cable_ratio, WIRE_LIMIT, "");
    let of =
        |peaks: &Peaks, kind: &str| peaks.get(kind).copied().with_context(|| format!("no {kind} was seen"));
    let (engine, receiver) = (of(&source, "migrate")?, of(&destination, "receive")?);
    println!(
        "    source's engine: anonymous {:.1} MiB; high-water marks in MiB: {:?} and {:?}",
        engine.anonymous,
        hwm(&source),
        hwm(&destination)
    );
    limits.at_most("source's engine, high-water mark", engine.hwm, MEMORY_LIMIT, " MiB");
    limits.at_most("receiver's own memory beside its store", receiver.anonymous, MEMORY_LIMIT, " MiB");
    Ok(Move {
        size_mib,
        content_in_rounds,
        wire_in_rounds,
        wire_in_freeze,
        cable,
        wire_ratio,
        cable_ratio,
        source,
        destination,
        report,
    })
}

fn hwm(peaks: &Peaks) -> Vec<String> {
    peaks.iter().map(|(kind, peak)| format!("{kind} {:.0}", peak.hwm)).collect()
}

/// Bytes that the host's interface has received.
fn received(host: &Host) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/net/dev", host.first_process()))?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("no eth0")?;
    Ok(line.split_whitespace().next().context("an empty line")?.parse()?)
}
