//! Runs a target for a while on a stable compiler: everything that once failed,
//! valid inputs, then mutations of both by a fixed seed and by a fresh one.

use crate::Target;
use crate::mutate::mutate;
use nix::sys::resource::{Resource, setrlimit};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::fs;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// Mutations by the fixed seed: the same in every run, so that a finding in CI is
/// about the change and not about luck.
const FIXED: u64 = 2000;
/// What a process may map: an input that makes a parser ask for more ends it.
const MEMORY: u64 = 16 << 30;

/// For how long each target runs: `FERRY_FUZZ_SECONDS`, or a second.
pub fn patience() -> Duration {
    let seconds = std::env::var("FERRY_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or(1.0))
}

/// Runs a target.
///
/// # Panics
/// When the target does: with the seed (`FERRY_FUZZ_SEED` repeats it) and with the
/// place where the input is.
pub fn run(target: Target, patience: Duration) {
    let began = Instant::now();
    let _ = setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY);
    let mut inputs = corpus(target.name);
    inputs.extend((target.seeds)());
    let mut trial = Trial::of(target);
    for (index, input) in inputs.iter().enumerate() {
        trial.run(input, &format!("input {index} of the corpus and the valid ones"));
    }
    inputs.push(Vec::new());

    let repeated = std::env::var("FERRY_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    let fresh: u64 = repeated.unwrap_or_else(rand::random);
    let fixed = (0..FIXED).map(|number| (0, number));
    for (seed, number) in fixed.chain((0..).map(|number| (fresh, number))) {
        if seed != 0 && began.elapsed() > patience {
            break;
        }
        let mut random = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut input = inputs[random.random_range(0..inputs.len())].clone();
        let other = &inputs[random.random_range(0..inputs.len())];
        mutate(&mut input, other, &mut random);
        trial.run(&input, &format!("FERRY_FUZZ_SEED={seed}, mutation {number}"));
    }
    println!("{}: {} inputs, seed {fresh}", target.name, trial.count);
}

/// Where inputs and directories of images are: in memory if that can be.
pub fn scratch() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// One target's runs, with the input kept where even an abort leaves it.
struct Trial {
    target: Target,
    kept: NamedTempFile,
    count: u64,
}

impl Trial {
    fn of(target: Target) -> Trial {
        let prefix = format!("ferry-fuzz-{}-", target.name);
        let kept = tempfile::Builder::new().prefix(&prefix).tempfile_in(scratch());
        Trial { target, kept: kept.expect("a file for inputs can be made"), count: 0 }
    }

    fn keep(&self, input: &[u8]) {
        let file = self.kept.as_file();
        let kept = file.write_all_at(input, 0).and_then(|()| file.set_len(input.len() as u64));
        kept.expect("an input can be kept");
    }

    fn run(&mut self, input: &[u8], which: &str) {
        self.count += 1;
        self.keep(input);
        if catch_unwind(AssertUnwindSafe(|| (self.target.run)(input))).is_err() {
            let shorter = shorten(self.target, input.to_vec());
            self.keep(&shorter);
            self.kept.disable_cleanup(true);
            let (name, kept) = (self.target.name, self.kept.path());
            panic!(
                "{name}: {which} fails; {} bytes of it are enough. They are in {}: \
                 mend it, and keep them in fuzz/corpus/{name}/",
                shorter.len(),
                kept.display()
            );
        }
    }
}

/// Leaves out what is not needed to fail, in ever smaller parts.
fn shorten(target: Target, mut input: Vec<u8>) -> Vec<u8> {
    let fails = |input: &[u8]| catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err();
    let mut part = input.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut without = input.clone();
            without.drain(at..(at + part).min(input.len()));
            if fails(&without) {
                input = without;
            } else {
                at += part;
            }
        }
        part = if part == 1 { 0 } else { part.div_ceil(2) };
    }
    input
}

/// What once failed.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("the corpus can be read")).collect()
}
