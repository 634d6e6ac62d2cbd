//! `ferry migrate`: moves a target.

use super::preflight::{Moved, Preflight, Side, connector};
use super::{Common, print_json, runtime};
use crate::exit::End;
use crate::host;
use crate::progress::Watch;
use anyhow::{Context, Result};
use ferry_engine::check::served_by_userfaultfd;
use ferry_engine::companion::Companion;
use ferry_engine::journal::{self, Side as JournalSide};
use ferry_engine::memory::ProcessSet;
use ferry_engine::memory::native::NativeSource;
use ferry_engine::net::hooks::{DEFAULT_TIMEOUT, HookFacts, Hooks};
use ferry_engine::report::environment::Environment;
use ferry_engine::report::{ReportOutcome, text};
use ferry_engine::source::keeper::Keeper;
use ferry_engine::source::{
    Finished, LocalCost, Source, SourceNetwork, SourceParts, SourcePlan, TreeCost, recovery,
};
use ferry_engine::strategy::registry;
use ferry_lab::quantity::parse_byte_rate;
use ferry_transport::link::Connector;
use ferry_transport::link::breakpoint::{Breakpoint, StoppingConnector};
use ferry_transport::quic::{Limiter, LinkOptions};
use ferry_transport::units::ByteRate;
use ferry_transport::wire::compress::Compression;
use ferry_transport::wire::control::MigrationId;
use nix::fcntl::{Flock, FlockArg};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    moved: Moved,
    /// The destination, where `ferry receive` listens.
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// When to stop copying and freeze: downtime-budget, fixed-rounds:rounds=N, stop-and-copy.
    #[arg(long, default_value = registry::NAMES[0], value_name = "NAME[:key=value,…]")]
    strategy: String,
    /// The downtime that is wanted.
    #[arg(long, default_value = "100ms", value_name = "TIME", value_parser = humantime::parse_duration)]
    downtime: Duration,
    /// The longest that the rounds may take together.
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = humantime::parse_duration)]
    deadline: Duration,
    /// The longest that the workload may stand still before the commit.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    freeze_deadline: Duration,
    /// How long an unanswered Commit is asked after.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = humantime::parse_duration)]
    doubt_patience: Duration,
    /// Connections for pages.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=16))]
    connections: u64,
    /// Parallel page streams.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    streams: u64,
    /// The most that pages may take of the network, in bytes per second.
    #[arg(long, value_name = "RATE", value_parser = parse_byte_rate)]
    max_bandwidth: Option<ByteRate>,
    /// Compression of page content.
    #[arg(long, value_enum, default_value_t = Compress::Off)]
    compress: Compress,
    /// Programs to run at each stage: docs/guide.md.
    #[arg(long, value_name = "DIR")]
    hook: Option<PathBuf>,
    /// Silence of the destination's host after which it counts as lost.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    link_timeout: Duration,
    /// For tests of failures: stop at a message.
    #[arg(long, hide = true, env = "FERRY_BREAKPOINT", value_name = "WHEN:MESSAGE:DIR")]
    breakpoint: Option<Breakpoint>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Compress {
    Auto,
    Off,
    Lz4,
    Zstd,
}

