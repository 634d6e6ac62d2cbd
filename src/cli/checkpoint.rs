//! `ferry checkpoint`: writes a container down as it is.

use super::restore::{Wanted, wait_until};
use super::target::{Engines, TargetName, oci_host};
use super::{Common, print_json};
use crate::exit::End;
use crate::host;
use anyhow::{Context, Result, bail, ensure};
use ferry_engine::checkpoints::{Checkpoint, Draft, Store, is_name};
use ferry_engine::criu::rpc::PagePayload;
use ferry_engine::journal::Side;
use ferry_engine::target::Target;
use ferry_engine::target::docker::DockerTarget;
use ferry_transport::wire::control::TcpMode;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Of what: `docker:NAME`.
    target: TargetName,
    /// What it is to be called.
    name: String,
    /// Let the container run on.
    #[arg(long)]
    leave_running: bool,
    /// The longest that the container may stand still.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = humantime::parse_duration)]
    freeze_deadline: Duration,
    #[command(flatten)]
    engines: Engines,
    /// The CRIU to use.
    #[arg(long, env = "FERRY_CRIU", value_name = "PATH")]
    criu: Option<PathBuf>,
}

pub fn run(options: Options) -> Result<End> {
    host::need_root("checkpoint")?;
    let Options { common, target: wanted, name, .. } = &options;
    let TargetName::Docker(container) = wanted else {
        bail!("{wanted} has no checkpoints: only containers of Docker's have (docker:NAME)");
    };
    ensure!(is_name(name), "{name:?} cannot be a checkpoint's name: letters, digits, `.`, `_` and `-` can");
    let criu = host::criu(options.criu.as_deref())?;
    let mut target =
        DockerTarget::new(&options.engines.docker(), container, oci_host(criu.criu(), &common.state))?
            .with_pages(PagePayload::Criu);
    let aftercare = target.aftercare();
    let draft = Store::of(&common.state, &target.describe()).begin(name)?;
    let mut about = Checkpoint::new(name, target.describe(), criu.version.to_string());
    let restorer = target.restorer()?;
    about.restorer = restorer.kind;
    about.setup = serde_json::from_slice(&restorer.setup)?;
    about.aftercare.clone_from(&aftercare);

    let taken = take(&mut target, draft, &mut about, &options);
    // The container that was not stopped goes on as before.
    if (options.leave_running || taken.is_err())
        && let Some(Err(error)) = aftercare.map(|aftercare| aftercare.perform(Side::Source))
    {
        eprintln!("note: {error}");
    }
    let bytes = taken.with_context(|| format!("no checkpoint was taken; {wanted} runs on"))?;
    if !options.leave_running {
        wait_until(&options.engines.docker(), container, Wanted::Stopped)?;
    }
    if common.json {
        print_json(&serde_json::json!({
            "target": about.target, "name": about.name, "at": about.at, "frozen_ms": about.frozen_ms, "bytes": bytes,
        }))?;
    } else {
        let state = if options.leave_running { "runs on" } else { "is stopped" };
        println!("{} as {name}: it stood still for {:.1} ms and {state}", about.target, about.frozen_ms);
    }
    Ok(End::Done)
}

/// Freezes it, writes it down, and lets it end or go on. On failure it runs on.
fn take(target: &mut DockerTarget, draft: Draft, about: &mut Checkpoint, options: &Options) -> Result<u64> {
    target.prepare()?;
    let began = Instant::now();
    let held = target.freeze(&draft.images(), TcpMode::Established, options.freeze_deadline)?.hold()?;
    about.frozen_ms = began.elapsed().as_secs_f64() * 1e3;
    let kept = size(&draft.images()).and_then(|bytes| draft.keep(about).map(|()| bytes));
    match kept {
        Ok(bytes) => {
            if options.leave_running {
                held.roll_back()?;
            } else {
                held.commit()?;
            }
            Ok(bytes)
        }
        Err(error) => {
            held.roll_back()?;
            Err(error.into())
        }
    }
}

fn size(images: &std::path::Path) -> std::io::Result<u64> {
    std::fs::read_dir(images)?.try_fold(0, |sum, entry| Ok(sum + entry?.metadata()?.len()))
}
