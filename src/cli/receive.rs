//! `ferry receive`: takes migrations.

use super::target::{Engines, oci_host};
use super::{Common, runtime};
use crate::exit::End;
use crate::host;
use anyhow::{Context, Result};
use ferry_engine::check::Forced;
use ferry_engine::destination::{PagerHandover, Receiver, ReceiverEvent, ReceiverPlan};
use ferry_engine::files::{Setup, SyncSink, obstacles};
use ferry_engine::net::hooks::{DEFAULT_TIMEOUT, Hooks};
use ferry_engine::target::docker::{self, DockerRestorer};
use ferry_engine::target::oci::{self, OciRestorer};
use ferry_engine::target::process::ProcessRestorer;
use ferry_lab::quantity::parse_bytes;
use ferry_transport::link::breakpoint::{Breakpoint, stop_at};
use ferry_transport::plain::Plain;
use ferry_transport::quic::{Identity, LinkOptions, QuicListener, Trust};
use ferry_transport::units::Bytes;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// The address to listen on (UDP).
    #[arg(long, default_value = "0.0.0.0:4433", value_name = "ADDR")]
    listen: SocketAddr,
    /// The CRIU to use.
    #[arg(long, env = "FERRY_CRIU", value_name = "PATH")]
    criu: Option<PathBuf>,
    #[command(flatten)]
    engines: Engines,
    /// The most memory that arriving pages may take; what is free unless given.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    memory_limit: Option<Bytes>,
    /// How long a complete copy waits for its source's Commit.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = humantime::parse_duration)]
    commit_patience: Duration,
    /// Programs to run at each stage: docs/guide.md.
    #[arg(long, value_name = "DIR")]
    hook: Option<PathBuf>,
    /// For tests of failures: stop at a message.
    #[arg(long, hide = true, env = "FERRY_BREAKPOINT", value_name = "WHEN:MESSAGE:DIR")]
    breakpoint: Option<Breakpoint>,
}

pub fn run(options: Options) -> Result<End> {
    host::need_root("receive")?;
    let state = options.common.state.clone();
    let identity = Identity::load_or_create(&state)
        .with_context(|| format!("the identity under {} cannot be used", state.display()))?;
    let found = host::criu(options.criu.as_deref())?;
    let hooks = match &options.hook {
        Some(directory) => Hooks::open(directory, DEFAULT_TIMEOUT)?,
        None => Hooks::none(),
    };
    let (criu, engines, relays) = (found.criu(), options.engines.clone(), state.clone());
    let files_state = state.clone();
    let plan = ReceiverPlan {
        hello: host::hello(&found.version.to_string()),
        work: host::fast_directory(&state),
        state: state.clone(),
        memory_limit: options.memory_limit,
        commit_patience: options.commit_patience,
        round_patience: Duration::from_secs(120),
        restore_cost: Duration::from_micros(found.test.restore_us + found.test.release_us),
        hooks,
        restorer: Box::new(move |request| match request.kind.as_str() {
            "process" => Ok(Box::new(ProcessRestorer::new(criu.clone()))),
            oci::KIND => {
                let host = oci_host(criu.clone(), &relays);
                Ok(Box::new(OciRestorer::new(&request.setup, engines.runc(), host)?))
            }
            docker::KIND => {
                let host = oci_host(criu.clone(), &relays);
                Ok(Box::new(DockerRestorer::new(&request.setup, engines.docker(), host)?))
            }
            other => Err(format!("this host cannot build a copy of kind {other:?}")),
        }),
        companion: Box::new(move |offer| {
            let setup = Setup::parse(&offer.along).map_err(|error| error.to_string())?;
            let sink = SyncSink::open(&setup, &files_state, &offer.id.to_string());
            Ok(Box::new(sink.map_err(|error| error.to_string())?))
        }),
        obstacles: |along| match Setup::parse(along) {
            Ok(setup) => obstacles(&setup),
            Err(error) => vec![error.to_string()],
        },
        handover: Box::new(|| Box::new(PagerHandover::new(host::own_file()))),
    };
    let json = options.common.json;
    runtime()?.block_on(async {
        // First: where another receiver listens already, nothing is touched.
        let listener =
            QuicListener::bind(options.listen, &identity, Trust::open(&state), LinkOptions::default())?;
        let receiver = Arc::new(Receiver::new(plan, Box::new(move |event| tell(&event, json)))?);
        let at = listener.local_address()?;
        if json {
            println!("{}", serde_json::json!({ "event": "listening", "address": at.to_string() }));
        } else {
            println!("listening on {at} as {}", identity.fingerprint());
        }
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut look = tokio::time::interval(Duration::from_millis(250));
        loop {
            tokio::select! {
                _ = look.tick() => receiver.heed_requests(),
                link = listener.accept() => match link {
                    Some(link) => {
                        let link = match &options.breakpoint {
                            Some(at) => stop_at(link, at.clone()),
                            None => link,
                        };
                        drop(tokio::spawn(Arc::clone(&receiver).serve(link)));
                    }
                    None => break,
                },
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
            }
        }
        // What is not committed goes back to its source; what is, is served to its end.
        receiver.abort_all("the receiver is shutting down");
        while receiver.active() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        listener.close();
        anyhow::Ok(())
    })?;
    Ok(End::Done)
}

fn tell(event: &ReceiverEvent, json: bool) {
    let line = if json {
        let value = match event {
            ReceiverEvent::Begins { id, target, peer } => {
                serde_json::json!({ "event": "begins", "id": id.to_string(), "target": target, "peer": peer })
            }
            ReceiverEvent::Refused { target, peer, findings } => {
                serde_json::json!({ "event": "refused", "target": target, "peer": peer, "findings": findings })
            }
            ReceiverEvent::Checked { target, peer, findings } => {
                serde_json::json!({ "event": "checked", "target": target, "peer": peer, "findings": findings })
            }
            ReceiverEvent::State { id, state } => {
                serde_json::json!({ "event": "state", "id": id.to_string(), "state": state })
            }
            ReceiverEvent::Note { id, note } => {
                serde_json::json!({ "event": "note", "id": id.to_string(), "note": note })
            }
            ReceiverEvent::Ended { id, runs_here, end } => {
                serde_json::json!({ "event": "ended", "id": id.to_string(), "runs_here": runs_here, "end": end })
            }
        };
        value.to_string()
    } else {
        match event {
            ReceiverEvent::Begins { id, target, peer } => format!("{id}: {target} from {peer}"),
            ReceiverEvent::Refused { target, peer, findings } => {
                format!("refused {target} from {peer}: {findings}")
            }
            ReceiverEvent::Checked { target, peer, findings } => {
                let blocking = findings.stopping(Forced::No).count();
                format!("checked {target} for {peer}: {blocking} of {} findings block", findings.all().len())
            }
            ReceiverEvent::State { id, state } => format!("{id}: {state}"),
            ReceiverEvent::Note { id, note } => format!("{id}: note: {note}"),
            ReceiverEvent::Ended { id, runs_here: true, end } => format!("{id}: runs here ({end})"),
            ReceiverEvent::Ended { id, runs_here: false, end } => format!("{id}: does not run here ({end})"),
        }
    };
    // Nobody may be listening any more; a migration does not end of that.
    let _ = writeln!(std::io::stdout().lock(), "{}", Plain(&line));
}
