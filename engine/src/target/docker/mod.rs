//! Docker's containers: `docker:NAME`.
//!
//! At the source the container is checkpointed by its own runc, as any of runc's
//! ([`super::oci`]); Docker sees it end. At the destination Docker itself starts the
//! copy, from a checkpoint that is empty: runc below it asks for CRIU, and ferry's relay
//! is what it finds. So Docker knows the copy as one of its own: `ps`, `logs`, `exec`,
//! `stop` and the network are its work.

mod dump;
mod restore;
mod setup;

pub use dump::DockerTarget;
pub use restore::DockerRestorer;
pub use setup::Setup;

use super::TargetError;

/// Who builds the copy of such a container, in an offer.
pub const KIND: &str = "docker";

fn fails(what: impl std::fmt::Display) -> TargetError {
    TargetError { what: what.to_string(), log: None }
}
