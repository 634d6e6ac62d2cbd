//! `ferry setup`: finds a CRIU that works on this kernel, or makes a private one.

use super::{Common, print_json};
use crate::exit::End;
use crate::host;
use anyhow::Result;
use ferry_engine::criu::install::{self, Wanted};
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
}

pub fn run(options: Options) -> Result<End> {
    let mut say = |step: &str| eprintln!("set-up: {step}");
    let root = host::criu_root();
    let installed = if options.force {
        install::setup(&root, &mut say)?
    } else {
        install::find(&Wanted { explicit: options.criu, root, ..Wanted::default() }, &mut say)?
    };
    if options.common.json {
        print_json(&serde_json::json!({
            "program": installed.program,
            "version": installed.version.to_string(),
            "origin": installed.origin,
            "test": installed.test,
        }))?;
    } else {
        println!("CRIU {} works here: {}", installed.version, installed.program.display());
    }
    Ok(End::Done)
}
