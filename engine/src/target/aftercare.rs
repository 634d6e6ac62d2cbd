//! What a migration has to put right at the source beside the workload itself, whoever
//! is left to do it: the journal keeps it, and engine, keeper and operator perform it.

use crate::docker::aftercare::ContainerCare;
use crate::journal::Side;
use serde::{Deserialize, Serialize};

/// Something that was changed around the workload. Performing it twice does no harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aftercare {
    /// Docker's own doings with a container.
    DockerContainer(ContainerCare),
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
        }
    }
}
