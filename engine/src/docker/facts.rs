//! What matters of an engine when a container goes from one to another.

use super::api::{Api, ApiError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An engine, as it describes itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    /// Docker's version.
    pub version: String,
    /// Its newest API.
    pub api: String,
    /// What holds the containers' files: `overlay2`.
    pub storage: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    /// The names of its runtimes.
    pub runtimes: Vec<String>,
    /// Where it keeps everything.
    pub root: String,
    /// Whether it lets checkpoints be used.
    pub checkpoints: Checkpoints,
    /// Whether containers' users are numbers of the host.
    pub users: Users,
}

/// Docker counts checkpoints among its experiments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Checkpoints {
    /// `experimental` is on.
    Allowed,
    /// It is off, as it is unless somebody turned it on.
    #[default]
    Refused,
}

/// Who the users of a container are on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Users {
    /// The same.
    #[default]
    Same,
    /// Others (`userns-remap`, rootless).
    Mapped,
}

impl EngineFacts {
    /// Asks the engine.
    pub fn read(api: &Api) -> Result<EngineFacts, ApiError> {
        let (version, info) = (api.get("/version")?, api.get("/info")?);
        let text =
            |from: &Value, key: &str| from.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let runtimes = info.get("Runtimes").and_then(Value::as_object);
        let security = info.get("SecurityOptions").map(Value::to_string).unwrap_or_default();
        let mapped = ["name=userns", "name=rootless"].iter().any(|option| security.contains(option));
        let experimental = info.get("ExperimentalBuild").and_then(Value::as_bool).unwrap_or_default();
        Ok(EngineFacts {
            version: text(&version, "Version"),
            api: text(&version, "ApiVersion"),
            storage: text(&info, "Driver"),
            // An engine before 20.10 knows the first one only.
            cgroup_version: Some(text(&info, "CgroupVersion"))
                .filter(|v| !v.is_empty())
                .unwrap_or("1".into()),
            cgroup_driver: text(&info, "CgroupDriver"),
            runtimes: runtimes.into_iter().flatten().map(|(name, _)| name.clone()).collect(),
            root: text(&info, "DockerRootDir"),
            checkpoints: if experimental { Checkpoints::Allowed } else { Checkpoints::Refused },
            users: if mapped { Users::Mapped } else { Users::Same },
        })
    }

    /// In a line, for people.
    pub fn describe(&self) -> String {
        format!(
            "Docker {} (API {}), {}, cgroup v{} by {}",
            self.version, self.api, self.storage, self.cgroup_version, self.cgroup_driver
        )
    }
}
