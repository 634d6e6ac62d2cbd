//! Doing something inside another process's network namespace.

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The network namespace of a process, as a path.
pub fn of_process(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Runs `work` on a thread of its own inside the network namespace that `path`
/// names, and waits for it. Sockets that it opens stay in that namespace
/// wherever they are used afterwards; the caller's namespace is untouched.
///
/// # Errors
/// The namespace cannot be opened or entered (not root), or no thread could be
/// started. What `work` itself returns is passed through.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = File::open(path)?;
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("ferry-netns".into())
            .spawn_scoped(scope, move || {
                // A thread that has entered a namespace ends with it: nothing to restore.
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
    })
}
