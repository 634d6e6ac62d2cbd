//! `ferry resolve`: ends a migration that is in doubt, by asking the other side,
//! or by the operator's word.

use super::{Common, runtime};
use crate::exit::End;
use crate::host;
use anyhow::{Context, Result, bail};
use ferry_engine::destination::recovery as destination;
use ferry_engine::journal::{self, Side, SourceRecord};
use ferry_engine::source::recovery::{self as source, SourceStanding};
use ferry_transport::quic::{Identity, LinkOptions, QuicConnector, Trust};
use ferry_transport::wire::control::{Hello, MigrationId, Outcome, PROTOCOL_VERSION};
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// The migration, as `ferry status` shows it.
    id: MigrationId,
    /// Decide it: the workload is to live on this host, or on the other. Say the same
    /// on both hosts. Without it the other host's journal is asked, and decides.
    #[arg(long, value_enum)]
    runs: Option<Runs>,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Runs {
    /// On this host.
    Here,
    /// On the other host.
    There,
}

pub fn run(options: Options) -> Result<End> {
    host::need_root("resolve")?;
    let (state, id) = (&options.common.state, options.id);
    if journal::list(state, Side::Source)?.contains(&id) {
        return resolve_source(&options);
    }
    if !journal::list(state, Side::Destination)?.contains(&id) {
        bail!("this host knows no migration {id}: `ferry status`");
    }
    let standing = destination::settle(state, &host::fast_directory(state), id)?;
    let destination::DestinationStanding::ReleaseUnknown { tasks } = standing else {
        println!("{id}: not in doubt here: {standing:?}");
        return Ok(End::Done);
    };
    let Some(runs) = options.runs else {
        let alive = tasks.iter().filter(|task| task.is_alive()).count();
        println!(
            "{id}: the receiver died while letting the copy run; {alive} of its {} processes exist here.\n\
             If they work, decide `--runs here` on this host and `--runs there` on the source; else the other way round.",
            tasks.len()
        );
        return Ok(End::InDoubt);
    };
    let side = if runs == Runs::Here { Side::Destination } else { Side::Source };
    destination::resolve(state, &host::fast_directory(state), id, &tasks, side)?;
    if runs == Runs::There {
        println!("{id}: what was here of the copy was removed");
    }
    Ok(End::Done)
}

fn resolve_source(options: &Options) -> Result<End> {
    let (state, id) = (&options.common.state, options.id);
    match source::settle(state, id)? {
        SourceStanding::InDoubt { .. } => {}
        SourceStanding::UnderWay => bail!("its engine is still at work, and asks by itself"),
        other => {
            println!("{id}: not in doubt here: {other:?}");
            return Ok(End::Done);
        }
    }
    let runs = match options.runs {
        Some(Runs::Here) => Side::Source,
        Some(Runs::There) => Side::Destination,
        None => {
            let outcome = ask_until_decided(options)?;
            println!("{id}: the destination says: {outcome:?}");
            match outcome {
                Outcome::Resumed => Side::Destination,
                Outcome::NotResumed => Side::Source,
                Outcome::Undecided | Outcome::InDoubt(_) | Outcome::Unknown => {
                    println!(
                        "It cannot be decided from here. Look at the destination (`ferry status` there), then decide:\n\
                         `ferry resolve {id} --runs here|there` on both hosts, the same in meaning. Two running copies are worse than none."
                    );
                    return Ok(End::InDoubt);
                }
            }
        }
    };
    for line in source::resolve(state, id, runs).map_err(anyhow::Error::msg)? {
        println!("{id}: {line}");
    }
    Ok(End::Done)
}

/// A destination that has not decided does so by itself, when it finds that its
/// source is gone or has been silent for its patience.
fn ask_until_decided(options: &Options) -> Result<Outcome> {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let outcome = ask(options)?;
        if outcome != Outcome::Undecided || Instant::now() > deadline {
            return Ok(outcome);
        }
        eprintln!("{}: the destination has not decided yet; asking again", options.id);
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn ask(options: &Options) -> Result<Outcome> {
    let state = &options.common.state;
    let entries = journal::read::<SourceRecord>(state, options.id)?;
    let to = entries.iter().find_map(|entry| match &entry.record {
        SourceRecord::Started { to, .. } => Some(to.clone()),
        _ => None,
    });
    let to = to.context("the journal does not say where the migration went")?;
    let address = to.to_socket_addrs()?.next().with_context(|| format!("{to} has no address"))?;
    let identity = Identity::load_or_create(state)?;
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        revision: format!("ferry {}", env!("CARGO_PKG_VERSION")),
        machine: std::env::consts::ARCH.into(),
        page_size: 4096,
        kernel: String::new(),
        criu: String::new(),
        cpu_features: Vec::new(),
    };
    runtime()?.block_on(async {
        let connector = QuicConnector::new(address, identity, Trust::open(state), LinkOptions::default());
        Ok(source::ask(&connector, &hello, options.id).await?)
    })
}