pub fn run(options: Options) -> Result<End> {
    host::need_root("migrate")?;
    let moved = &options.moved;
    let what = moved.find()?;
    let pid = what.root;
    let state = options.common.state.clone();
    let _lock = lock(&state, pid)?;
    // An engine before this one, and its keeper too, may have been killed.
    for id in journal::list(&state, JournalSide::Source)? {
        if let Err(error) = recovery::settle(&state, id) {
            eprintln!("note: migration {id} was left by an engine that died: {error}");
        }
    }
    let strategy = registry::parse(&options.strategy)?;
    let set = what.processes()?;
    // The end of a brownout is soon awaited.
    let patience = Instant::now() + Duration::from_secs(10);
    while served_by_userfaultfd(set.processes()?).is_some() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut preflight = moved.check(&what);
    if preflight.is_blocked() {
        return refuse(&preflight, options.common.json);
    }
    let mut notes = preflight.risks();
    notes.iter().for_each(|risk| eprintln!("{risk}"));
    let id = MigrationId(rand_id()?);
    let found = host::criu(moved.criu.as_deref())?;
    notes.extend(found.fallback());
    let tree = TreeCost::measure(&set.processes()?);
    let target = what.open(found.criu(), &state)?;
    let images = host::fast_directory(&state).join(format!("ferry-migrate-{id}"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&images)?;
    let _images = Remove(images.clone());

    let hello = host::hello(&found.version.to_string());
    let hooks = match &options.hook {
        Some(directory) => Hooks::open(directory, DEFAULT_TIMEOUT)?,
        None => Hooks::none(),
    };
    let facts = HookFacts {
        id: id.to_string(),
        target: target.describe(),
        peer: options.to.clone(),
        pid: Some(pid),
        address: moved.move_ip.as_ref().map(|moved| moved.address.to_string()),
        interface: moved.move_ip.as_ref().map(|moved| moved.interface.clone()),
        reason: None,
    };
    let files = moved.companion(&what)?;
    let along = files.as_ref().map(|files| files.setup()).unwrap_or_default();
    let offer = moved.offer(id, pid, target.describe(), target.restorer()?, along);
    let plan = SourcePlan {
        hello,
        to: options.to.clone(),
        state: state.clone(),
        images: images.clone(),
        downtime: options.downtime,
        deadline: options.deadline,
        freeze_deadline: options.freeze_deadline,
        doubt_patience: options.doubt_patience,
        tree,
        local_cost: LocalCost {
            freeze: Duration::from_micros(found.test.freeze_us),
            dump: Duration::from_micros(found.test.dump_us) + found.pinning_cost(offer.memory),
        },
        offer,
        streams: options.streams as usize,
        tracker: "native".into(),
        environment: Environment::here(&found.version.to_string()),
        notes,
    };
    let link = LinkOptions {
        compression: match options.compress {
            Compress::Auto => Compression::Auto,
            Compress::Off => Compression::Off,
            Compress::Lz4 => Compression::Lz4,
            Compress::Zstd => Compression::Zstd,
        },
        connections: options.connections as usize,
        limiter: options.max_bandwidth.map(|rate| Arc::new(Limiter::new(rate))),
        idle_timeout: options.link_timeout,
    };
    let connector = Box::new(connector(&options.to, &state, link)?);
    let connector: Box<dyn Connector> = match options.breakpoint {
        Some(at) => Box::new(StoppingConnector { inner: connector, at }),
        None => connector,
    };
    let (give_up, abort) = watch::channel(None);
    let parts = SourceParts {
        target,
        memory: Box::new(NativeSource::new(Box::new(set), host::own_file())),
        companion: files.map(|files| Box::new(files) as Box<dyn Companion>),
        strategy,
        connector,
        network: SourceNetwork::prepare(moved.move_ip.as_ref(), hooks, facts).map_err(anyhow::Error::msg)?,
        observer: Box::new(Watch::new()),
        abort,
    };
    let Finished { report, refusal, .. } = runtime()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::spawn(async move {
            let reason = tokio::select! {
                _ = interrupt.recv() => "interrupted (Ctrl-C)",
                _ = terminate.recv() => "asked to give up (SIGTERM, `ferry abort`)",
            };
            let _ = give_up.send(Some(reason.to_owned()));
            // Kept, so that the receiver of the reason never sees a closed channel.
            std::future::pending::<()>().await;
        });
        let source = Source::new(plan, parts)?;
        let _keeper = Keeper::start(&host::own_file(), &state, id).context("the keeper cannot be started")?;
        anyhow::Ok(source.run().await)
    })?;
    if let Some(findings) = refusal {
        preflight.to = Some(options.to.clone());
        preflight.add(Side::Destination, findings.all().iter().cloned());
        return refuse(&preflight, options.common.json);
    }
    if options.common.json {
        print_json(&report)?;
    } else {
        print!("{}", text::render(&report));
    }
    Ok(match report.outcome {
        ReportOutcome::Completed => End::Done,
        ReportOutcome::Aborted => End::Aborted,
        ReportOutcome::InDoubt => End::InDoubt,
    })
}

/// Says what blocks it. Nothing was changed.
fn refuse(preflight: &Preflight, json: bool) -> Result<End> {
    if json {
        print_json(preflight)?;
    } else {
        eprint!("{}", preflight.text());
        eprintln!("refused: the workload runs on here, nothing was changed");
    }
    Ok(End::Refused)
}

/// One migration of a target at a time. The lock goes with this process.
fn lock(state: &Path, pid: i32) -> Result<Flock<std::fs::File>> {
    let directory = state.join("locks");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .with_context(|| format!("the state directory {} cannot be used", state.display()))?;
    let file = std::fs::File::create(directory.join(format!("pid-{pid}")))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        anyhow::anyhow!("process {pid} is being migrated already ({errno}): `ferry status`")
    })
}

fn rand_id() -> Result<u128> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

/// Removes a directory at the end, whatever the end.
struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
