//! Whom this host lets in: one file a peer, read anew at every handshake.

use super::identity::Fingerprint;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// What a peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It may send workloads to this host.
    Sender,
    /// This host may send workloads to it.
    Receiver,
    /// Both.
    Both,
}

impl Role {
    /// Whatever either allows.
    pub fn and(self, other: Role) -> Role {
        if self == other { self } else { Role::Both }
    }
}

/// A peer that is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The name it was given here.
    pub name: String,
    /// Its certificate's fingerprint.
    pub fingerprint: Fingerprint,
    /// What it may do.
    pub role: Role,
}

impl Peer {
    /// Whether it may send to us.
    pub fn may_send(&self) -> bool {
        self.role != Role::Receiver
    }

    /// Whether we may send to it.
    pub fn may_receive(&self) -> bool {
        self.role != Role::Sender
    }
}

/// The trusted peers of a state directory: `<state>/peers/NAME`, each file one
/// line of fingerprint and role.
#[derive(Clone, Debug)]
pub struct Trust {
    directory: PathBuf,
}

impl Trust {
    /// The trust kept under this state directory.
    pub fn open(state: &Path) -> Trust {
        Trust { directory: state.join("peers") }
    }

    /// Adds a peer, or replaces the one of that name.
    pub fn add(&self, peer: &Peer) -> io::Result<()> {
        let usable = !peer.name.is_empty()
            && peer.name.len() <= 64
            && !peer.name.starts_with('.')
            && peer.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !usable {
            let what = "a peer's name has 1 to 64 letters, digits, '-', '_' or '.', not beginning with '.'";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let role = match peer.role {
            Role::Sender => "sender",
            Role::Receiver => "receiver",
            Role::Both => "both",
        };
        let draft = self.directory.join(format!(".{}.{}", peer.name, std::process::id()));
        std::fs::write(&draft, format!("{} {role}\n", peer.fingerprint))?;
        std::fs::rename(draft, self.directory.join(&peer.name))
    }

    /// Forgets a peer; whether it was there.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        if name.contains('/') {
            return Ok(false);
        }
        match std::fs::remove_file(self.directory.join(name)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All peers by name. A file that cannot be read as one is skipped: it lets
    /// nobody in.
    pub fn list(&self) -> io::Result<Vec<Peer>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut peers: Vec<Peer> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'))?;
                parse(name, &std::fs::read_to_string(entry.path()).ok()?)
            })
            .collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(peers)
    }

    /// The peer with this fingerprint. Known under several names, it has the first
    /// of them and all of their roles.
    pub fn find(&self, fingerprint: Fingerprint) -> Option<Peer> {
        self.list().ok()?.into_iter().filter(|peer| peer.fingerprint == fingerprint).reduce(|first, more| {
            let role = first.role.and(more.role);
            Peer { role, ..first }
        })
    }

    /// Adds what pairing found: a role that the peer already had under this name
    /// stays, so that two hosts can be paired in both directions one after the
    /// other; and a name that another peer has is never taken from it.
    pub fn add_paired(&self, peer: &Peer) -> io::Result<Peer> {
        let mut peer = peer.clone();
        let known = self.list()?;
        match known.iter().find(|known| known.name == peer.name) {
            Some(same) if same.fingerprint == peer.fingerprint => peer.role = peer.role.and(same.role),
            Some(_) => {
                let digits = peer.fingerprint.to_string();
                peer.name.truncate(64 - 9);
                peer.name = format!("{}-{}", peer.name, &digits[..8]);
            }
            None => {}
        }
        self.add(&peer)?;
        Ok(peer)
    }
}

fn parse(name: String, line: &str) -> Option<Peer> {
    let (fingerprint, role) = line.trim().split_once(' ')?;
    let role = match role {
        "sender" => Role::Sender,
        "receiver" => Role::Receiver,
        "both" => Role::Both,
        _ => return None,
    };
    Some(Peer { name, fingerprint: fingerprint.parse().ok()?, role })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_added_found_and_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let trust = Trust::open(state.path());
        let peer = Peer { name: "db-2".into(), fingerprint: Fingerprint([7; 32]), role: Role::Receiver };
        assert_eq!(trust.find(peer.fingerprint), None);
        trust.add(&peer).unwrap();
        assert_eq!(trust.find(peer.fingerprint), Some(peer.clone()));
        assert!(trust.remove("db-2").unwrap());
        assert!(!trust.remove("db-2").unwrap());
        assert!(trust.list().unwrap().is_empty());
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        let state = tempfile::tempdir().unwrap();
        for name in ["", "../x", ".x", "a b", "a/b"] {
            let peer = Peer { name: name.into(), fingerprint: Fingerprint([7; 32]), role: Role::Both };
            assert!(Trust::open(state.path()).add(&peer).is_err(), "{name}");
        }
    }

    #[test]
    fn pairing_adds_roles_and_takes_no_name_away() {
        let state = tempfile::tempdir().unwrap();
        let trust = Trust::open(state.path());
        let peer = |byte, role| Peer { name: "db".into(), fingerprint: Fingerprint([byte; 32]), role };
        assert_eq!(trust.add_paired(&peer(1, Role::Sender)).unwrap(), peer(1, Role::Sender));
        assert_eq!(trust.add_paired(&peer(1, Role::Sender)).unwrap(), peer(1, Role::Sender));
        assert_eq!(trust.add_paired(&peer(1, Role::Receiver)).unwrap(), peer(1, Role::Both));
        let other = trust.add_paired(&peer(2, Role::Sender)).unwrap();
        assert_eq!(other.name, "db-02020202");
        assert_eq!(trust.find(Fingerprint([1; 32])).unwrap(), peer(1, Role::Both));
        trust.add(&Peer { name: "other-name".into(), ..peer(2, Role::Receiver) }).unwrap();
        assert_eq!(trust.find(Fingerprint([2; 32])).unwrap().role, Role::Both);
    }

    #[test]
    fn damaged_files_let_nobody_in() {
        for line in ["", "12 both", "zz", &format!("{} king", Fingerprint([1; 32]))] {
            assert_eq!(parse("x".into(), line), None, "{line}");
        }
    }
}
