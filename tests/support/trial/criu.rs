//! Killing CRIU, at once or in the midst of its work.

use crate::support::rig::PATIENCE;
use ferry_lab::hosts::Host;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Kills every CRIU process of a host.
pub fn kill_criu(host: &Host) {
    for pid in processes(host) {
        let _ = kill(pid, Signal::SIGKILL);
    }
}

/// Kills the CRIU that waits on a host, and `with` it another process, `later` than its
/// log has a line that contains `mark`. An error says that it never came to that.
pub fn kill_amid(
    host: &Host,
    mark: &'static str,
    later: Duration,
    with: Option<i32>,
) -> JoinHandle<Result<(), String>> {
    let run = host.path("/run");
    let mut condemned = processes(host);
    condemned.extend(with.map(Pid::from_raw));
    std::thread::spawn(move || {
        let deadline = Instant::now() + PATIENCE;
        let mut log = None;
        loop {
            log = log.or_else(|| log_of(&run));
            let text = log.as_deref().map(fs::read).and_then(Result::ok).unwrap_or_default();
            if text.windows(mark.len()).any(|part| part == mark.as_bytes()) {
                break;
            }
            if Instant::now() > deadline || condemned.iter().all(|pid| kill(*pid, None).is_err()) {
                return Err(format!("CRIU never said `{mark}`:\n{}", String::from_utf8_lossy(&text)));
            }
        }
        // Sleeping is too coarse for this.
        let moment = Instant::now() + later;
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        for pid in condemned {
            let _ = kill(pid, Signal::SIGKILL);
        }
        Ok(())
    })
}

/// The CRIU processes of a host, as this process numbers them.
fn processes(host: &Host) -> Vec<Pid> {
    let outer = host.processes().unwrap().into_iter().map(|(outer, _)| outer);
    let is_criu = |pid: &i32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.starts_with("criu") || comm.starts_with("ld-linux")
    };
    outer.filter(is_criu).map(Pid::from_raw).collect()
}

/// The log of the dump or the restore that is under way.
fn log_of(run: &Path) -> Option<PathBuf> {
    let places = fs::read_dir(run).ok()?.flatten();
    let ours = places.filter(|place| place.file_name().to_string_lossy().starts_with("ferry-"));
    let mut logs = ours.flat_map(|place| ["dump.log", "work/restore.log"].map(|log| place.path().join(log)));
    logs.find(|log| log.exists())
}
