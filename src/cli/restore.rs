//! `ferry restore`, `ferry rollback`, `ferry clone`: a container goes on from a
//! checkpoint, as itself or as another.

use super::Common;
use super::target::{Engines, TargetName, oci_host};
use crate::exit::End;
use crate::host;
use anyhow::{Context, Result, bail};
use ferry_engine::checkpoints::{Checkpoint, Store};
use ferry_engine::docker::Container;
use ferry_engine::docker::api::Api;
use ferry_engine::docker::container::stop_now;
use ferry_engine::journal::Side;
use ferry_engine::target::docker::DockerRestorer;
use ferry_engine::target::leftovers;
use ferry_engine::target::{ReleaseError, RestorePlan, Restorer};
use ferry_transport::wire::control::TcpMode;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long Docker may take to say that a container runs which does.
const SAID: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// What: `docker:NAME`.
    target: TargetName,
    /// From which of its checkpoints.
    checkpoint: String,
    #[command(flatten)]
    how: How,
}

#[derive(clap::Args)]
pub struct CloneOptions {
    #[command(flatten)]
    common: Common,
    /// Of what: `docker:NAME`.
    target: TargetName,
    /// From which of its checkpoints.
    checkpoint: String,
    /// The new container's name.
    name: String,
    #[command(flatten)]
    how: How,
}

#[derive(clap::Args)]
struct How {
    #[command(flatten)]
    engines: Engines,
    /// The CRIU to use.
    #[arg(long, env = "FERRY_CRIU", value_name = "PATH")]
    criu: Option<PathBuf>,
}

/// The container, which is stopped, goes on.
pub fn run(options: Options) -> Result<End> {
    host::need_root("restore")?;
    let container = named(&options.target)?;
    let docker = options.how.engines.docker();
    let there = Container::inspect(&docker, container)?;
    if there.pid().is_some() {
        bail!("{} runs: `ferry rollback` stops it first, `ferry clone` makes another", options.target);
    }
    go_on(&options.common.state, &options.target, &options.checkpoint, &options.how, Place::Itself(&there))
}

/// The container is stopped at once, and goes on as it was.
pub fn roll_back(options: Options) -> Result<End> {
    host::need_root("rollback")?;
    let container = named(&options.target)?;
    let docker = options.how.engines.docker();
    // It is there before anything is stopped.
    let about = read(&options.common.state, &options.target, &options.checkpoint)?;
    let there = Container::inspect(&docker, container)?;
    stop_now(&docker, &there).with_context(|| format!("{} could not be stopped", options.target))?;
    let (state, how) = (&options.common.state, &options.how);
    go_on(state, &options.target, &about.name, how, Place::Itself(&there))
        .with_context(|| format!("{} is stopped; `ferry restore` tries again", options.target))
}

/// Another container begins where the first one was.
pub fn clone(options: CloneOptions) -> Result<End> {
    host::need_root("clone")?;
    named(&options.target)?;
    go_on(
        &options.common.state,
        &options.target,
        &options.checkpoint,
        &options.how,
        Place::Other(&options.name),
    )
}

fn named(target: &TargetName) -> Result<&str> {
    match target {
        TargetName::Docker(name) => Ok(name),
        other => bail!("{other} has no checkpoints: only containers of Docker's have (docker:NAME)"),
    }
}

/// CRIU's work directory: it goes in the end, and nothing that is mounted below it does.
struct Work(PathBuf);

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = leftovers::remove_directory(&self.0) {
            eprintln!("note: {} stays: {error}", self.0.display());
        }
    }
}

/// Who goes on.
enum Place<'a> {
    Itself(&'a Container),
    Other(&'a str),
}

fn read(state: &Path, target: &TargetName, name: &str) -> Result<Checkpoint> {
    let store = Store::of(state, &target.to_string());
    store
        .read(name)
        .with_context(|| format!("there is no such checkpoint: `ferry history {target}` shows them"))
}

fn go_on(state: &Path, target: &TargetName, name: &str, how: &How, place: Place<'_>) -> Result<End> {
    let about = read(state, target, name)?;
    let docker = how.engines.docker();
    let criu = host::criu(how.criu.as_deref())?;
    let setup = serde_json::to_vec(&about.setup)?;
    let restorer = DockerRestorer::new(&setup, docker.clone(), oci_host(criu.criu(), state));
    let restorer = restorer.map_err(anyhow::Error::msg)?;
    let (mut restorer, container) = match place {
        Place::Itself(there) => (restorer.into_container(there.id()), there.id().to_owned()),
        Place::Other(name) => (restorer.named(name), name.to_owned()),
    };
    let work = tempfile::TempDir::with_prefix_in("ferry-restore-", host::fast_directory(state))?;
    let work = Work(work.keep());
    let images = work.0.join("images");
    Store::of(state, &target.to_string()).lend(name, &images)?;
    let began = Instant::now();
    restorer.prepare(&work.0)?;
    let plan = RestorePlan {
        images,
        work: work.0.clone(),
        tcp: if matches!(place, Place::Itself(_)) { TcpMode::Established } else { TcpMode::Close },
        lazy: false,
        pids: Vec::new(),
    };
    let held = restorer.restore(&plan)?;
    held.release(&mut || {}).map_err(|error| match error {
        ReleaseError::NeverRan(error) => anyhow::anyhow!("it did not run: {error}"),
        ReleaseError::Unknown(error) => anyhow::anyhow!("whether it runs is not known (docker ps): {error}"),
    })?;
    wait_until(&docker, &container, Wanted::Running)?;
    if matches!(place, Place::Itself(_))
        && let Some(Err(error)) = about.aftercare.as_ref().map(|aftercare| aftercare.perform(Side::Source))
    {
        eprintln!("note: {error}");
    }
    let who = Container::inspect(&docker, &container)?;
    println!(
        "docker:{} goes on from {name}, {:.1} ms after it was asked for",
        who.name(),
        began.elapsed().as_secs_f64() * 1e3
    );
    Ok(End::Done)
}

/// What Docker is to say of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Running,
    Stopped,
}

/// Docker says so a moment after it is so. One that is removed when it ends has stopped.
pub(super) fn wait_until(docker: &Api, container: &str, wanted: Wanted) -> Result<()> {
    let deadline = Instant::now() + SAID;
    loop {
        let said = match Container::inspect(docker, container) {
            Ok(container) if container.pid().is_some() => Wanted::Running,
            Ok(_) => Wanted::Stopped,
            Err(error) if error.is_missing() && wanted == Wanted::Stopped => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if said == wanted {
            return Ok(());
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "it is {wanted:?}, and Docker does not say so (docker ps)"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
