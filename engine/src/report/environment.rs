//! Where a report was measured.

use serde::{Deserialize, Serialize};

/// The source host, as far as it bears on the numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// `uname -r`.
    pub kernel: String,
    /// CRIU's version.
    pub criu: String,
    /// The processor's model and how many of them.
    pub cpu: String,
    /// The product's version and revision.
    pub revision: String,
}

impl Environment {
    /// Reads what this host says of itself.
    pub fn here(criu: &str) -> Environment {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
        let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        Environment {
            kernel: kernel.trim().into(),
            criu: criu.into(),
            cpu: format!("{cores} × {}", model.unwrap_or("unknown")),
            revision: crate::REVISION.into(),
        }
    }
}
