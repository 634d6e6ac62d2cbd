//! A frozen tree whose engine died, CRIU perhaps too: what the living one would
//! have done with it.

use super::dump::LOG;
use super::lock::NetworkLock;
use crate::journal::TaskId;
use crate::net::connections;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long CRIU, hung up on, may take to get out of the tasks.
const LET_GO: Duration = Duration::from_secs(30);

/// How long a process takes to die of what CRIU left in it, and a dying engine to stop
/// it for the last time (`sys::tripwire`).
const UNDERGO: Duration = Duration::from_millis(100);

/// Lets the tree run again: every task of it but those that were `stopped` before.
/// `images` is where its dump was being written.
pub fn let_run(images: &Path, tasks: &[TaskId], stopped: &[TaskId]) {
    let deadline = Instant::now() + LET_GO;
    while tasks.iter().any(is_traced) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    unlock(images, tasks);
    connections::wake(tasks);
    go_on(tasks, stopped);
    let deadline = Instant::now() + UNDERGO;
    while Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        if tasks.iter().any(|task| task.is_stopped() && !stopped.contains(task)) {
            go_on(tasks, stopped);
        }
    }
}

/// Ends every stop of the tasks by a signal, but of those that were `stopped` before.
pub(super) fn go_on(tasks: &[TaskId], stopped: &[TaskId]) {
    for task in tasks.iter().filter(|task| task.is_alive() && !stopped.contains(task)) {
        let _ = kill(Pid::from_raw(task.pid), Signal::SIGCONT);
    }
}

/// Says, after [`let_run`], what CRIU's death in the midst of a dump did to the processes that it was in. A
/// thread that was executing a system call or a command of CRIU's at that moment finds
/// nobody at its end, and takes its process with it.
pub(super) fn harm(tasks: &[TaskId]) -> String {
    let dead: Vec<_> =
        tasks.iter().filter(|task| !task.is_alive()).map(|task| task.pid.to_string()).collect();
    match &dead[..] {
        [] => String::new(),
        _ => format!(
            "; that CRIU was killed within the dump also ended process {}: restart the service",
            dead.join(", ")
        ),
    }
}

/// Removes the tree, since it runs elsewhere; how many processes could not be.
pub fn remove(images: &Path, tasks: &[TaskId]) -> usize {
    let left = connections::kill_quietly(tasks);
    unlock(images, tasks);
    left
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
