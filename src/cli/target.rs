//! What `TARGET` names on the command line, and how it is opened.

use crate::host;
use anyhow::{Context, Result, bail};
use ferry_engine::check::{Finding, SourceOptions, check_container, check_source};
use ferry_engine::docker::{self, Api, Container};
use ferry_engine::memory::native::DescendantSet;
use ferry_engine::target::Target;
use ferry_engine::target::docker::DockerTarget;
use ferry_engine::target::oci::{self, OciTarget, Runtime};
use ferry_engine::target::process::{Criu, ProcessTarget};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// A target, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetName {
    /// `pid:N`: a process and all its descendants.
    Process(i32),
    /// `runc:ID`: a container of runc's.
    Runc(String),
    /// `docker:NAME`: a container of Docker's, by name or ID.
    Docker(String),
}

impl FromStr for TargetName {
    type Err = String;

    fn from_str(typed: &str) -> Result<TargetName, String> {
        match typed.split_once(':') {
            Some(("pid", number)) => match number.parse() {
                Ok(pid @ 1..) => Ok(TargetName::Process(pid)),
                _ => Err("after `pid:` the number of a process is expected, as in pid:4711".into()),
            },
            Some(("runc", id)) if oci::relay::is_container_id(id) => Ok(TargetName::Runc(id.into())),
            Some(("runc", _)) => Err("after `runc:` the ID of a container is expected: `runc list`".into()),
            Some(("docker", name)) if oci::relay::is_container_id(name) => {
                Ok(TargetName::Docker(name.into()))
            }
            Some(("docker", _)) => Err("after `docker:` a container is expected: `docker ps`".into()),
            _ => Err("expected pid:N, runc:ID or docker:NAME, for example pid:4711".into()),
        }
    }
}

impl std::fmt::Display for TargetName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TargetName::Process(pid) => write!(f, "pid:{pid}"),
            TargetName::Runc(id) => write!(f, "runc:{id}"),
            TargetName::Docker(name) => write!(f, "docker:{name}"),
        }
    }
}

/// A target that is there.
pub struct Found {
    pub name: TargetName,
    /// Its first process.
    pub root: i32,
    runtime: Runtime,
    docker: Api,
}

/// Where container engines and runtimes are asked.
#[derive(clap::Args, Clone, Debug)]
pub struct Engines {
    /// Where runc keeps its containers (its own `--root`).
    #[arg(long, value_name = "DIR")]
    runtime_root: Option<PathBuf>,
    /// Docker's socket.
    #[arg(long, env = "FERRY_DOCKER", value_name = "PATH", default_value = docker::DEFAULT_SOCKET)]
    docker: PathBuf,
}

impl Engines {
    /// runc and its containers.
    pub fn runc(&self) -> Runtime {
        Runtime::runc(self.runtime_root.clone())
    }

    /// Docker, which need not be there.
    pub fn docker(&self) -> Api {
        Api::at(&self.docker)
    }
}

impl TargetName {
    /// Looks for it; nothing is stopped or changed.
    pub fn find(&self, engines: &Engines) -> Result<Found> {
        let (runtime, docker) = (engines.runc(), engines.docker());
        let root = match self {
            TargetName::Process(pid) => *pid,
            TargetName::Runc(id) => match runtime.state(id)? {
                state if state.status == "running" => state.pid,
                state => bail!("container {id} is {}: only a running one can be moved", state.status),
            },
            TargetName::Docker(name) => {
                let container = Container::inspect(&docker, name)?;
                let status = container.text("/State/Status").to_owned();
                container.pid().with_context(|| {
                    format!("container {name} is {status}: only a running one can be moved")
                })?
            }
        };
        anyhow::ensure!(Path::new(&format!("/proc/{root}/stat")).exists(), "there is no process {root}");
        Ok(Found { name: self.clone(), root, runtime, docker })
    }
}

impl Found {
    /// What would stop its move, as far as this host can tell.
    pub fn check(&self, options: &SourceOptions) -> Vec<Finding> {
        match &self.name {
            TargetName::Process(pid) => check_source(*pid, options),
            TargetName::Runc(id) => oci::check(id, &self.runtime, options),
            TargetName::Docker(name) => {
                let mut findings = docker::check::check_source(&self.docker, name);
                findings.extend(check_container(self.root, options));
                findings
            }
        }
    }

    /// Its processes, to be followed.
    pub fn processes(&self) -> Result<DescendantSet> {
        DescendantSet::of(self.root).with_context(|| format!("there is no process {}", self.root))
    }

    /// Takes hold of it. Nothing is stopped.
    pub fn open(&self, criu: Criu, state: &Path) -> Result<Box<dyn Target>> {
        Ok(match &self.name {
            TargetName::Process(pid) => {
                Box::new(ProcessTarget::new(*pid, criu, Arc::new(self.processes()?))?)
            }
            TargetName::Runc(id) => {
                Box::new(OciTarget::new(id, self.runtime.clone(), oci_host(criu, state))?)
            }
            TargetName::Docker(name) => {
                Box::new(DockerTarget::new(&self.docker, name, oci_host(criu, state))?)
            }
        })
    }
}

/// What stands between a container runtime and CRIU on this host.
pub fn oci_host(criu: Criu, state: &Path) -> oci::Host {
    oci::Host { criu, relays: relays(state), ferry: host::running_file() }
}

/// Where relays find whoever waits for them.
pub fn relays(state: &Path) -> PathBuf {
    state.join("relay")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_by_kind() {
        for typed in ["pid:4711", "runc:web-1", "docker:web"] {
            assert_eq!(typed.parse::<TargetName>().unwrap().to_string(), typed);
        }
        for wrong in [
            "4711",
            "pid:0",
            "pid:-4",
            "pid:x",
            "runc:",
            "runc:a/b",
            "runc:..",
            "docker:",
            "docker:a?b",
            "lxc:a",
            "",
        ] {
            assert!(wrong.parse::<TargetName>().is_err(), "{wrong}");
        }
    }
}
