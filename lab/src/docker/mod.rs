//! A real Docker daemon of a test's own, inside one of the lab's hosts.
//!
//! Everything that it writes is under `/run/docker`, on the host's own tmpfs, where
//! overlay2 stands also when the machine's root is itself an overlay. Its containers'
//! control groups are under one parent, since the hosts share the machine's tree of
//! them. Two daemons on two hosts know nothing of each other.

mod cgroups;
mod image;

pub use image::{Image, Program};

use crate::hosts::{Host, Output, Process, Program as HostProgram, Signal};
use anyhow::{Context, Result, bail, ensure};
use cgroups::CgroupParent;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The daemon's program, where Debian's package puts it.
pub const DAEMON: &str = "/usr/sbin/dockerd";
/// The client that belongs to it; another may be first on the PATH.
const CLIENT: &str = "/usr/bin/docker";
/// Everything of the daemon's, as its host names it.
const HOME: &str = "/run/docker";
/// Where its API is, as its host names it.
pub const SOCKET: &str = "/run/docker/api.sock";
/// How long the daemon may take to start or to end on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a daemon is made.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The CRIU that runc is to find first; none there unless given.
    pub criu: Option<PathBuf>,
    /// Whether checkpoints are allowed.
    pub experimental: Experimental,
    /// Address and prefix of the default bridge.
    pub bridge: String,
}

/// Docker hides checkpoints unless its daemon is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experimental {
    /// Checkpoints are allowed.
    On,
    /// They are refused.
    Off,
}

impl DaemonOptions {
    /// With this CRIU: it is `criu` in the first directory of the engine's PATH.
    pub fn with_criu(mut self, criu: impl Into<PathBuf>) -> DaemonOptions {
        self.criu = Some(criu.into());
        self
    }
}

impl Default for DaemonOptions {
    /// Checkpoints are allowed, and the default bridge is on 172.30.0.1/24.
    fn default() -> DaemonOptions {
        DaemonOptions { criu: None, experimental: Experimental::On, bridge: "172.30.0.1/24".to_owned() }
    }
}

/// A daemon that runs. Dropping it removes its containers and ends it.
#[derive(Debug)]
pub struct Daemon<'lab> {
    host: &'lab Host,
    process: Process<'lab>,
    cgroups: CgroupParent,
    /// Processes that the host had before, by PID in the host.
    before: Vec<i32>,
    ended: bool,
}

impl<'lab> Daemon<'lab> {
    /// Why there can be none here, if so.
    pub fn reason_to_skip() -> Option<String> {
        let missing = [DAEMON, CLIENT, image::BUSYBOX].into_iter().find(|file| !Path::new(file).exists());
        missing.map(|file| format!("{file} is missing: scripts/install-test-docker"))
    }

    /// Starts it on a host that has none, and waits until it answers.
    ///
    /// # Errors
    /// When it does not; its log is in the error and nothing of it is left.
    pub fn start(host: &'lab Host, options: &DaemonOptions) -> Result<Daemon<'lab>> {
        let bin = format!("{HOME}/bin");
        let _ = fs::remove_dir_all(host.path(HOME));
        fs::create_dir_all(host.path(&bin)).context("no place for the daemon")?;
        if let Some(criu) = &options.criu {
            symlink(criu, host.path(format!("{bin}/criu"))).context("no place for the daemon's CRIU")?;
        }
        let cgroups = CgroupParent::new();
        let mut program = HostProgram::new(DAEMON)
            .args(["--data-root", &format!("{HOME}/data"), "--exec-root", &format!("{HOME}/exec")])
            .args(["--pidfile", &format!("{HOME}/pid"), "--host", &format!("unix://{SOCKET}")])
            .args(["--storage-driver", "overlay2", "--bip", &options.bridge])
            // Its rules would be all that a host's packet filter has; nothing here needs them.
            .args(["--iptables=false", "--ip6tables=false", "--ip-masq=false"])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", cgroups.name()])
            .env("PATH", format!("{bin}:/usr/sbin:/usr/bin:/sbin:/bin"))
            .stdout(format!("{HOME}/log"))
            .stderr(format!("{HOME}/log"));
        if options.experimental == Experimental::On {
            program = program.arg("--experimental");
        }
        let before = processes(host)?;
        let process = host.spawn(program)?;
        let daemon = Daemon { host, process, cgroups, before, ended: false };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.host.path(SOCKET).exists() && self.docker(["version"])?.exit.success() {
                return Ok(());
            }
            if let Some(exit) = self.process.wait_for(Duration::from_millis(50))? {
                bail!("the daemon ended at once ({exit:?}):\n{}", self.log());
            }
            ensure!(Instant::now() < deadline, "the daemon does not answer:\n{}", self.log());
        }
    }

