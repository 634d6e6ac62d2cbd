//! `make bench`: what ferry promises in numbers, measured on this machine.
//!
//! ```text
//! cargo bench -p ferry --bench suite -- [PART…]     page-path compare moves stops
//! ```
//!
//! Each part prints what it measured and writes it, with every sample, under
//! `benches/results/` as soon as it is done. Times are only told; what a limit on
//! bytes or memory does not hold ends the suite with an error.

mod compare;
mod limits;
mod machine;
mod moves;
mod page_path;
mod sampler;
mod stops;
#[path = "../../tests/support/mod.rs"]
mod support;

use anyhow::{Context, Result, bail};
use limits::Limits;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Where a run's results go.
struct Results(PathBuf);

impl Results {
    fn save(&self, part: &str, value: &impl Serialize) -> Result<()> {
        let path = self.0.join(format!("{part}.json"));
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    }
}

fn main() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the benches make hosts of namespaces and need root");
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let parts = ["page-path", "compare", "moves", "stops"];
    if let Some(unknown) = wanted.iter().find(|word| !parts.contains(&word.as_str())) {
        bail!("no part `{unknown}`: there are {parts:?}");
    }
    let machine = machine::Machine::here()?;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results").join(machine.name());
    std::fs::create_dir_all(&directory)?;
    let results = Results(directory);
    println!("{machine}\n");
    results.save("machine", &machine)?;
    let mut limits = Limits::default();
    for part in parts.into_iter().filter(|part| wanted.is_empty() || wanted.iter().any(|word| word == part)) {
        println!("== {part} (load {:.2})", machine::load()?);
        match part {
            "page-path" => results.save(part, &page_path::run()?)?,
            "compare" => results.save(part, &compare::run()?)?,
            "moves" => results.save(part, &moves::run(&mut limits)?)?,
            _ => results.save(part, &stops::run()?)?,
        }
        println!();
    }
    println!("results are in {}", results.0.display());
    limits.verdict()
}

/// The middle one, or the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => (sorted[even / 2 - 1] + sorted[even / 2]) / 2.0,
    }
}

/// `median (lowest to highest)`.
fn spread(values: &[f64]) -> String {
    let lowest = values.iter().copied().fold(f64::MAX, f64::min);
    let highest = values.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({lowest:.2} to {highest:.2})", median(values))
}
