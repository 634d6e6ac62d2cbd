//! What the destination must know of a container to have Docker make it again.

use crate::docker::ContainerConfig;
use crate::docker::facts::EngineFacts;
use serde::{Deserialize, Serialize};

/// The version of this description; raised when an older ferry would misread it.
const SCHEMA: u32 = 1;

/// Travels with the offer, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    schema: u32,
    /// The container.
    pub container: ContainerConfig,
    /// Docker at the source.
    pub engine: EngineFacts,
    /// runc's words for the standard streams: CRIU's `descriptors.json`.
    pub descriptors: Vec<String>,
}

impl Setup {
    /// Of a container that runs here.
    pub fn new(container: ContainerConfig, engine: EngineFacts, descriptors: Vec<String>) -> Setup {
        Setup { schema: SCHEMA, container, engine, descriptors }
    }

    /// As it came over the wire.
    ///
    /// # Errors
    /// It is of another version, or not what Docker would take.
    pub fn parse(bytes: &[u8]) -> Result<Setup, String> {
        let setup: Setup = serde_json::from_slice(bytes)
            .map_err(|error| format!("the container's description cannot be read: {error}"))?;
        if setup.schema != SCHEMA {
            return Err(format!("the container's description is of version {}", setup.schema));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let name = &setup.container.name;
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(format!("{name:?} is no container's name"));
        }
        Ok(setup)
    }

    /// As it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::ImageClaim;

    fn setup(name: &str) -> Setup {
        let container = ContainerConfig {
            name: name.into(),
            image: ImageClaim::default(),
            config: serde_json::Map::new(),
            host_config: serde_json::Map::new(),
            endpoints: Vec::new(),
        };
        Setup::new(container, EngineFacts::default(), vec!["/dev/null".into()])
    }

    #[test]
    fn it_arrives_as_it_was_or_is_refused() {
        let sent = setup("web_1.a-b");
        assert_eq!(Setup::parse(&sent.to_bytes()).unwrap(), sent);
        for name in ["", "../x", "a b", "a/b", "a?force=1"] {
            assert!(Setup::parse(&setup(name).to_bytes()).is_err(), "{name:?}");
        }
        let newer = Setup { schema: 2, ..sent };
        assert!(Setup::parse(&newer.to_bytes()).unwrap_err().contains("version 2"));
        assert!(Setup::parse(b"{}").is_err() && Setup::parse(&[0xff]).is_err());
    }
}
