//! Containers of an OCI runtime: `runc:ID`.
//!
//! The runtime checkpoints and restores as it always does, and believes to talk to
//! CRIU; ferry stands between the two ([`relay`]), so that freeze, hold, commit and
//! roll-back are those of a process tree, and the runtime's own files, cgroups and
//! state are its own work.

mod check;
mod dump;
mod members;
pub mod relay;
mod restore;
mod runtime;
mod setup;
mod stdio;

pub use check::check;
pub use dump::OciTarget;
pub use restore::OciRestorer;
pub use runtime::{Runtime, State};
pub use setup::Setup;

use super::TargetError;
use std::path::PathBuf;

/// Who builds the copy of such a container, in an offer.
pub const KIND: &str = "runc";

/// What ferry needs of this host to stand between a runtime and CRIU.
#[derive(Clone, Debug)]
pub struct Host {
    /// The CRIU to use.
    pub criu: super::process::Criu,
    /// Where relays find whoever waits for them; made if it is not there.
    pub relays: PathBuf,
    /// Ferry's program, which is also the relay's.
    pub ferry: PathBuf,
}

fn fails(what: impl Into<String>) -> TargetError {
    TargetError { what: what.into(), log: None }
}
