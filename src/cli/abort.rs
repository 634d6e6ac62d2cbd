//! `ferry abort`: gives up a migration that is under way, from either end.

use super::Common;
use crate::exit::End;
use anyhow::{Context, Result, bail};
use ferry_engine::destination::recovery::{self as destination, DestinationStanding};
use ferry_engine::destination::requests;
use ferry_engine::journal::{self, Side, SourceRecord};
use ferry_engine::source::recovery::{self as source, SourceStanding};
use ferry_transport::wire::control::MigrationId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
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
    if journal::list(state, Side::Source)?.contains(&id) {
        return at_source(state, id);
    }
    if journal::list(state, Side::Destination)?.contains(&id) {
        return at_destination(state, id);
    }
    bail!("this host knows no migration {id}: `ferry status`")
}

fn at_source(state: &Path, id: MigrationId) -> Result<End> {
    let entries = journal::read::<SourceRecord>(state, id)?;
    let engine = entries.iter().find_map(|entry| match &entry.record {
        SourceRecord::Started { engine, .. } => Some(*engine),
        _ => None,
    });
    let engine = engine.with_context(|| format!("the journal of {id} has no beginning"))?;
    if !engine.is_of_here() {
        bail!("the engine of {id} is in another PID namespace: run this inside it (nsenter --pid)");
    }
    if !engine.is_alive() {
        bail!("the engine of {id} is not running: `ferry status` says what became of it");
    }
    kill(Pid::from_raw(engine.pid), Signal::SIGTERM)?;
    wait(id, || {
        Ok(match source::standing(state, id)? {
            SourceStanding::Aborted { .. } => {
                println!("{id}: aborted; the workload runs here");
                Some(End::Done)
            }
            SourceStanding::Completed => {
                bail!("too late: {id} had been committed; the workload runs at the destination")
            }
            SourceStanding::InDoubt { .. } => bail!("{id} is in doubt: `ferry resolve {id}`"),
            _ => None,
        })
    })
}

fn at_destination(state: &Path, id: MigrationId) -> Result<End> {
    if !journal::is_open(state, id, Side::Destination) {
        bail!("no receiver is at work on {id}: `ferry status` says what became of it");
    }
    requests::ask_to_abort(state, id)?;
    let ended = wait(id, || {
        Ok(match destination::standing(state, id)? {
            DestinationStanding::Discarded { .. } => {
                println!("{id}: given up; nothing of it runs here, and it goes on at the source");
                Some(End::Done)
            }
            DestinationStanding::Resumed => bail!("too late: {id} had been committed; it runs here"),
            DestinationStanding::UnderWay => None,
            other => bail!("{id} ended otherwise ({other:?}): `ferry status`"),
        })
    });
    requests::take(state, id);
    ended
}

/// Looks until it is known how it ended.
fn wait(id: MigrationId, mut look: impl FnMut() -> Result<Option<End>>) -> Result<End> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(end) = look()? {
            return Ok(end);
        }
        if Instant::now() > deadline {
            bail!("{id} did not end within 60 s: `ferry status`");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
