//! The machine that the numbers are of.

use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt;
use std::fs::read_to_string;
use std::process::Command;

#[derive(Serialize)]
pub struct Machine {
    /// UTC, `YYYY-MM-DD`.
    date: String,
    kernel: String,
    cpu: String,
    cores: usize,
    memory_mib: u64,
    /// Of one minute, when the suite began.
    load_at_start: f64,
    /// The commit, `-dirty` behind it where files were changed.
    revision: String,
}

impl Machine {
    pub fn here() -> Result<Machine> {
        let cpuinfo = read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let meminfo = read_to_string("/proc/meminfo")?;
        let total =
            meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        Ok(Machine {
            date: output("date", &["--utc", "+%F"])?,
            kernel: read_to_string("/proc/sys/kernel/osrelease")?.trim().into(),
            cpu: model.map_or("unknown", |(_, name)| name).into(),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory_mib: total.context("no MemTotal")?.parse::<u64>()? / 1024,
            load_at_start: load()?,
            revision: output("git", &["describe", "--always", "--dirty"])
                .unwrap_or_else(|_| "unknown".into()),
        })
    }

    /// For a directory: the date and, shortly, the machine.
    pub fn name(&self) -> String {
        let words = self.cpu.split(|c: char| !c.is_ascii_alphanumeric());
        let telling = |word: &&str| !word.is_empty() && !["R", "TM", "CPU", "Processor"].contains(word);
        let cpu: Vec<String> = words.filter(telling).take(4).map(str::to_lowercase).collect();
        let kernel = self.kernel.split('.').take(2).collect::<Vec<_>>().join(".");
        format!("{}-{}x-{}-linux-{kernel}", self.date, self.cores, cpu.join("-"))
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Machine { date, kernel, cpu, cores, memory_mib, load_at_start, revision } = self;
        write!(
            f,
            "{date}, {cores} × {cpu}, {memory_mib} MiB, Linux {kernel}, load {load_at_start:.2}, {revision}"
        )
    }
}

/// The load of the last minute.
pub fn load() -> Result<f64> {
    let text = read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().context("an empty loadavg")?.parse()?)
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let out = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output()?;
    anyhow::ensure!(out.status.success(), "{program} failed");
    Ok(String::from_utf8(out.stdout)?.trim().into())
}
