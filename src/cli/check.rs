//! `ferry check`: what would stop a migration, or lose something, and what to do about it.
//!
//! Reads only: the target is neither stopped nor traced, and the destination, if one
//! is asked, reserves and makes nothing. Exit code 0 when nothing blocks, 3 when
//! something does, 1 when the question could not be answered. `--json` prints a
//! [`Preflight`](super::preflight::Preflight): docs/check.md.

use super::preflight::{Moved, Side, connector};
use super::{Common, print_json, runtime};
use crate::exit::End;
use crate::host;
use anyhow::{Result, bail};
use ferry_engine::check::{Finding, Force, Severity, ask_destination};
use ferry_engine::companion::Companion;
use ferry_transport::quic::LinkOptions;
use ferry_transport::wire::control::{MigrationId, RestorerRequest};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    moved: Moved,
    /// Ask this destination too, where `ferry receive` listens.
    #[arg(long, value_name = "HOST:PORT")]
    to: Option<String>,
}

pub fn run(options: Options) -> Result<End> {
    host::need_root("check")?;
    let moved = &options.moved;
    let found = moved.find()?;
    let mut preflight = moved.check(&found);
    let criu = match host::existing_criu(moved.criu.as_deref()) {
        Ok(installed) => Some(installed),
        Err(error) => {
            let what = format!("there is no CRIU to work with: {error}");
            let advice = "`ferry setup` makes one";
            preflight.add(Side::Source, [Finding::host(Severity::Blocks, Force::Overridable, what, advice)]);
            None
        }
    };
    if let Some(to) = &options.to {
        // What only its restorer understands can be had of a target that can be moved.
        let restorer = match &criu {
            Some(criu) if !preflight.is_blocked() => {
                found.open(criu.criu(), &options.common.state)?.restorer()?
            }
            _ => RestorerRequest::process(),
        };
        // No migration: the destination writes nothing down under this number.
        let along = moved.companion(&found)?.map(|files| files.setup()).unwrap_or_default();
        let offer = moved.offer(MigrationId(0), found.root, moved.target.to_string(), restorer, along);
        let hello = host::hello(&criu.map(|criu| criu.version.to_string()).unwrap_or_default());
        let connector = connector(to, &options.common.state, LinkOptions::default())?;
        match runtime()?.block_on(ask_destination(&connector, hello, offer)) {
            Ok(findings) => preflight.add(Side::Destination, findings.all().iter().cloned()),
            Err(error) => preflight.no_answer = Some(error.to_string()),
        }
        preflight.to = Some(to.clone());
    }
    if options.common.json {
        print_json(&preflight)?;
    } else {
        print!("{}", preflight.text());
    }
    match (&preflight.no_answer, preflight.is_blocked()) {
        (Some(why), _) => {
            bail!("{} did not answer: {why}; the workload runs on", options.to.unwrap_or_default())
        }
        (None, true) => Ok(End::Refused),
        (None, false) => Ok(End::Done),
    }
}
