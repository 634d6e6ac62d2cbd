//! The command line: one file a verb.

mod abort;
mod check;
mod checkpoint;
mod demo;
pub mod hidden;
mod history;
mod identity;
mod migrate;
mod pair;
mod preflight;
mod receive;
mod resolve;
mod restore;
mod setup;
mod status;
mod target;

use crate::exit::End;
use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Moves running Linux processes to another host: memory is copied while they
/// run, then they stand still for some tens of milliseconds, and go on there.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub struct Arguments {
    /// Log more; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub verb: Verb,
}

/// What all verbs share.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Where identity, peers, journals and reports are kept.
    #[arg(long, env = "FERRY_STATE", default_value = crate::host::STATE, value_name = "DIR")]
    pub state: PathBuf,
    /// Print JSON on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Two hosts, a client and a workload on this machine: migrate, and print the report.
    Demo(demo::Options),
    /// Find what would stop a migration, without touching anything.
    Check(check::Options),
    /// Move a running target to another host.
    Migrate(Box<migrate::Options>),
    /// Take migrations from other hosts.
    Receive(receive::Options),
    /// Print this host's identity, or that of a peer.
    Identity(identity::Options),
    /// Decide who may send to whom.
    Pair(pair::Options),
    /// Show the migrations that this host knows of.
    Status(status::Options),
    /// Give up a migration that is under way.
    Abort(abort::Options),
    /// End a migration that is in doubt.
    Resolve(resolve::Options),
    /// Write a container down as it is.
    Checkpoint(checkpoint::Options),
    /// Let a stopped container go on from a checkpoint.
    Restore(restore::Options),
    /// Stop a container and let it go on from a checkpoint.
    Rollback(restore::Options),
    /// Make another container that begins at a checkpoint.
    Clone(restore::CloneOptions),
    /// Show, or remove, a container's checkpoints.
    History(history::Options),
    /// Make a private CRIU that works on this kernel, and test it.
    Setup(setup::Options),
    /// Run a self-checking process tree that serves a TCP counter.
    Workload(ferry_lab::workload::Options),
}

pub fn run(verb: Verb) -> Result<End> {
    match verb {
        Verb::Demo(options) => demo::run(options),
        Verb::Check(options) => check::run(options),
        Verb::Migrate(options) => migrate::run(*options),
        Verb::Receive(options) => receive::run(options),
        Verb::Identity(options) => identity::run(options),
        Verb::Pair(options) => pair::run(options),
        Verb::Status(options) => status::run(options),
        Verb::Abort(options) => abort::run(options),
        Verb::Resolve(options) => resolve::run(options),
        Verb::Checkpoint(options) => checkpoint::run(options),
        Verb::Restore(options) => restore::run(options),
        Verb::Rollback(options) => restore::roll_back(options),
        Verb::Clone(options) => restore::clone(options),
        Verb::History(options) => history::run(options),
        Verb::Setup(options) => setup::run(options),
        Verb::Workload(options) => ferry_lab::workload::run(&options).map(|never| match never {}),
    }
}

/// A runtime for a verb that talks to the network.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    use std::io::Write;
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}
