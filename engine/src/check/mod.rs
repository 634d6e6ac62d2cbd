//! Pre-flight: what would stop a migration, found before anything is touched.
//!
//! Reads /proc and socket tables only; the workload is neither stopped nor
//! traced. A finding names process, descriptor and cure. What CRIU supports is
//! taken from CRIU 4.2 (files.c, sk-inet.c, sk-unix.c, tty.c, seize.c, mount.c).
//!
//! `ferry check` and `ferry migrate` ask the same functions: [`check_source`]
//! here, and [`check_destination`] there, about what [`describe_needs`] says.

mod ask;
pub mod destination;
pub mod elf;
pub mod needs;
pub mod proc;
mod served;
pub mod socket_tables;
mod source;

pub use ask::{AskError, ask_destination};
pub use destination::{LazyRestore, LocalFacts, check_destination};
pub use ferry_transport::wire::finding::{self, Finding, Findings, Force, Forced, Severity, Subject};
pub use needs::{Needs, describe_needs};
pub use served::served_by_userfaultfd;

use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{AddressMove, TcpMode};

/// Whether sockets of the tree may be connected to unix sockets outside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExternalUnix {
    /// CRIU is not told to accept any.
    Refused,
    /// CRIU's `--ext-unix-sk`: datagram sockets to a named peer are accepted.
    NamedDatagrams,
}

/// What the dump will be asked for, as far as it decides what blocks.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// How connections are treated.
    pub tcp: TcpMode,
    /// The address that moves along.
    pub move_address: Option<AddressMove>,
    /// CRIU's `--ghost-limit`: the largest deleted file that is carried.
    pub ghost_limit: Bytes,
    /// Directories that come along: files in them are there.
    pub synced: Vec<std::path::PathBuf>,
    /// Whether unix sockets may lead outside.
    pub external_unix: ExternalUnix,
}

impl Default for SourceOptions {
    fn default() -> SourceOptions {
        SourceOptions {
            tcp: TcpMode::Established,
            move_address: None,
            ghost_limit: Bytes(u64::from(crate::target::process::GHOST_LIMIT)),
            synced: Vec::new(),
            external_unix: ExternalUnix::Refused,
        }
    }
}

/// Everything that can be seen at the source without stopping the workload, the
/// worst first. A process that exits meanwhile is left out.
pub fn check_source(root: i32, options: &SourceOptions) -> Vec<Finding> {
    let mut findings = source::check(root, options);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// The same of a container, whose namespaces, mounts and cgroups are its runtime's work.
pub fn check_container(init: i32, options: &SourceOptions) -> Vec<Finding> {
    source::check_container(init, options)
}
