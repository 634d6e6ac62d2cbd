//! `ferry setup`: finds a CRIU that works on this kernel, or makes a private one.

use super::target::Engines;
use super::{Common, print_json};
use crate::exit::End;
use crate::host;
use anyhow::{Context, Result};
use ferry_engine::criu::install::{self, Installed, Wanted};
use ferry_engine::docker::relay;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// The CRIU to test and use.
    #[arg(long, env = "FERRY_CRIU", value_name = "PATH")]
    criu: Option<PathBuf>,
    /// Make the private one anew, whatever is there.
    #[arg(long, conflicts_with = "criu")]
    force: bool,
    /// Put ferry's relay where Docker looks for CRIU, so that containers can arrive here.
    #[arg(long)]
    engine: bool,
    #[command(flatten)]
    engines: Engines,
}

pub fn run(options: Options) -> Result<End> {
    let mut say = |step: &str| eprintln!("set-up: {step}");
    let root = host::criu_root();
    let installed = if options.force {
        install::setup(&root, &mut say)?
    } else {
        install::find(&Wanted { explicit: options.criu.clone(), root, ..Wanted::default() }, &mut say)?
    };
    let relay = match options.engine {
        true => Some(place_relay(&options, &installed)?),
        false => None,
    };
    if options.common.json {
        print_json(&serde_json::json!({
            "program": installed.program,
            "version": installed.version.to_string(),
            "origin": installed.origin,
            "test": installed.test,
            "relay": relay,
        }))?;
    } else {
        println!("CRIU {} works here: {}", installed.version, installed.program.display());
        if let Some(relay) = relay {
            println!("Docker finds it through ferry: {}", relay.display());
        }
    }
    Ok(End::Done)
}

/// What Docker's runtime finds as CRIU leads to ferry, and from there to this CRIU.
fn place_relay(options: &Options, criu: &Installed) -> Result<PathBuf> {
    let ferry = std::env::current_exe().context("this program's file is not known")?;
    let relays = super::target::relays(&options.common.state);
    let placed = relay::install(&options.engines.docker(), &ferry, &criu.criu().program, &relays);
    placed.context("the relay cannot be put where Docker looks for CRIU; nothing was changed")
}
