//! What each side has decided, written down before it acts on it.
//!
//! One file a migration and side, `<state>/journal/<id>.<side>`, append-only.
//! Each line is a record an operator can read:
//!
//! ```text
//! 5f3a09c1 {"at":1764000000123,"record":{"prepared":{"pids":[4711]}}}
//! ^ CRC32 of the rest of the line, 8 hex digits
//! ```
//!
//! A line whose checksum is wrong was being written when its writer died, or its
//! disk was full: nobody acted on it, and it is skipped. Who writes after it begins
//! a line of his own. Records are in the page cache when [`Journal::append`]
//! returns, and so survive any death of the process; they are not forced to the
//! disk inside the freeze, because a host that loses power loses the tasks that
//! the record is about as well. [`Journal::sync`] does so outside it.

mod record;

pub use record::{DestinationRecord, Entry, Record, Side, SourceRecord, TaskId};

use ferry_transport::wire::control::MigrationId;
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The longest journal that is read, in bytes.
const MAX_JOURNAL: u64 = 16 << 20;

/// An open journal of one migration on one side.
#[derive(Debug)]
pub struct Journal<R> {
    file: File,
    path: PathBuf,
    kind: std::marker::PhantomData<fn(R)>,
}

impl<R: Record> Journal<R> {
    /// Opens the journal of `id` for appending, creating it if it is new. It is locked
    /// until this is dropped or its process dies: who has it open is at work on the
    /// migration, and a lock says so across namespaces, where a PID does not.
    ///
    /// # Errors
    /// `EAGAIN`: somebody else has it open.
    pub fn open(state: &Path, id: MigrationId) -> io::Result<Journal<R>> {
        let path = path_of(state, id, R::SIDE);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory(state))?;
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
        fcntl(&file, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK)))?;
        Ok(Journal { file, path, kind: std::marker::PhantomData })
    }

    /// Writes one record. When this returns the record outlives the process.
    pub fn append(&mut self, record: &R) -> io::Result<()> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let json = serde_json::to_string(&serde_json::json!({ "at": at, "record": record }))?;
        let begin = if self.ends_inside_a_line()? { "\n" } else { "" };
        let line = format!("{begin}{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
        // One write call: a record is there as a whole or torn at the end, never interleaved.
        self.file.write_all(line.as_bytes())
    }

    fn ends_inside_a_line(&self) -> io::Result<bool> {
        let Some(last) = self.file.metadata()?.len().checked_sub(1) else { return Ok(false) };
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, last)?;
        Ok(byte != *b"\n")
    }

    /// Forces what was written to the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The journal's file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether somebody has the journal open for appending: the engine that is at work on
/// the migration.
pub fn is_open(state: &Path, id: MigrationId, side: Side) -> bool {
    let Ok(file) = File::open(path_of(state, id, side)) else { return false };
    let mut lock = whole(libc::F_RDLCK);
    // Asks only; a lock of one's own could be in the way of who opens it now.
    let asked = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock));
    asked.is_ok() && lock.l_type != libc::F_UNLCK as i16
}

/// A lock on the whole of a file.
fn whole(kind: i32) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

/// Reads a journal: every whole record, oldest first. A missing file is empty.
pub fn read<R: Record>(state: &Path, id: MigrationId) -> io::Result<Vec<Entry<R>>> {
    let file = match File::open(path_of(state, id, R::SIDE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_JOURNAL).read_to_end(&mut bytes)?;
    Ok(parse(&bytes))
}

/// Every whole record of a journal's content, oldest first.
pub fn parse<R: Record>(content: &[u8]) -> Vec<Entry<R>> {
    content.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line<R: Record>(line: &[u8]) -> Option<Entry<R>> {
    let line = str::from_utf8(line).ok()?;
    let (crc, json) = line.split_once(' ')?;
    let crc = u32::from_str_radix(crc, 16).ok()?;
    (crc32fast::hash(json.as_bytes()) == crc).then(|| serde_json::from_str(json).ok())?
}

/// Every migration that has a journal of this side, in no order.
pub fn list(state: &Path, side: Side) -> io::Result<Vec<MigrationId>> {
    let entries = match std::fs::read_dir(directory(state)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some((id, of)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
        if of == side.suffix()
            && let Ok(id) = id.parse()
        {
            found.push(id);
        }
    }
    Ok(found)
}

fn directory(state: &Path) -> PathBuf {
    state.join("journal")
}

fn path_of(state: &Path, id: MigrationId, side: Side) -> PathBuf {
    directory(state).join(format!("{id}.{}", side.suffix()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(state: &Path, id: MigrationId) -> Vec<DestinationRecord> {
        read(state, id).unwrap().into_iter().map(|entry| entry.record).collect()
    }

    #[test]
    fn what_was_appended_is_read_back() {
        let state = tempfile::tempdir().unwrap();
        let id = MigrationId(7);
        let mut journal = Journal::open(state.path(), id).unwrap();
        journal.append(&DestinationRecord::Committed).unwrap();
        assert!(is_open(state.path(), id, Side::Destination));
        let second = Journal::<DestinationRecord>::open(state.path(), id);
        assert_eq!(second.unwrap_err().raw_os_error(), Some(libc::EAGAIN), "one at a time");
        drop(journal);
        assert!(!is_open(state.path(), id, Side::Destination));
        let mut journal = Journal::open(state.path(), id).unwrap();
        journal.append(&DestinationRecord::Resumed).unwrap();
        assert_eq!(records(state.path(), id), [DestinationRecord::Committed, DestinationRecord::Resumed]);
        assert_eq!(list(state.path(), Side::Destination).unwrap(), [id]);
        assert_eq!(list(state.path(), Side::Source).unwrap(), []);
    }

    #[test]
    fn a_torn_or_altered_record_is_skipped_and_what_follows_it_is_read() {
        let state = tempfile::tempdir().unwrap();
        let id = MigrationId(8);
        let mut journal = Journal::open(state.path(), id).unwrap();
        journal.append(&DestinationRecord::Committed).unwrap();
        let first = std::fs::metadata(journal.path()).unwrap().len() as usize;
        journal.append(&DestinationRecord::Discarded { cause: "cut".into() }).unwrap();
        let path = journal.path().to_owned();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for end in first..whole.len() - 1 {
            std::fs::write(&path, &whole[..end]).unwrap();
            assert_eq!(records(state.path(), id), [DestinationRecord::Committed], "cut at {end}");
            Journal::open(state.path(), id).unwrap().append(&DestinationRecord::Resumed).unwrap();
            let [DestinationRecord::Committed, DestinationRecord::Resumed] = records(state.path(), id)[..]
            else {
                panic!("what was written after a cut at {end} is lost")
            };
        }
        for at in first..whole.len() - 1 {
            let mut altered = whole.clone();
            altered[at] ^= 0x01;
            std::fs::write(&path, &altered).unwrap();
            assert_eq!(records(state.path(), id).first(), Some(&DestinationRecord::Committed));
            assert!(records(state.path(), id).len() < 2, "altered at {at}");
        }
    }

    #[test]
    fn a_missing_journal_is_empty() {
        let state = tempfile::tempdir().unwrap();
        assert!(records(state.path(), MigrationId(9)).is_empty());
        assert!(list(state.path(), Side::Source).unwrap().is_empty());
    }
}
