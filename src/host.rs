//! What this host is: where things are kept, and what it says of itself.

use anyhow::{Result, bail};
use ferry_engine::check::destination::cpu_features;
use ferry_engine::criu::install::{self, InstallError, Installed, Wanted, WhenMissing};
use ferry_transport::wire::control::{Hello, PROTOCOL_VERSION};
use std::path::{Path, PathBuf};

/// Where state is kept unless `--state` or `FERRY_STATE` says otherwise.
pub const STATE: &str = "/var/lib/ferry";

/// Sends log lines to standard error. `-v` shows steps, `-vv` everything;
/// `FERRY_LOG` takes a filter.
pub fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = std::env::var("FERRY_LOG")
        .unwrap_or_else(|_| format!("ferry={level},ferry_engine={level},ferry_transport={level}"));
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// Ends early, with the next step, where root is needed.
pub fn need_root(verb: &str) -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let root =
        status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    if !root {
        bail!("`ferry {verb}` needs root: it stops and rebuilds processes (try `sudo ferry {verb} …`)");
    }
    Ok(())
}

/// A directory for what must be quick: the first tmpfs among the usual places.
pub fn fast_directory(state: &Path) -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let is_tmpfs = |place: &str| {
        mounts.lines().any(|line| {
            let mut fields = line.split(' ').skip(1);
            fields.next() == Some(place) && fields.next() == Some("tmpfs")
        })
    };
    ["/run", "/dev/shm", "/tmp"]
        .into_iter()
        .find(|place| is_tmpfs(place))
        .map_or_else(|| state.join("tmp"), PathBuf::from)
}

/// What this side says first.
pub fn hello(criu: &str) -> Hello {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Hello {
        protocol: PROTOCOL_VERSION,
        revision: format!("ferry {}", env!("CARGO_PKG_VERSION")),
        machine: std::env::consts::ARCH.into(),
        page_size: 4096,
        kernel: release.trim().into(),
        criu: criu.into(),
        cpu_features: cpu_features(),
    }
}

/// Finds a CRIU that works on this kernel: where `--criu` or `FERRY_CRIU` points,
/// in ferry's own prefix, or on the PATH; else makes one, saying what it does.
pub fn criu(chosen: Option<&Path>) -> Result<Installed> {
    let wanted = Wanted { explicit: chosen.map(Path::to_owned), root: criu_root(), ..Wanted::default() };
    let installed = install::find(&wanted, &mut |step| eprintln!("set-up: {step}"))?;
    // For tests of the way that is taken where nothing can be preloaded.
    Ok(match std::env::var_os("FERRY_PRELOAD").is_some_and(|value| value == "off") {
        true => installed.without_preload("FERRY_PRELOAD=off"),
        false => installed,
    })
}

/// As [`criu`], but makes none.
pub fn existing_criu(chosen: Option<&Path>) -> Result<Installed, InstallError> {
    let wanted =
        Wanted { explicit: chosen.map(Path::to_owned), root: criu_root(), when_missing: WhenMissing::Fail };
    install::find(&wanted, &mut |step| eprintln!("set-up: {step}"))
}

/// Where the private CRIU is: `FERRY_CRIU_ROOT`, or the usual place.
pub fn criu_root() -> PathBuf {
    std::env::var_os("FERRY_CRIU_ROOT").map_or_else(|| PathBuf::from(install::DEFAULT_ROOT), PathBuf::from)
}

/// This program's own file: the helpers are started from it. Through /proc, so
/// that an upgrade of the file under a running engine changes nothing.
pub fn own_file() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// The same for programs that others start, as long as this process lives.
pub fn running_file() -> PathBuf {
    PathBuf::from(format!("/proc/{}/exe", std::process::id()))
}
