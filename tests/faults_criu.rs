//! CRIU killed in the midst of its own work.

mod support;

use support::trial::Deed::*;
use support::trial::Ends::*;
use support::trial::{At, Trial};

#[test]
fn experiment() {
    let Some(mut trial) = Trial::new("faults-dumping") else { return };
    let mark: &'static str = std::env::var("MARK").unwrap().leak();
    let step: u64 = std::env::var("STEP").unwrap().parse().unwrap();
    for n in 0..std::env::var("COUNT").unwrap().parse().unwrap() {
        trial.goes_wrong(At::Source, "after-send:Freezing", KillCriuAmid(At::Source, mark, n * step), Here);
    }
    trial.finish();
}
