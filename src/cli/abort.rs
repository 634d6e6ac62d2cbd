//! `ferry abort`: gives up a migration that this host's engine is at work on.

use super::Common;
use crate::exit::End;
use anyhow::{Context, Result, bail};
use ferry_engine::journal::{self, SourceRecord};
use ferry_engine::source::recovery::{SourceStanding, standing};
use ferry_transport::wire::control::MigrationId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// The migration, as `ferry status` shows it.
    id: MigrationId,
}

pub fn run(options: Options) -> Result<End> {
    let (state, id) = (&options.common.state, options.id);
    let entries = journal::read::<SourceRecord>(state, id)?;
    let engine = entries.iter().find_map(|entry| match &entry.record {
        SourceRecord::Started { engine, .. } => Some(*engine),
        _ => None,
    });
    let engine = engine.with_context(|| format!("this host sends no migration {id}: `ferry status`"))?;
    if !engine.is_of_here() {
        bail!("the engine of {id} is in another PID namespace: run this inside it (nsenter --pid)");
    }
    if !engine.is_alive() {
        bail!("the engine of {id} is not running: `ferry status` says what became of it");
    }
    kill(Pid::from_raw(engine.pid), Signal::SIGTERM)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match standing(state, id)? {
            SourceStanding::Aborted { .. } => {
                println!("{id}: aborted; the workload runs here");
                return Ok(End::Done);
            }
            SourceStanding::Completed => {
                bail!("too late: {id} had been committed; the workload runs at the destination")
            }
            SourceStanding::InDoubt { .. } => bail!("{id} is in doubt: `ferry resolve {id}`"),
            _ if Instant::now() > deadline => bail!("{id} did not end within 60 s: `ferry status`"),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
