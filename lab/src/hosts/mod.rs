//! Several "machines" on this one, made of namespaces.
//!
//! ```text
//!                 bridge, in a network namespace of its own
//!                /        |        \            (optional limit per cable)
//!           source   destination   client       10.231.0.1, .2, .3 on eth0
//! ```
//!
//! Each host has network, PID, mount, UTS and IPC namespaces of its own, a
//! first process that reaps, a tmpfs on `/run` and `/tmp`, and sees one
//! directory ([`LabOptions::shared`], a tmpfs of the lab) that all hosts of the
//! lab see. Nothing has a name outside, so labs may run side by side, and
//! nothing is left when the lab's process ends, however it ends. Root is
//! needed; the kernel is, no program.

mod file_system;
mod host;
mod init;
mod network;
mod protocol;
mod tbf;

pub use host::{Host, Output, Process};
pub use init::{INIT_VERB, init_main};
pub use network::{Cable, NetworkNamespace};
pub use nix::sys::signal::Signal;
pub use protocol::{Exit, Program, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use ferry_transport::units::ByteRate;
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a host's root directory comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileSystem {
    /// The machine's own, writes and all, but for `/run`, `/tmp` and `/proc`.
    #[default]
    Shared,
    /// A layer of its own over the machine's `/`: what the host writes, only
    /// the host sees, and it is gone with the host. Other file systems mounted
    /// on the machine are not there, but for `/dev`, `/sys`, the lab's shared
    /// directory and the directory of the lab's own binary.
    Overlay,
}

/// The host names of a lab, in the order of their addresses.
pub const HOSTS: [&str; 3] = ["source", "destination", "client"];

/// How far the hosts' PIDs are apart at the start.
const PIDS_PER_HOST: u32 = 3000;
/// The lowest `pid_max` of usual kernels, with room below it.
const PID_LIMIT: u32 = 30_000;

/// How to make a lab.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// The names of the hosts; [`HOSTS`] unless changed. The n-th (from 1) has
    /// the address 10.231.0.n.
    pub hosts: Vec<String>,
    /// What each host's file system is.
    pub file_system: FileSystem,
    /// The speed of every cable, in each direction; unlimited unless given.
    pub link: Option<ByteRate>,
    /// A binary that calls [`init_main`] under the verb [`INIT_VERB`]; this
    /// program's own file unless given.
    pub helper: Option<PathBuf>,
    /// An existing directory of the machine, over which the lab mounts a tmpfs
    /// that all hosts see (and only they).
    pub shared: PathBuf,
}

impl Default for LabOptions {
    fn default() -> Self {
        LabOptions {
            hosts: HOSTS.map(String::from).to_vec(),
            file_system: FileSystem::Shared,
            link: None,
            helper: None,
            shared: PathBuf::from("/srv"),
        }
    }
}

/// A set of hosts on one bridge. Dropping it ends every process in it.
#[derive(Debug)]
pub struct Lab {
    hosts: Vec<Host>,
    shared: PathBuf,
}

impl Lab {
    /// Makes the hosts and connects them. `name` is for error messages only.
    ///
    /// # Errors
    /// When not root, or the kernel lacks a namespace, veth, bridge, overlay
    /// or tbf. Nothing stays behind.
    pub fn new(name: &str, options: LabOptions) -> Result<Lab> {
        Self::build(options).with_context(|| format!("cannot make the lab {name}"))
    }

    fn build(options: LabOptions) -> Result<Lab> {
        if !nix::unistd::geteuid().is_root() {
            bail!("test hosts are made of namespaces and need root");
        }
        let helper = match &options.helper {
            Some(helper) => helper.clone(),
            None => std::env::current_exe().context("cannot find this program's own file")?,
        };
        let switch = Arc::new(network::Switch::new()?);
        let started = start_in_shared_mount(&options, &helper, &switch)?;
        let mut hosts = Vec::with_capacity(started.len());
        for (number, mut host) in started.into_iter().enumerate() {
            host.wait_ready()?;
            let last_byte = u8::try_from(number + 1).context("too many hosts")?;
            let address = Ipv4Addr::new(10, 231, 0, last_byte);
            switch.connect(host.name(), host.network(), &[(IpAddr::V4(address), 24)], options.link)?;
            host.set_address(address);
            hosts.push(host);
        }
        Ok(Lab { hosts, shared: options.shared })
    }

    /// The host of this name.
    ///
    /// # Panics
    /// When the lab was made without it: a mistake in the calling code.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts
            .iter()
            .find(|host| host.name() == name)
            .unwrap_or_else(|| panic!("the lab has no host {name}"))
    }

    /// All hosts, in the order of their addresses.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host `source`.
    pub fn source(&self) -> &Host {
        self.host(HOSTS[0])
    }

    /// The host `destination`.
    pub fn destination(&self) -> &Host {
        self.host(HOSTS[1])
    }

    /// The host `client`.
    pub fn client(&self) -> &Host {
        self.host(HOSTS[2])
    }

    /// Ends every process of the lab and waits until none is left. What still
    /// waits for one of its hosts gets an error; nothing can be started any more.
    pub fn power_off(&self) {
        self.hosts.iter().for_each(Host::power_off);
        self.hosts.iter().for_each(Host::wait_off);
    }

    /// The directory that all hosts see, as the hosts name it. From outside it
    /// is `host.path(lab.shared())`.
    pub fn shared(&self) -> &Path {
        &self.shared
    }
}

/// Starts the hosts' first processes from a thread in a mount namespace in
/// which the shared directory is mounted, so that each inherits the same one.
/// The thread's mount namespace ends with it: this process never sees the mount.
fn start_in_shared_mount(
    options: &LabOptions,
    helper: &Path,
    switch: &Arc<network::Switch>,
) -> Result<Vec<Host>> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
                file_system::make_private()?;
                file_system::mount_tmpfs(&options.shared, "mode=1777")?;
                let start = |(number, name): (usize, &String)| {
                    let setup = protocol::HostSetup {
                        hostname: name.clone(),
                        file_system: options.file_system,
                        shared: options.shared.clone(),
                        last_pid: (number as u32 + 1) * PIDS_PER_HOST % PID_LIMIT,
                    };
                    Host::start(helper, &setup, switch.clone())
                        .with_context(|| format!("cannot start host {name}"))
                };
                options.hosts.iter().enumerate().map(start).collect()
            })
            .join()
            .map_err(|_| anyhow!("the thread that starts hosts panicked"))?
    })
}
