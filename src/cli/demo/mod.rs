//! `ferry demo`: two hosts, a client and a workload on this machine; one
//! migration, measured from both ends.
//!
//! Everything runs in the hosts, and ends with them: after a failure and after
//! Ctrl-C as after success ([`interrupt`]).

mod app;
mod interrupt;
mod stage;

use super::{Common, print_json};
use crate::exit::End;
use crate::host;
use anyhow::{Result, bail};
use app::{App, Size};
use ferry_engine::report::{Report, ReportOutcome, text};
use ferry_lab::hosts::{Lab, LabOptions};
use ferry_lab::quantity::{parse_byte_rate, parse_bytes, parse_link_rate};
use ferry_transport::units::{ByteRate, Bytes};
use interrupt::Interrupt;
use stage::{Move, Stage};
use std::time::Duration;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// What is moved.
    #[arg(long, value_enum, default_value_t = App::Workload)]
    app: App,
    /// Its memory; of redis the data set.
    #[arg(long, default_value = "512M", value_parser = parse_bytes)]
    memory: Bytes,
    /// Unique bytes that the built-in workload dirties per second.
    #[arg(long, default_value = "50M", value_parser = parse_byte_rate)]
    dirty_rate: ByteRate,
    /// The part of its memory that the built-in workload dirties.
    #[arg(long, default_value = "256M", value_parser = parse_bytes)]
    working_set: Bytes,
    /// Processes of the built-in workload.
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
    /// What the clients or the comparison found wrong.
    wrong: Vec<String>,
}

pub fn run(options: Options) -> Result<End> {
    host::need_root("demo")?;
    options.app.need()?;
    host::criu(None)?;
    let interrupt = Interrupt::watch()?;
    let result = runs(&options, &interrupt);
    let runs = interrupt.unless_interrupted(result)?;
    print(&options, &runs)?;
    match runs.iter().flat_map(|run| &run.wrong).next() {
        None => Ok(End::Done),
        Some(_) => bail!("the workload or a client saw an error"),
    }
}

fn runs(options: &Options, interrupt: &Interrupt) -> Result<Vec<Run>> {
    let mut runs = vec![once(options, &options.strategy, interrupt)?];
    if options.compare {
        runs.push(once(options, "stop-and-copy", interrupt)?);
    }
    Ok(runs)
}

fn print(options: &Options, runs: &[Run]) -> Result<()> {
    for message in runs.iter().flat_map(|run| &run.wrong) {
        eprintln!("WRONG: {message}");
    }
    if options.common.json {
        return print_json(&runs.iter().map(|run| &run.report).collect::<Vec<_>>());
    }
    for Run { report, wrong } in runs {
        let verdict = if wrong.is_empty() { "memory and every reply right" } else { "WRONG" };
        println!("{} ({verdict})", report.strategy.name);
        print!("{}", text::render(report));
    }
    if let [mine, base] = runs
        && let (Some(mine), Some(base)) = (mine.report.downtime_ms, base.report.downtime_ms)
    {
        println!("downtime {mine:.1} ms, stop-and-copy {base:.1} ms: {:.1} times less", base / mine);
    }
    Ok(())
}

fn once(options: &Options, strategy: &str, interrupt: &Interrupt) -> Result<Run> {
    let lab =
        interrupt.lab(|| Lab::new("demo", LabOptions { link: options.link, ..LabOptions::default() }))?;
    let stage = Stage::new(&lab)?;
    let size = Size {
        memory: options.memory,
        dirty_rate: options.dirty_rate,
        working_set: options.working_set,
        processes: options.processes,
    };
    let mut subject = options.app.start(&lab, size)?;
    subject.begin(lab.client())?;
    std::thread::sleep(Duration::from_millis(500));
    let how = Move { pid: subject.pid(), strategy, downtime: &options.downtime, restore: &options.restore };
    let mut report = stage.migrate(&how)?;
    std::thread::sleep(Duration::from_secs(1));
    let seen = subject.end(lab.client())?;
    report.client = Some(seen.client);
    report.notes.push(seen.compared);
    stage.close()?;
    let mut wrong = seen.wrong;
    if report.outcome != ReportOutcome::Completed {
        wrong.push(format!("it was not moved: {}", report.workload));
    }
    Ok(Run { report, wrong })
}
