//! Whether rounds stop the workload: its longest gaps, seen from inside its
//! processes, while it is migrated and while it is not.

use crate::spread;
use crate::support::Rig;
use crate::support::rig::{FERRY, SERVICE};
use anyhow::{Context, Result, bail};
use ferry_lab::hosts::Program;
use ferry_lab::workload::Client;
use serde::Serialize;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const RUNS: usize = 6;
const PROCESSES: u32 = 4;
/// Between two questions for the longest gap.
const PERIOD: Duration = Duration::from_millis(5);

/// Milliseconds; a run each.
#[derive(Default, Serialize)]
pub struct Stops {
    /// The longest gap of any process in as long as the rounds took, nothing moving.
    at_rest_ms: Vec<f64>,
    /// The longest one in the rounds.
    in_rounds_ms: Vec<f64>,
    /// When that was told, since the migration was started.
    in_rounds_at_ms: Vec<f64>,
    /// How long the injection stopped a process at most, as reported.
    injection_ms: Vec<f64>,
    /// The freeze, seen from inside, and the downtime as reported.
    freeze_ms: Vec<f64>,
    downtime_ms: Vec<f64>,
    reports: Vec<Value>,
}

pub fn run() -> Result<Stops> {
    let Some(rig) = Rig::new("stops", &[]) else { bail!("this machine cannot make the hosts") };
    let address = SocketAddr::from((SERVICE, 7000));
    let program = Program::new(FERRY)
        .args(["workload", "--listen", &address.to_string(), "--memory", "1G", "--watching", "pulse"])
        .args(["--dirty-rate", "50M", "--working-set", "256M", "--processes", &PROCESSES.to_string()]);
    let workload = rig.start(program);
    let mut client = rig.connect(|| Ok(Client::connect(address, Duration::ZERO)?));
    client.wait_filled(Duration::from_secs(300))?;

    let mut stops = Stops::default();
    let mut move_on = || -> Result<()> {
        let mut report = Value::Null;
        let gaps = watch(&mut client, || report = rig.move_on(workload.pid, &[]))?;
        let rounds = report["rounds"].as_array().context("no rounds in the report")?;
        let each = |name: &'static str| rounds.iter().filter_map(move |round| round[name].as_f64());
        let spent = Duration::from_secs_f64(each("duration_ms").sum::<f64>() / 1e3);
        // Nothing of it but the freeze is that long. All that was told before it
        // began is the rounds'; what is told after it may be its, by another process.
        let freeze = longest(&gaps).context("no gap was seen")?;
        let half = Duration::from_secs_f64(freeze.ms / 2e3);
        let before: Vec<Gap> = gaps.iter().copied().filter(|gap| gap.told + half < freeze.told).collect();
        let worst = longest(&before).context("no gap was seen in the rounds")?;
        stops.freeze_ms.push(freeze.ms);
        stops.in_rounds_ms.push(worst.ms);
        stops.in_rounds_at_ms.push(worst.told.as_secs_f64() * 1e3);
        stops.injection_ms.push(each("frozen_ms").fold(0.0, f64::max));
        stops.downtime_ms.push(report["downtime_ms"].as_f64().context("no downtime in the report")?);
        stops.reports.push(report);
        let rest = watch(&mut client, || std::thread::sleep(spent))?;
        stops.at_rest_ms.push(longest(&rest).context("no gap was seen")?.ms);
        Ok(())
    };
    for _ in 0..RUNS {
        move_on()?;
    }
    println!(
        "  {PROCESSES} processes, 1 GiB dirtied at 50 MiB/s, {RUNS} moves, median (lowest to highest) in ms"
    );
    println!(
        "  longest gap at rest {}, in the rounds {}",
        spread(&stops.at_rest_ms),
        spread(&stops.in_rounds_ms)
    );
    println!("  injection {} (wanted: at most 2 for each process)", spread(&stops.injection_ms));
    println!("  freeze from inside {}, downtime {}", spread(&stops.freeze_ms), spread(&stops.downtime_ms));
    Ok(stops)
}

/// The longest gap of any process since the one before it was told.
#[derive(Clone, Copy)]
struct Gap {
    ms: f64,
    /// Since the beginning.
    told: Duration,
}

fn longest(gaps: &[Gap]) -> Option<Gap> {
    gaps.iter().copied().max_by(|a, b| a.ms.total_cmp(&b.ms))
}

/// The gaps that the workload's processes noted while `work` ran, in order, each of
/// about [`PERIOD`].
fn watch(client: &mut Client, work: impl FnOnce()) -> Result<Vec<Gap>> {
    let done = AtomicBool::new(false);
    client.longest_gap()?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut gaps = Vec::new();
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(PERIOD);
                let ms = client.longest_gap()?.as_secs_f64() * 1e3;
                gaps.push(Gap { ms, told: began.elapsed() });
            }
            Ok(gaps)
        });
        work();
        done.store(true, Ordering::Relaxed);
        asking.join().expect("the asking thread")
    })
}