    /// The host that it is on.
    pub fn host(&self) -> &'lab Host {
        self.host
    }

    /// Where its API is, as this process reaches it.
    pub fn socket(&self) -> PathBuf {
        self.host.path(SOCKET)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.host.path(format!("{HOME}/log"))).unwrap_or_default()
    }

    /// Runs Docker's client to its end.
    ///
    /// # Errors
    /// When it cannot be started; not when it fails.
    pub fn docker<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<Output> {
        self.host.run(HostProgram::new(CLIENT).args(["--host", &format!("unix://{SOCKET}")]).args(arguments))
    }

    /// Runs Docker's client and takes what it printed, without the last line's end.
    ///
    /// # Errors
    /// When it fails.
    pub fn expect<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let arguments: Vec<&str> = arguments.into_iter().collect();
        let out = self.docker(arguments.iter().copied())?;
        let command = arguments.join(" ");
        ensure!(out.exit.success(), "docker {command}: {}\n{}", out.stderr.trim(), self.log());
        Ok(out.stdout.trim_end().to_owned())
    }

    /// What a container has printed.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn logs(&self, container: &str) -> Result<String> {
        let out = self.docker(["logs", container])?;
        ensure!(out.exit.success(), "docker logs {container}: {}", out.stderr.trim());
        Ok(out.stdout)
    }

    /// Makes an image of this name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn import(&self, image: &Image, name: &str) -> Result<()> {
        image.import(self, name)
    }

    /// Kills the daemon alone: containerd, shims and containers live on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn kill(&self) -> Result<()> {
        self.process.kill(Signal::SIGKILL)?;
        self.process.wait().map(drop)
    }

    /// Removes every container and ends the daemon: no process, mount or control group
    /// of it is left.
    ///
    /// # Errors
    /// Names what is left.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        if let Ok(all) = self.expect(["ps", "--all", "--quiet"])
            && !all.is_empty()
        {
            let _ = self.docker(["rm", "--force", "--volumes"].into_iter().chain(all.lines()));
        }
        let runs = self.process.kill(Signal::SIGTERM).is_ok();
        if runs && self.process.wait_for(PATIENCE)?.is_none() {
            let _ = self.process.kill(Signal::SIGKILL);
        }
        self.end_rest()?;
        self.unmount()?;
        fs::remove_dir_all(self.host.path(HOME)).context("the daemon's directory stays")?;
        self.cgroups.remove()
    }

    /// What a daemon leaves that was killed: containerd, shims, containers.
    fn end_rest(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.cgroups.kill();
            let left: Vec<i32> =
                processes(self.host)?.into_iter().filter(|pid| self.is_of_daemon(*pid)).collect();
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "processes {left:?} of the daemon do not end");
            for pid in left {
                let _ = self.host.kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The daemon and its helpers all name its directory when they are started.
    fn is_of_daemon(&self, pid: i32) -> bool {
        let Ok(outer) = self.host.outer_pid(pid) else { return false };
        let line = fs::read(format!("/proc/{outer}/cmdline")).unwrap_or_default();
        !self.before.contains(&pid) && String::from_utf8_lossy(&line).contains(HOME)
    }

    fn unmount(&self) -> Result<()> {
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", self.host.first_process()))?;
        let inside = format!("{HOME}/");
        let of_daemon = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        // The last first: a mount may be on another.
        for place in of_daemon.filter(|place| place.starts_with(&inside)).collect::<Vec<_>>().iter().rev() {
            let out = self.host.run(HostProgram::new("/bin/umount").args(["--lazy", place]))?;
            ensure!(out.exit.success(), "{}", out.stderr.trim());
        }
        Ok(())
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("a test's Docker daemon leaves something behind: {error:#}");
        }
    }
}

/// The host's processes in its own PID namespace, by PID in the host. Those of
/// containers, which have namespaces of their own, end with their shims.
fn processes(host: &Host) -> Result<Vec<i32>> {
    Ok(host.processes()?.into_iter().map(|(_, inner)| inner).collect())
}
