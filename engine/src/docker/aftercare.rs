//! Docker's own doings around a migration: at the source a container that is removed
//! under it looks to Docker like one that has exited, and its policy would start it again.

use super::api::{Api, ApiError, Waiting, escaped};
use super::container::{Container, Volumes, remove};
use crate::journal::Side;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What is to be put right at the source once it is known where the container lives.
/// It is written down before anything is changed, and may be done any number of times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerCare {
    socket: PathBuf,
    id: String,
    restart_policy: Value,
}

impl ContainerCare {
    /// For this container, as it is now. Changes nothing.
    pub fn of(api: &Api, container: &Container) -> ContainerCare {
        ContainerCare {
            socket: api.socket().to_owned(),
            id: container.id().to_owned(),
            restart_policy: container.field("/HostConfig/RestartPolicy").clone(),
        }
    }

    /// Keeps Docker from starting the container by itself.
    pub fn suspend(&self) -> Result<(), ApiError> {
        match self.restarts() {
            true => self.set_policy(&json!({ "Name": "no", "MaximumRetryCount": 0 })),
            false => Ok(()),
        }
    }

    /// Makes it so as it is to be where the container lives on `runs`: here it gets its
    /// policy back; there, what is left of it here is removed.
    pub fn perform(&self, runs: Side) -> Result<(), ApiError> {
        match runs {
            Side::Source if self.restarts() => match self.set_policy(&self.restart_policy) {
                Err(error) if error.is_missing() => Ok(()),
                other => other,
            },
            Side::Source => Ok(()),
            Side::Destination => self.clear_away(),
        }
    }

    /// Its name is free again. A container that changed files of its image is the only
    /// one that has them: it is kept under another name.
    fn clear_away(&self) -> Result<(), ApiError> {
        let api = Api::at(&self.socket);
        let container = match Container::inspect(&api, &self.id) {
            Err(error) if error.is_missing() => return Ok(()),
            other => other?,
        };
        if changed_files(&api, &container)?.is_empty() {
            return remove(&api, &self.id, Volumes::Stay);
        }
        if container.name().ends_with(&kept_mark(&self.id)) {
            return Ok(());
        }
        let kept = format!("{}{}", container.name(), kept_mark(&self.id));
        let path = format!("/containers/{}/rename?name={}", escaped(&self.id), escaped(&kept));
        api.post(&path, &Value::Null, Waiting::Briefly).map(drop)
    }

    /// What to type where it could not be done.
    pub fn by_hand(&self, runs: Side) -> String {
        let id = self.id.get(..12).unwrap_or(&self.id);
        match runs {
            Side::Source => {
                let policy = self.restart_policy.get("Name").and_then(Value::as_str).unwrap_or("no");
                format!(
                    "the container did not get its restart policy back (docker update --restart {policy} {id})"
                )
            }
            Side::Destination => format!("what is left of the container was not removed (docker rm {id})"),
        }
    }

    /// Whether Docker would ever start it by itself.
    fn restarts(&self) -> bool {
        let name = self.restart_policy.get("Name").and_then(Value::as_str).unwrap_or_default();
        !matches!(name, "" | "no")
    }

    fn set_policy(&self, policy: &Value) -> Result<(), ApiError> {
        let path = format!("/containers/{}/update", escaped(&self.id));
        let body = json!({ "RestartPolicy": policy });
        Api::at(&self.socket).post(&path, &body, Waiting::Briefly).map(drop)
    }
}

/// What the name of a container ends in that moved and is kept for its files.
pub fn kept_mark(id: &str) -> String {
    format!("-left-{}", id.get(..12).unwrap_or(id))
}

/// What a container changed of its image: paths within it. Where Docker made a place for
/// a mount, nothing was changed.
pub fn changed_files(api: &Api, container: &Container) -> Result<Vec<String>, ApiError> {
    let changes = api.get(&format!("/containers/{}/changes", escaped(container.id())))?;
    let paths = changes.as_array().into_iter().flatten().filter_map(|change| change.get("Path")?.as_str());
    let mounts = container.field("/Mounts").as_array().into_iter().flatten();
    let mounts: Vec<&Path> =
        mounts.filter_map(|mount| mount.get("Destination")?.as_str()).map(Path::new).collect();
    let is_way = |path: &&str| mounts.iter().any(|mount| mount.starts_with(path));
    Ok(paths.filter(|path| !is_way(path)).map(str::to_owned).collect())
}
