//! What the destination must know of a container to make it again.

use super::fails;
use super::relay::is_container_id;
use super::runtime::{Runtime, State};
use super::stdio::{self, Stream};
use crate::sys::procfs::read_limited;
use crate::target::TargetError;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Component, Path, PathBuf};

/// The version of this description; raised when an older ferry would misread it.
const SCHEMA: u32 = 1;
/// The longest configuration that is carried.
const MAX_CONFIG: u64 = 512 << 10;
const CONFIG: &str = "config.json";

/// Travels with the offer, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    schema: u32,
    /// The container's ID.
    pub id: String,
    /// The bundle's directory, the same on both hosts.
    pub bundle: PathBuf,
    /// The bundle's `config.json`, as it is.
    pub config: String,
    pub(super) streams: [Stream; 3],
    /// CRIU's `descriptors.json`.
    pub(super) descriptors: Vec<String>,
}

/// What ferry reads of a container's configuration.
#[derive(Deserialize)]
pub(super) struct Config {
    root: Option<Root>,
    #[serde(default)]
    process: Process,
    #[serde(default)]
    linux: Linux,
}

#[derive(Deserialize)]
struct Root {
    path: PathBuf,
}

#[derive(Default, Deserialize)]
struct Process {
    #[serde(default)]
    terminal: bool,
}

#[derive(Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Clone, Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: Option<PathBuf>,
}

impl Config {
    pub(super) fn has_terminal(&self) -> bool {
        self.process.terminal
    }

    /// Whether the runtime makes it a namespace of this kind.
    pub(super) fn has_own(&self, kind: &str) -> bool {
        self.linux.namespaces.iter().any(|namespace| namespace.kind == kind && namespace.path.is_none())
    }

    /// Namespaces of somebody else that it joins.
    pub(super) fn joined(&self) -> impl Iterator<Item = (&str, &Path)> {
        let all = self.linux.namespaces.iter();
        all.filter_map(|namespace| Some((namespace.kind.as_str(), namespace.path.as_deref()?)))
    }
}

impl Setup {
    /// Of a container that runs here.
    pub(super) fn read(runtime: &Runtime, id: &str, state: &State) -> Result<Setup, TargetError> {
        let path = state.bundle.join(CONFIG);
        let unreadable = |what: &Path, error: io::Error| fails(format!("{}: {error}", what.display()));
        let config = read_limited(&path.display().to_string(), MAX_CONFIG + 1)
            .map_err(|error| unreadable(&path, error))?;
        if config.len() as u64 > MAX_CONFIG {
            return Err(fails(format!("{} is longer than {MAX_CONFIG} bytes", path.display())));
        }
        let setup = Setup {
            schema: SCHEMA,
            id: id.to_owned(),
            bundle: state.bundle.clone(),
            config: String::from_utf8(config).map_err(|_| fails(format!("{} is no text", path.display())))?,
            streams: stdio::of(state.pid)
                .map_err(|error| fails(format!("standard input and output of {id}: {error}")))?,
            descriptors: runtime
                .external_descriptors(id)
                .map_err(|error| unreadable(&runtime.directory(id), error))?,
        };
        setup.config()?;
        Ok(setup)
    }

    /// As it came over the wire.
    ///
    /// # Errors
    /// It is of another version, or not what a runtime would take.
    pub fn parse(bytes: &[u8]) -> Result<Setup, String> {
        let setup: Setup = serde_json::from_slice(bytes)
            .map_err(|error| format!("the container's description cannot be read: {error}"))?;
        if setup.schema != SCHEMA {
            return Err(format!("the container's description is of version {}", setup.schema));
        }
        let plain = |path: &Path| {
            path.is_absolute() && path.components().all(|part| !matches!(part, Component::ParentDir))
        };
        let host_files = setup.streams.iter().filter_map(|stream| match stream {
            Stream::HostFile { path, .. } => Some(path),
            Stream::Own | Stream::Pipe => None,
        });
        let flaw = match setup.config() {
            Err(error) => Some(error.what),
            Ok(_) if !is_container_id(&setup.id) => Some(format!("{:?} is no container's ID", setup.id)),
            Ok(_) if setup.descriptors.len() > 3 => Some("it has too many descriptors".into()),
            Ok(_) => std::iter::once(&setup.bundle)
                .chain(host_files)
                .find(|path| !plain(path))
                .map(|path| format!("{} is no absolute path", path.display())),
        };
        match flaw {
            Some(flaw) => Err(format!("the container cannot be taken: {flaw}")),
            None => Ok(setup),
        }
    }

