//! `ferry identity`: who this host is, as its peers see it.

use super::{Common, print_json};
use crate::exit::End;
use anyhow::{Context, Result};
use ferry_transport::quic::Identity;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
}

pub fn run(options: Options) -> Result<End> {
    let state = &options.common.state;
    let identity = Identity::load_or_create(state)
        .with_context(|| format!("the identity under {} cannot be used", state.display()))?;
    let fingerprint = identity.fingerprint().to_string();
    if options.common.json {
        print_json(&serde_json::json!({ "fingerprint": fingerprint }))?;
    } else {
        println!("{fingerprint}");
    }
    Ok(End::Done)
}
