//! `ferry demo --compare`: 1 GiB of memory that is dirtied at 50 MiB/s, moved with
//! the default strategy and with stop-and-copy.

use crate::support::rig::FERRY;
use crate::{median, spread};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use std::process::{Command, Stdio};

const RUNS: usize = 5;

#[derive(Serialize)]
pub struct Compared {
    runs: usize,
    strategies: Vec<Strategy>,
    /// Median downtime of stop-and-copy by that of the default strategy.
    times_less: f64,
    /// The reports as they came, by run and strategy.
    reports: Vec<Vec<Value>>,
}

/// Milliseconds, a run each.
#[derive(Serialize)]
struct Strategy {
    name: String,
    downtime_ms: Vec<f64>,
    longest_gap_ms: Vec<f64>,
    total_ms: Vec<f64>,
    median_downtime_ms: f64,
    median_longest_gap_ms: f64,
}

pub fn run() -> Result<Compared> {
    let mut reports = Vec::new();
    for run in 1..=RUNS {
        let out = Command::new(FERRY)
            .args(["demo", "--memory", "1G", "--dirty-rate", "50M", "--compare", "--json"])
            .stderr(Stdio::null())
            .output()?;
        ensure!(out.status.success(), "ferry demo failed in run {run}");
        let both: Vec<Value> = serde_json::from_slice(&out.stdout).context("ferry demo --json")?;
        ensure!(both.len() == 2, "ferry demo --compare gave {} reports", both.len());
        reports.push(both);
    }
    let strategies: Vec<Strategy> = (0..2).map(|at| of(&reports, at)).collect::<Result<_>>()?;
    println!("  1 GiB dirtied at 50 MiB/s, {RUNS} runs, median (lowest to highest) in ms");
    for Strategy { name, downtime_ms, longest_gap_ms, total_ms, .. } in &strategies {
        println!(
            "  {name}: downtime {}, longest gap of a client {}, total {}",
            spread(downtime_ms),
            spread(longest_gap_ms),
            spread(total_ms)
        );
    }
    let times_less = strategies[1].median_downtime_ms / strategies[0].median_downtime_ms;
    println!("  {times_less:.1} times less downtime");
    Ok(Compared { runs: RUNS, strategies, times_less, reports })
}

fn of(reports: &[Vec<Value>], at: usize) -> Result<Strategy> {
    let number = |pointer: &str| -> Result<Vec<f64>> {
        let of_run = |both: &Vec<Value>| both[at].pointer(pointer).and_then(Value::as_f64);
        reports.iter().map(|both| of_run(both).with_context(|| format!("no {pointer} in a report"))).collect()
    };
    let (downtime_ms, longest_gap_ms) = (number("/downtime_ms")?, number("/client/longest_gap_ms")?);
    Ok(Strategy {
        name: reports[0][at]["strategy"]["name"].as_str().unwrap_or("unknown").into(),
        median_downtime_ms: median(&downtime_ms),
        median_longest_gap_ms: median(&longest_gap_ms),
        total_ms: number("/total_ms")?,
        downtime_ms,
        longest_gap_ms,
    })
}
