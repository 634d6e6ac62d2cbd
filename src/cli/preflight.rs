//! What `check` and `migrate` share: what is to be moved, and what is found about it.

use super::target::{Engines, Found, TargetName};
use anyhow::{Context, Result};
use ferry_engine::check::{Finding, Forced, Needs, Severity, SourceOptions, describe_needs};
use ferry_engine::files::{Existing, SourceTree, SyncSource, mapped_by};
use ferry_engine::memory::ProcessSet;
use ferry_engine::source::recovery::parse_address_move;
use ferry_transport::quic::{Identity, LinkOptions, QuicConnector, Trust};
use ferry_transport::wire::control::{
    AddressMove, MigrationId, Offer, RestoreMode, RestorerRequest, TcpMode,
};
use serde::Serialize;
use std::fmt::Write;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};

/// What is to be moved, and how.
#[derive(clap::Args)]
pub struct Moved {
    /// What to move: `pid:N`, a process and all its descendants, or a container, `runc:ID` or
    /// `docker:NAME`.
    pub target: TargetName,
    #[command(flatten)]
    engines: Engines,
    /// How memory comes back: at once with pages following, or all pages first.
    #[arg(long, value_enum, default_value_t = Restore::Lazy)]
    restore: Restore,
    /// How TCP connections are treated.
    #[arg(long, value_enum, default_value_t = Tcp::Established)]
    tcp: Tcp,
    /// The address that moves along, and the interface it gets there.
    #[arg(long, value_name = "ADDR/LEN@IFACE", value_parser = address_move)]
    pub move_ip: Option<AddressMove>,
    /// A directory that comes along, may be given several times: it is sent in rounds, and
    /// what changed last while the workload stands still.
    #[arg(long, value_name = "DIR")]
    sync_dir: Vec<PathBuf>,
    /// What if such a directory has content at the destination.
    #[arg(long, value_enum, default_value_t = SyncExisting::Refuse)]
    sync_existing: SyncExisting,
    /// Override what blocks, where it may be overridden, on both hosts.
    #[arg(long)]
    force: bool,
    /// The CRIU to use.
    #[arg(long, env = "FERRY_CRIU", value_name = "PATH")]
    pub criu: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Restore {
    Lazy,
    Eager,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Tcp {
    /// They live on.
    Established,
    /// They are closed in the copy.
    Close,
    /// A workload that has some is refused.
    Skip,
}

/// What is done about content that is there.
#[derive(Clone, Copy, clap::ValueEnum)]
enum SyncExisting {
    /// The migration is refused.
    Refuse,
    /// It is put aside, and removed when the workload runs there.
    Replace,
}

fn address_move(text: &str) -> Result<AddressMove, String> {
    parse_address_move(text).ok_or_else(|| "expected ADDR/LEN@IFACE, for example 192.0.2.7/24@eth0".into())
}

impl Moved {
    /// The target, which must be there.
    pub fn find(&self) -> Result<Found> {
        self.target.find(&self.engines)
    }

    /// Whether `--force` was given.
    pub fn forced(&self) -> Forced {
        if self.force { Forced::Yes } else { Forced::No }
    }

    /// What this host finds about it. Nothing is stopped or changed.
    pub fn check(&self, found: &Found) -> Preflight {
        let options = SourceOptions {
            tcp: self.tcp(),
            move_address: self.move_ip.clone(),
            synced: self.synced(),
            ..SourceOptions::default()
        };
        let name = std::fs::read_to_string(format!("/proc/{}/comm", found.root)).unwrap_or_default();
        let mut preflight = Preflight {
            schema: SCHEMA,
            target: format!("{} ({})", found.name, name.trim_end()),
            to: None,
            verdict: Verdict::Clear,
            no_answer: None,
            findings: Vec::new(),
            forced: self.forced(),
        };
        preflight.add(Side::Source, found.check(&options));
        preflight
    }

    /// What the destination is asked for.
    /// `along` is the setup of what [`companion`](Moved::companion) made.
    pub fn offer(
        &self,
        id: MigrationId,
        pid: i32,
        target: String,
        restorer: RestorerRequest,
        along: Vec<u8>,
    ) -> Offer {
        let Needs { mut files, pids, memory, limits, ports } = describe_needs(pid);
        // What comes along need not be there before.
        let synced = self.synced();
        files.retain(|claim| !synced.iter().any(|tree| Path::new(&claim.path).starts_with(tree)));
        Offer {
            id,
            target,
            restorer,
            memory,
            pids,
            restore: match self.restore {
                Restore::Lazy => RestoreMode::Lazy,
                Restore::Eager => RestoreMode::Eager,
            },
            tcp: self.tcp(),
            move_address: self.move_ip.clone(),
            files,
            limits,
            ports,
            forced: self.forced(),
            along,
        }
    }

    /// The directories that come along, opened.
    pub fn companion(&self, found: &Found) -> Result<Option<SyncSource>> {
        if self.sync_dir.is_empty() {
            return Ok(None);
        }
        let existing = match self.sync_existing {
            SyncExisting::Refuse => Existing::Refuse,
            SyncExisting::Replace => Existing::Replace,
        };
        let mut trees: Vec<SourceTree> = Vec::new();
        for (typed, here) in self.sync_dir.iter().zip(self.synced()) {
            let there = here.to_str().with_context(|| format!("{} is not UTF-8", typed.display()))?.into();
            if trees.iter().any(|other| other.here.starts_with(&here) || here.starts_with(&other.here)) {
                anyhow::bail!("--sync-dir {}: it is in another one, or has it in it", typed.display());
            }
            trees.push(SourceTree { here, there, existing });
        }
        let set = found.processes()?;
        let mapped = move || set.processes().map(mapped_by).unwrap_or_default();
        Ok(Some(SyncSource::open(trees, Box::new(mapped)).context("--sync-dir")?))
    }

    /// Where they really are: links on the way there are followed.
    fn synced(&self) -> Vec<PathBuf> {
        self.sync_dir.iter().map(|typed| typed.canonicalize().unwrap_or_else(|_| typed.clone())).collect()
    }

    fn tcp(&self) -> TcpMode {
        match self.tcp {
            Tcp::Established => TcpMode::Established,
            Tcp::Close => TcpMode::Close,
            Tcp::Skip => TcpMode::Skip,
        }
    }
}

/// The way to the destination that `--to` names.
pub fn connector(to: &str, state: &Path, link: LinkOptions) -> Result<QuicConnector> {
    let identity = Identity::load_or_create(state)?;
    let mut addresses = to.to_socket_addrs().with_context(|| format!("{to} has no address"))?;
    let address = addresses.next().with_context(|| format!("{to} has no address"))?;
    Ok(QuicConnector::new(address, identity, Trust::open(state), link))
}

/// The version of [`Preflight`] as JSON; raised when a field changes meaning or goes.
const SCHEMA: u32 = 1;

/// Everything that was found, the worst first: what `ferry check --json` prints, and
/// `ferry migrate --json` in place of a report when it refuses. docs/check.md shows it.
#[derive(Serialize)]
pub struct Preflight {
    /// [`SCHEMA`].
    schema: u32,
    /// What was looked at: `pid:4711 (redis-server)`.
    target: String,
    /// The destination, where one was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// All of it in a word.
    verdict: Verdict,
    /// Why the destination did not answer, where it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_answer: Option<String>,
    /// The findings.
    findings: Vec<Located>,
    #[serde(skip)]
    forced: Forced,
}

/// All findings in a word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// Nothing but notes.
    Clear,
    /// It may fail, or something may be lost.
    Risky,
    /// `ferry migrate` would refuse, with `--force` too if that was given.
    Blocked,
}

/// A finding and who found it.
#[derive(Serialize)]
struct Located {
    at: Side,
    #[serde(flatten)]
    finding: Finding,
}

/// Which host.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// This one.
    Source,
    /// The one to move to.
    Destination,
}

