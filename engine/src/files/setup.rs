//! What the destination is told of the trees before anything of them is sent.

use crate::companion::CompanionError;
use serde::{Deserialize, Serialize};

/// What to do about a place that has content already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Existing {
    /// Nothing is sent: somebody may need it.
    #[default]
    Refuse,
    /// It is put aside, and removed when the workload runs there.
    Replace,
}

/// A tree, as it is announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeSetup {
    /// Its place at the destination, or what the destination knows it by.
    pub path: String,
    /// What if that has content already.
    pub existing: Existing,
    /// Entries that it has now.
    pub names: u64,
    /// What they take on the disk now.
    pub bytes: u64,
}

/// All of them: JSON in the offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    version: u32,
    /// In the order of their numbers.
    pub trees: Vec<TreeSetup>,
}

/// What is understood here.
const VERSION: u32 = 1;
/// The most trees, and the longest text.
const MAX_TREES: usize = 1024;
const MAX_SETUP: usize = 1 << 20;

impl Setup {
    /// Of these trees.
    pub fn new(trees: Vec<TreeSetup>) -> Setup {
        Setup { version: VERSION, trees }
    }

    /// For the offer.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From the offer of a peer.
    pub fn parse(bytes: &[u8]) -> Result<Setup, CompanionError> {
        let malformed =
            |what: String| CompanionError::new(format!("the directories that come along: {what}"));
        if bytes.len() > MAX_SETUP {
            return Err(malformed(format!("a description of {} bytes", bytes.len())));
        }
        let setup: Setup = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if setup.version != VERSION {
            return Err(malformed(format!("version {} is not understood here", setup.version)));
        }
        if setup.trees.len() > MAX_TREES {
            return Err(malformed(format!("{} of them, at most {MAX_TREES}", setup.trees.len())));
        }
        Ok(setup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setup_comes_back_and_nonsense_is_refused() {
        let tree = TreeSetup { path: "/srv/data".into(), existing: Existing::Refuse, names: 3, bytes: 4096 };
        let setup = Setup::new(vec![tree.clone()]);
        assert_eq!(Setup::parse(&setup.encode()).unwrap(), setup);
        assert!(Setup::parse(b"{}").is_err() && Setup::parse(b"").is_err());
        let later = Setup { version: 2, trees: vec![] };
        assert!(Setup::parse(&later.encode()).unwrap_err().to_string().contains("version 2"));
        assert!(Setup::parse(&Setup::new(vec![tree; MAX_TREES + 1]).encode()).is_err());
    }
}
