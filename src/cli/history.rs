//! `ferry history`: the checkpoints of a container.

use super::target::TargetName;
use super::{Common, print_json};
use crate::exit::End;
use anyhow::Result;
use ferry_engine::checkpoints::Store;
use std::time::{Duration, UNIX_EPOCH};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Of what: `docker:NAME`.
    target: TargetName,
    /// Remove this checkpoint.
    #[arg(long, value_name = "NAME")]
    remove: Option<String>,
}

pub fn run(options: Options) -> Result<End> {
    let store = Store::of(&options.common.state, &options.target.to_string());
    if let Some(name) = &options.remove {
        store.remove(name)?;
    }
    let all = store.list()?;
    if options.common.json {
        let list: Vec<_> = all
            .iter()
            .map(|one| serde_json::json!({ "name": one.name, "at": one.at, "frozen_ms": one.frozen_ms, "criu": one.criu }))
            .collect();
        print_json(&list)?;
    } else if all.is_empty() {
        println!("{} has no checkpoints: `ferry checkpoint` takes one", options.target);
    } else {
        for one in all {
            let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(one.at));
            println!("{at}  {}  frozen {:.1} ms", one.name, one.frozen_ms);
        }
    }
    Ok(End::Done)
}