impl std::fmt::Display for Located {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.at {
            Side::Source => write!(f, "{}", self.finding),
            Side::Destination => write!(f, "at the destination: {}", self.finding),
        }
    }
}

impl Preflight {
    /// Adds what a host found.
    pub fn add(&mut self, at: Side, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings.into_iter().map(|finding| Located { at, finding }));
        self.findings.sort_by_key(|located| std::cmp::Reverse(located.finding.severity));
        let word = |located: &Located| match located.finding.severity {
            _ if located.finding.stops(self.forced) => Verdict::Blocked,
            Severity::Notes => Verdict::Clear,
            Severity::Risks | Severity::Blocks => Verdict::Risky,
        };
        self.verdict = self.findings.iter().map(word).max().unwrap_or(Verdict::Clear);
    }

    /// Whether a migration would be refused.
    pub fn is_blocked(&self) -> bool {
        self.verdict == Verdict::Blocked
    }

    /// Risks and what is overridden, for a migration's report: the worst of them.
    pub fn risks(&self) -> Vec<String> {
        const MOST: usize = 20;
        let risks = || self.findings.iter().filter(|located| located.finding.severity >= Severity::Risks);
        let mut told: Vec<String> = risks().take(MOST).map(Located::to_string).collect();
        if let more @ 1.. = risks().count().saturating_sub(MOST) {
            told.push(format!("{more} more risks: `ferry check {}` shows them", self.target_as_typed()));
        }
        told
    }

    fn target_as_typed(&self) -> &str {
        self.target.split(' ').next().unwrap_or_default()
    }

    /// One finding a line, the verdict below.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for located in &self.findings {
            let _ = writeln!(text, "{located}");
        }
        let count = |severity| self.findings.iter().filter(|l| l.finding.severity == severity).count();
        let (blocks, risks, notes) =
            (count(Severity::Blocks), count(Severity::Risks), count(Severity::Notes));
        let verdict = match self.verdict {
            Verdict::Blocked => "it cannot be moved like this",
            _ if blocks > 0 => "what blocks it is overridden by --force",
            _ if self.to.is_some() && self.no_answer.is_none() => "nothing blocks it",
            _ => "nothing blocks it here",
        };
        let _ =
            writeln!(text, "{}: {verdict} (blocking: {blocks}, risks: {risks}, notes: {notes})", self.target);
        let overridable = |l: &&Located| !l.finding.stops(Forced::Yes);
        let stopping = self.findings.iter().filter(|located| located.finding.stops(self.forced));
        if self.is_blocked() && stopping.clone().all(|located| overridable(&located)) {
            let _ = writeln!(text, "--force overrides all that blocks it");
        }
        text
    }
}
