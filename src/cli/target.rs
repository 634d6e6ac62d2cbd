//! What `TARGET` names on the command line, and how it is opened.

use crate::host;
use anyhow::{Context, Result, bail};
use ferry_engine::check::{Finding, SourceOptions, check_source};
use ferry_engine::memory::native::DescendantSet;
use ferry_engine::target::Target;
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
            _ => Err("expected pid:N or runc:ID, for example pid:4711".into()),
        }
    }
}

impl std::fmt::Display for TargetName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TargetName::Process(pid) => write!(f, "pid:{pid}"),
            TargetName::Runc(id) => write!(f, "runc:{id}"),
        }
    }
}

/// A target that is there.
pub struct Found {
    pub name: TargetName,
    /// Its first process.
    pub root: i32,
    runtime: Runtime,
}

impl TargetName {
    /// Looks for it; nothing is stopped or changed.
    pub fn find(&self, runtime_root: Option<&Path>) -> Result<Found> {
        let runtime = Runtime::runc(runtime_root.map(Path::to_owned));
        let root = match self {
            TargetName::Process(pid) => *pid,
            TargetName::Runc(id) => match runtime.state(id)? {
                state if state.status == "running" => state.pid,
                state => bail!("container {id} is {}: only a running one can be moved", state.status),
            },
        };
        anyhow::ensure!(Path::new(&format!("/proc/{root}/stat")).exists(), "there is no process {root}");
        Ok(Found { name: self.clone(), root, runtime })
    }
}

impl Found {
    /// What would stop its move, as far as this host can tell.
    pub fn check(&self, options: &SourceOptions) -> Vec<Finding> {
        match &self.name {
            TargetName::Process(pid) => check_source(*pid, options),
            TargetName::Runc(id) => oci::check(id, &self.runtime, options),
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
        })
    }
}

/// What stands between a container runtime and CRIU on this host.
pub fn oci_host(criu: Criu, state: &Path) -> oci::Host {
    oci::Host { criu, relays: relays(state), ferry: host::running_file() }
}

fn relays(state: &Path) -> PathBuf {
    state.join("relay")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_by_kind() {
        for typed in ["pid:4711", "runc:web-1"] {
            assert_eq!(typed.parse::<TargetName>().unwrap().to_string(), typed);
        }
        for wrong in ["4711", "pid:0", "pid:-4", "pid:x", "runc:", "runc:a/b", "runc:..", "lxc:a", ""] {
            assert!(wrong.parse::<TargetName>().is_err(), "{wrong}");
        }
    }
}
