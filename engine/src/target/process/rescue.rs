//! A frozen tree whose engine died, CRIU perhaps too: what the living one would
//! have done with it.

use super::dump::LOG;
use super::lock::NetworkLock;
use crate::journal::TaskId;
use crate::net::connections;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long CRIU, hung up on, may take to get out of the tasks.
const LET_GO: Duration = Duration::from_secs(30);

/// Lets the tree run again: every task of it but those that were `stopped` before.
/// `images` is where its dump was being written.
pub fn let_run(images: &Path, tasks: &[TaskId], stopped: &[TaskId]) {
    let deadline = Instant::now() + LET_GO;
    while tasks.iter().any(is_traced) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    unlock(images, tasks);
    connections::wake(tasks);
    for task in tasks.iter().filter(|task| task.is_alive() && !stopped.contains(task)) {
        let _ = kill(Pid::from_raw(task.pid), Signal::SIGCONT);
    }
}

/// Removes the tree, since it runs elsewhere; how many processes could not be.
pub fn remove(images: &Path, tasks: &[TaskId]) -> usize {
    let left = connections::kill_quietly(tasks);
    unlock(images, tasks);
    left
}

/// Runs a program of an epilogue, if there is one, and waits for it.
pub fn run(command: &[String]) {
    let Some((program, arguments)) = command.split_first() else { return };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::warn!(%status, program, ?arguments, "it failed"),
        Err(error) => tracing::warn!(%error, program, "it cannot be started"),
    }
}

/// CRIU's network lock is found by its log, or by the root's PID.
fn unlock(images: &Path, tasks: &[TaskId]) {
    if let Some(root) = tasks.first() {
        NetworkLock::of(&images.join(LOG), root.pid).remove();
    }
}

/// Whether somebody holds a task by ptrace.
fn is_traced(task: &TaskId) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", task.pid)).unwrap_or_default();
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    task.is_alive() && tracer.is_some_and(|tracer| tracer.trim() != "0")
}
