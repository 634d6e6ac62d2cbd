//! `pid:N`: a process and all its descendants, dumped and restored by CRIU
//! directly.
//!
//! The hold at the source is CRIU's `post-dump` notification, left unanswered:
//! success removes the tree, failure lets it run. The hold at the destination is
//! `post-restore`: failure there removes the copy before its network opens.

pub(in crate::target) mod dump;
mod lock;
mod payload;
pub mod rescue;
pub(in crate::target) mod restore;

pub use dump::ProcessTarget;
pub use restore::ProcessRestorer;

use super::TargetError;
use crate::criu::log;
use crate::criu::proto::{CGROUPS_IGNORE, LOCK_NFTABLES, Options};
use crate::criu::rpc::{Launch, PagePayload, RpcError, Swrk};
use ferry_transport::wire::control::TcpMode;
use std::path::{Path, PathBuf};

/// A CRIU that works, as `criu::install` found it.
#[derive(Clone, Debug)]
pub struct Criu {
    /// The program.
    pub program: PathBuf,
    /// The object to preload; `None` where it cannot be used.
    pub shim: Option<PathBuf>,
}

impl Criu {
    /// Starts it and lets it find out about the kernel: what takes tens of
    /// milliseconds happens before a freeze.
    fn start(&self, pages: PagePayload) -> Result<Swrk, TargetError> {
        let launch = Launch { criu: &self.program, shim: self.shim.as_deref(), pages };
        let problem = |error: &dyn std::fmt::Display| TargetError {
            what: format!("CRIU cannot be started ({}): {error}", self.program.display()),
            log: None,
        };
        let mut swrk = Swrk::start(&launch).map_err(|error| problem(&error))?;
        match swrk.warm_up() {
            Ok(()) => Ok(swrk),
            Err(error) => {
                swrk.kill();
                Err(problem(&error))
            }
        }
    }
}

/// The largest deleted-but-open file that CRIU carries in its images, in bytes.
/// CRIU's own limit of 1 MiB is lower than many a temporary file of a database;
/// beyond 256 MiB the copy would dominate the freeze.
pub const GHOST_LIMIT: u32 = 256 << 20;

/// What is asked of every dump and restore.
pub(in crate::target) fn common_options(tcp: TcpMode) -> Options {
    Options {
        images_dir_fd: -1,
        log_level: Some(4),
        notify_scripts: Some(true),
        tcp_established: Some(tcp == TcpMode::Established),
        tcp_close: Some(tcp == TcpMode::Close),
        network_lock: Some(LOCK_NFTABLES),
        file_locks: Some(true),
        link_remap: Some(true),
        ghost_limit: Some(GHOST_LIMIT),
        ..Options::default()
    }
}

/// What is asked of those of processes, too, that no runtime cares for.
fn process_options(tcp: TcpMode) -> Options {
    Options {
        // A session whose leader or terminal stays behind is the pre-flight's concern.
        shell_job: Some(true),
        manage_cgroups: Some(true),
        manage_cgroups_mode: Some(CGROUPS_IGNORE),
        ..common_options(tcp)
    }
}

/// Says where images and log are.
fn place(options: &mut Options, images: &Path, work_dir_fd: i32, log_file: &str) {
    options.images_dir = Some(images.display().to_string());
    options.work_dir_fd = Some(work_dir_fd);
    options.log_file = Some(log_file.into());
}

pub(in crate::target) fn failed(doing: &str, error: RpcError, log: &Path) -> TargetError {
    complain(doing, &error.to_string(), log)
}

/// An error with CRIU's reasons from its log.
pub(in crate::target) fn complain(doing: &str, what: &str, log: &Path) -> TargetError {
    // CRIU's answer repeats its log's first error, harmless or not.
    let reasons = log::errors(log);
    let reasons = if reasons.is_empty() { what.trim().to_owned() } else { reasons };
    let advice = match reasons.split("Can't fork for ").nth(1).and_then(|rest| rest.split(':').next()) {
        Some(pid) if reasons.contains("File exists") => {
            format!(" (PID {pid} is taken here: end that process, or receive in a PID namespace of its own)")
        }
        _ => String::new(),
    };
    TargetError { what: format!("{doing} failed: {reasons}{advice}"), log: Some(log.to_owned()) }
}
