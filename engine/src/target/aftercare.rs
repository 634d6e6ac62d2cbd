//! What a migration has to put right at the source beside the workload itself, whoever
//! is left to do it: the journal keeps it, and engine, keeper and operator perform it.

use crate::docker::aftercare::ContainerCare;
use crate::journal::Side;
use serde::{Deserialize, Serialize};
use std::process::{Command, Stdio};

/// Something that was changed around the workload. Performing it twice does no harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aftercare {
    /// Docker's own doings with a container.
    DockerContainer(ContainerCare),
    /// What a runtime keeps of a container.
    RuntimeContainer {
        /// The program that removes it, and its arguments.
        delete: Vec<String>,
    },
}

impl Aftercare {
    /// Makes it so as it is to be here where the workload lives on `runs`.
    ///
    /// # Errors
    /// What has to be done by hand, and why.
    pub fn perform(&self, runs: Side) -> Result<(), String> {
        match self {
            Aftercare::DockerContainer(care) => {
                care.perform(runs).map_err(|error| format!("{}: {error}", care.by_hand(runs)))
            }
            Aftercare::RuntimeContainer { delete } => {
                if runs == Side::Destination {
                    run(delete);
                }
                Ok(())
            }
        }
    }
}

/// Runs a program and waits for it.
pub(super) fn run(command: &[String]) {
    let Some((program, arguments)) = command.split_first() else { return };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::warn!(%status, program, ?arguments, "it failed"),
        Err(error) => tracing::warn!(%error, program, "it cannot be started"),
    }
}
