//! CRIU's network lock, where CRIU does not remove it itself.
//!
//! While a tree with connections is frozen, CRIU drops their packets by a table of
//! its own, `inet CRIU-<run id>` (before 4.2 `inet CRIU-<pid of the root>`), the
//! name cut to 31 characters, family included. It removes the table when it lets the tree run again, and not when the tree was
//! removed or CRIU itself was killed. Nor is its way of removing it in a restore,
//! where it starts an nft interpreter between the hold and the first instruction
//! (7-20 ms of every downtime), of any use on a host that never had the table.

use crate::images::file::{self, Kind};
use crate::images::tree;
use crate::net::nft::Nft;
use prost::Message;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// CRIU says who it is at the very start of its log.
const LOOKED_AT: u64 = 64 << 10;
const MARK: &str = "CRIU run id = ";

/// The lock of one dump.
pub(super) struct NetworkLock {
    log: PathBuf,
    root: i32,
}

impl NetworkLock {
    /// That of the dump of `root` with this log.
    pub(super) fn of(log: &Path, root: i32) -> NetworkLock {
        NetworkLock { log: log.to_owned(), root }
    }

    /// Removes it. Only after CRIU has exited; one that is gone is no error.
    pub(super) fn remove(&self) {
        let identities = [run_id(&self.log), Some(self.root.to_string())];
        for identity in identities.iter().flatten() {
            remove(identity);
        }
    }
}

/// Removes the table of one run, if it stands.
fn remove(identity: &str) {
    let removed = Nft::open().and_then(|mut nft| {
        let standing = nft.criu_tables()?;
        standing.iter().filter(|t| is_of(&t.name, identity)).try_for_each(|t| nft.delete_table(t))
    });
    if let Err(error) = removed {
        tracing::warn!(%error, identity, "CRIU's network lock could not be removed");
    }
}

/// Whether a table is that of a run.
fn is_of(table: &str, identity: &str) -> bool {
    /// CRIU's buffer without its end and without `inet `.
    const LONGEST: usize = 26;
    let whole = format!("CRIU-{identity}");
    table == whole.get(..LONGEST).unwrap_or(&whole)
}

/// What CRIU would remove in a restore, and now leaves to us.
pub(super) struct RestoredLock(Option<String>);

impl RestoredLock {
    /// Has the images say that there is no lock to be removed. A tree with a network
    /// namespace of its own has its lock inside that, where it is CRIU's to remove;
    /// so it is if the images cannot be changed.
    pub(super) fn take_over(images: &Path) -> RestoredLock {
        let taken = take_over(images).unwrap_or_else(|error| {
            tracing::debug!(%error, "CRIU removes its network lock itself");
            None
        });
        RestoredLock(taken)
    }

    /// Removes the lock if it stands here: source and destination share a network
    /// namespace. Cheap when it does not.
    pub(super) fn remove(&self) {
        if let Some(identity) = &self.0 {
            remove(identity);
        }
    }
}

/// `inventory_entry`, as far as it is about the lock.
#[derive(Clone, PartialEq, Message)]
struct Inventory {
    /// CRIU's inner numbers, not those of its RPC: 1 nftables, 2 none.
    #[prost(uint32, optional, tag = "11")]
    network_lock_method: Option<u32>,
    #[prost(string, optional, tag = "13")]
    dump_criu_run_id: Option<String>,
}

const NFTABLES: u32 = 1;
const NONE: u32 = 2;

fn take_over(images: &Path) -> io::Result<Option<String>> {
    for entry in std::fs::read_dir(images)? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with("netns-") {
            return Ok(None);
        }
    }
    const NAME: &str = "inventory.img";
    let mut bytes = tree::read(images, NAME).map_err(io::Error::other)?;
    let inventory: Inventory = file::single(&bytes, Kind::Inventory).map_err(io::Error::other)?;
    let identity = inventory.dump_criu_run_id.filter(|id| is_plausible(id));
    match (inventory.network_lock_method, identity) {
        (Some(NONE), identity) => Ok(identity),
        (Some(NFTABLES), Some(identity)) => {
            append_no_lock(&mut bytes).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
            let mut draft = tempfile::NamedTempFile::new_in(images)?;
            io::Write::write_all(&mut draft, &bytes)?;
            draft.persist(images.join(NAME))?;
            Ok(Some(identity))
        }
        _ => Ok(None),
    }
}

/// Of a field that is there twice the later one counts, so nothing else of the
/// message needs to be understood: magic, length, then the message.
fn append_no_lock(file: &mut Vec<u8>) -> Option<()> {
    let field = Inventory { network_lock_method: Some(NONE), dump_criu_run_id: None }.encode_to_vec();
    let length = file.get(4..8)?.try_into().map(u32::from_le_bytes).ok()?;
    if file.len() - 8 != usize::try_from(length).ok()? {
        return None;
    }
    let longer = length.checked_add(u32::try_from(field.len()).ok()?)?;
    file.get_mut(4..8)?.copy_from_slice(&longer.to_le_bytes());
    file.extend(field);
    Some(())
}

/// The last one named: a CRIU that is asked over a socket chooses twice.
fn run_id(log: &Path) -> Option<String> {
    let mut start = Vec::new();
    std::fs::File::open(log).ok()?.take(LOOKED_AT).read_to_end(&mut start).ok()?;
    let text = String::from_utf8_lossy(&start);
    let id = text.lines().filter_map(|line| line.split_once(MARK)).next_back()?.1.trim();
    is_plausible(id).then(|| id.to_owned())
}

fn is_plausible(id: &str) -> bool {
    !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_run_id_counts_and_must_look_like_one() {
        let log = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(log.path(), "(00.0) CRIU run id = a-1\n(00.1) CRIU run id = b-2\n").unwrap();
        assert_eq!(run_id(log.path()).as_deref(), Some("b-2"));
        std::fs::write(log.path(), "(00.0) CRIU run id = a b\n").unwrap();
        assert_eq!(run_id(log.path()), None);
    }

    #[test]
    fn names_are_cut_as_criu_cuts_them() {
        assert!(is_of("CRIU-c783ed53-9278-4ca2-a4", "c783ed53-9278-4ca2-a4d1-0123456789ab"));
        assert!(!is_of("CRIU-c783ed53-9278-4ca2-a4", "c783ed53-9278-4ca2-a5d1-0123456789ab"));
        assert!(is_of("CRIU-4711", "4711"));
        assert!(!is_of("CRIU-471", "4711"));
    }

    #[test]
    fn the_inventory_says_none_afterwards_and_keeps_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("inventory.img");
        let was = Inventory { network_lock_method: Some(NFTABLES), dump_criu_run_id: Some("a-1".into()) };
        let mut bytes = file::begin(Kind::Inventory);
        file::append(&mut bytes, &was);
        std::fs::write(&path, bytes).unwrap();
        for _ in 0..2 {
            assert_eq!(take_over(directory.path()).unwrap().as_deref(), Some("a-1"));
            let now: Inventory = file::single(&std::fs::read(&path).unwrap(), Kind::Inventory).unwrap();
            assert_eq!(now, Inventory { network_lock_method: Some(NONE), ..was.clone() });
        }
        std::fs::write(directory.path().join("netns-9.img"), "").unwrap();
        assert_eq!(take_over(directory.path()).unwrap(), None);
    }
}
