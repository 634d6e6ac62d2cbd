//! `ferry pair`: decides who may send to whom, by a one-time code or by explicit
//! fingerprints.

use super::{Common, print_json, runtime};
use crate::exit::End;
use anyhow::{Context, Result, bail};
use ferry_transport::quic::pair::{Code, Pairing, join};
use ferry_transport::quic::trust::{Peer, Role};
use ferry_transport::quic::{Identity, Trust};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

#[derive(clap::Args)]
#[command(after_help = "\
With a code:  on the destination   ferry pair --listen 0.0.0.0:4434
              on the source        ferry pair HOST:4434 CODE
By hand:      on either            ferry pair --add NAME --fingerprint HEX   (from `ferry identity`)")]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// The destination's pairing address.
    #[arg(requires = "code", conflicts_with_all = ["listen", "add", "remove"])]
    host: Option<String>,
    /// The code that it shows.
    code: Option<String>,
    /// Show a code on this address and wait for the source that knows it.
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["add", "remove"])]
    listen: Option<SocketAddr>,
    /// How long the code works, in seconds.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Trust a peer by its fingerprint.
    #[arg(long, value_name = "NAME", requires = "fingerprint")]
    add: Option<String>,
    /// The peer's fingerprint, 64 hex digits.
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
    /// What the peer may do.
    #[arg(long, value_enum, default_value_t = RoleChoice::Both)]
    role: RoleChoice,
    /// Forget a peer.
    #[arg(long, value_name = "NAME")]
    remove: Option<String>,
    /// The name under which this host is known there, and that host here.
    #[arg(long)]
    name: Option<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum RoleChoice {
    /// It may send workloads to this host.
    Sender,
    /// This host may send workloads to it.
    Receiver,
    /// Both.
    Both,
}

pub fn run(options: Options) -> Result<End> {
    let state = &options.common.state;
    let trust = Trust::open(state);
    if let Some(name) = options.add {
        let role = match options.role {
            RoleChoice::Sender => Role::Sender,
            RoleChoice::Receiver => Role::Receiver,
            RoleChoice::Both => Role::Both,
        };
        let fingerprint = options.fingerprint.context("--add needs --fingerprint")?.parse()?;
        trust.add(&Peer { name, fingerprint, role })?;
    } else if let Some(name) = options.remove {
        if !trust.remove(&name)? {
            bail!("no peer is called {name}; `ferry pair` lists them");
        }
    } else if let Some(address) = options.listen {
        let identity = Identity::load_or_create(state)?;
        runtime()?.block_on(async {
            let pairing = Pairing::listen(address, &identity, trust.clone())?;
            let at = pairing.local_address()?;
            println!(
                "On the source, within {} s:\n\n  ferry pair HOST:{} {}\n",
                options.timeout,
                at.port(),
                pairing.code()
            );
            let peer = tokio::time::timeout(Duration::from_secs(options.timeout), pairing.wait())
                .await
                .context("nobody came: the code is dead")??;
            println!("paired: {} may send to this host", peer.name);
            anyhow::Ok(())
        })?;
        return Ok(End::Done);
    } else if let (Some(host), Some(code)) = (options.host, options.code) {
        let code: Code = code.parse()?;
        let address = host.to_socket_addrs()?.next().with_context(|| format!("{host} has no address"))?;
        let identity = Identity::load_or_create(state)?;
        let own = options.name.clone().unwrap_or_else(own_name);
        let theirs = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
        let theirs = theirs.replace(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)), "-");
        let theirs = options.name.clone().unwrap_or(theirs);
        let peer = runtime()?.block_on(join(address, &code, &own, &theirs, &identity, &trust))?;
        println!("paired: this host may send to {}", peer.name);
        return Ok(End::Done);
    }
    let peers = trust.list()?;
    if options.common.json {
        let peers: Vec<_> = peers
            .iter()
            .map(|peer| {
                serde_json::json!({ "name": peer.name, "fingerprint": peer.fingerprint.to_string(), "role": peer.role })
            })
            .collect();
        print_json(&peers)?;
    } else if peers.is_empty() {
        println!("no peers: see `ferry pair --help`");
    }
    if !options.common.json {
        for peer in peers {
            println!("{}  {:?}  {}", peer.name, peer.role, peer.fingerprint);
        }
    }
    Ok(End::Done)
}

fn own_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String =
        name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(64).collect();
    if name.is_empty() || name.starts_with('.') { "source".into() } else { name }
}