    /// What ferry reads of its configuration.
    pub(super) fn config(&self) -> Result<Config, TargetError> {
        serde_json::from_str(&self.config).map_err(|error| fails(format!("its {CONFIG}: {error}")))
    }

    /// The root of its files.
    pub(super) fn rootfs(&self) -> Option<PathBuf> {
        Some(self.bundle.join(self.config().ok()?.root?.path))
    }

    /// Where the copy's output goes whose pipe ended at the source's host.
    pub(super) fn output(&self) -> PathBuf {
        stdio::output(&self.bundle)
    }

    /// Whether this host has another configuration in the bundle's place.
    pub(super) fn conflicts(&self) -> bool {
        std::fs::read(self.bundle.join(CONFIG)).is_ok_and(|there| there != self.config.as_bytes())
    }

    /// Writes the configuration to where the runtime looks for it, if it is not there.
    pub(super) fn place(&self) -> io::Result<()> {
        let path = self.bundle.join(CONFIG);
        if path.exists() {
            return Ok(());
        }
        let mut draft = tempfile::NamedTempFile::new_in(&self.bundle)?;
        io::Write::write_all(&mut draft, self.config.as_bytes())?;
        draft.persist(path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn setup() -> Setup {
        Setup {
            schema: SCHEMA,
            id: "one".into(),
            bundle: "/bundles/one".into(),
            config: r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"terminal":false},
                "linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/run/netns/a"}]}}"#
                .into(),
            streams: [
                Stream::Own,
                Stream::Pipe,
                Stream::HostFile { path: "/var/log/one".into(), key: "file[1:2]".into() },
            ],
            descriptors: vec!["/dev/null".into(), "pipe:[1]".into(), "/var/log/one".into()],
        }
    }

    #[test]
    fn it_arrives_as_it_was_sent() {
        let sent = setup();
        let arrived = Setup::parse(&serde_json::to_vec(&sent).unwrap()).unwrap();
        assert_eq!(arrived, sent);
        assert_eq!(arrived.rootfs().unwrap(), Path::new("/bundles/one/rootfs"));
        let config = arrived.config().unwrap();
        assert_eq!(config.joined().collect::<Vec<_>>(), [("network", Path::new("/run/netns/a"))]);
        assert!(config.has_own("pid") && !config.has_own("network") && !config.has_own("user"));
    }

    #[test]
    fn what_a_runtime_must_not_be_given_is_refused() {
        let with = |change: fn(&mut Setup)| {
            let mut setup = setup();
            change(&mut setup);
            Setup::parse(&serde_json::to_vec(&setup).unwrap())
        };
        assert!(with(|setup| setup.schema = 2).is_err());
        assert!(with(|setup| setup.id = "../x".into()).is_err());
        assert!(with(|setup| setup.bundle = "relative".into()).is_err());
        assert!(with(|setup| setup.bundle = "/a/../b".into()).is_err());
        assert!(with(|setup| setup.config = "[]".into()).is_err());
        let escape = Stream::HostFile { path: "/a/../../b".into(), key: "file[1:2]".into() };
        let mut setup = setup();
        setup.streams[2] = escape;
        assert!(Setup::parse(&serde_json::to_vec(&setup).unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_calmly(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Setup::parse(&bytes).is_err());
        }
    }
}
