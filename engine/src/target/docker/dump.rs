//! The source's side: a container of Docker's runc.

use super::fails;
use super::setup::Setup;
use crate::criu::rpc::PagePayload;
use crate::docker::aftercare::ContainerCare;
use crate::docker::facts::EngineFacts;
use crate::docker::{Api, Container, ContainerConfig, ImageClaim};
use crate::journal::TaskId;
use crate::target::oci::{Host, OciTarget, Runtime};
use crate::target::{Aftercare, FrozenDump, Target, TargetError};
use ferry_transport::wire::control::{RestorerRequest, TcpMode};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where Docker's runc keeps its containers, below the engine's own directory.
const RUNC_ROOT: &str = "runtime-runc/moby";
/// The engine's own directory unless it was told otherwise.
const EXEC_ROOT: &str = "/run/docker";

/// A container that Docker runs.
pub struct DockerTarget {
    oci: OciTarget,
    name: String,
    setup: Setup,
    care: ContainerCare,
}

impl DockerTarget {
    /// The container of this name or ID.
    ///
    /// # Errors
    /// It does not run, or cannot be moved as it is. Nothing was changed.
    pub fn new(api: &Api, name: &str, host: Host) -> Result<DockerTarget, TargetError> {
        let container = Container::inspect(api, name).map_err(fails)?;
        let engine = EngineFacts::read(api).map_err(fails)?;
        let image = ImageClaim::of(api, container.image(), container.text("/Config/Image")).map_err(fails)?;
        let runtime = Runtime::runc(Some(exec_root(&container).join(RUNC_ROOT)));
        let oci = OciTarget::new(container.id(), runtime, host)?.with_network_made_by_runtime();
        Ok(DockerTarget {
            name: container.name().to_owned(),
            setup: Setup::new(ContainerConfig::of(&container, image), engine, oci.descriptors().to_vec()),
            care: ContainerCare::of(api, &container),
            oci,
        })
    }

    /// Lets CRIU dump the pages itself: a dump that is whole without ferry's pages.
    #[must_use]
    pub fn with_pages(mut self, pages: PagePayload) -> DockerTarget {
        self.oci = self.oci.with_pages(pages);
        self
    }

    /// The container's first process, as this host numbers it.
    pub fn init(&self) -> i32 {
        self.oci.init()
    }
}

/// The engine does not tell it, but where the container's network is.
fn exec_root(container: &Container) -> PathBuf {
    let sandbox = Path::new(container.text("/NetworkSettings/SandboxKey"));
    let root = sandbox.parent().filter(|directory| directory.ends_with("netns")).and_then(Path::parent);
    root.unwrap_or(Path::new(EXEC_ROOT)).to_owned()
}

impl Target for DockerTarget {
    fn describe(&self) -> String {
        format!("docker:{}", self.name)
    }

    fn image_pid(&self, pid: i32) -> u32 {
        self.oci.image_pid(pid)
    }

    fn tasks(&self) -> Vec<TaskId> {
        self.oci.tasks()
    }

    fn restorer(&self) -> Result<RestorerRequest, TargetError> {
        Ok(RestorerRequest { kind: super::KIND.into(), setup: self.setup.to_bytes() })
    }

    fn aftercare(&self) -> Option<Aftercare> {
        Some(Aftercare::DockerContainer(self.care.clone()))
    }

    fn prepare(&mut self) -> Result<(), TargetError> {
        // Docker sees the container end when it is removed, and must not start it again.
        self.care.suspend().map_err(fails)?;
        self.oci.prepare()
    }

    fn freeze(
        &mut self,
        images: &Path,
        tcp: TcpMode,
        deadline: Duration,
    ) -> Result<Box<dyn FrozenDump>, TargetError> {
        self.oci.freeze(images, tcp, deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_directory_is_read_off_the_network() {
        let with = |key: &str| {
            let said = serde_json::json!({ "NetworkSettings": { "SandboxKey": key } });
            exec_root(&Container::from_json(said))
        };
        assert_eq!(with("/var/run/docker/netns/af01"), Path::new("/var/run/docker"));
        assert_eq!(with("/run/other/exec/netns/default"), Path::new("/run/other/exec"));
        assert_eq!(with(""), Path::new(EXEC_ROOT));
    }
}
