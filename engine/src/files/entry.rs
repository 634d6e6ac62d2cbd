//! What a tree consists of: entries, and how a change of one is seen.

use rustix::fs::{Statx, StatxTimestamp};
use serde::{Deserialize, Serialize};

/// What an entry is, with what it cannot be without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A file with content.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, and where it points: never followed.
    Symlink(#[serde(with = "ferry_transport::wire::byte_array")] Vec<u8>),
    /// A fifo.
    Fifo,
    /// A socket's name. CRIU takes its place when it binds the socket again.
    Socket,
    /// A character device; 0/0 is an overlay's whiteout.
    CharacterDevice(Device),
    /// A block device.
    BlockDevice(Device),
}

/// A device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

/// A time, as file systems keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since the epoch, may be negative.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
}

impl From<StatxTimestamp> for Time {
    fn from(time: StatxTimestamp) -> Time {
        Time { seconds: time.tv_sec, nanoseconds: time.tv_nsec }
    }
}

impl Time {
    /// In nanoseconds.
    fn total(self) -> i128 {
        i128::from(self.seconds) * 1_000_000_000 + i128::from(self.nanoseconds)
    }
}

/// An extended attribute. ACLs and file capabilities are ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Xattr {
    /// `user.comment`, `system.posix_acl_access`, …
    #[serde(with = "ferry_transport::wire::byte_array")]
    pub name: Vec<u8>,
    /// Its value.
    #[serde(with = "ferry_transport::wire::byte_array")]
    pub value: Vec<u8>,
}

/// What an entry has beside its kind and content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits, set-id bits and the sticky bit.
    pub mode: u32,
    /// Owner, as a number of the initial user namespace.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of its content.
    pub mtime: Time,
    /// Last read, as far as it was known; not compared.
    pub atime: Time,
    /// Sorted by name.
    pub xattrs: Vec<Xattr>,
}

/// Which file system object a name stands for: two names with one object are hard
/// links. A number may be given again after its object is gone; the time of birth,
/// where the file system keeps it, tells them apart, and where it does not, the
/// change time does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    device: (u32, u32),
    inode: u64,
    born: Time,
}

impl ObjectKey {
    /// Its number in its file system.
    pub(super) fn inode(&self) -> u64 {
        self.inode
    }
}

/// What `statx` says of an entry: if it is the same again, and was looked at long
/// enough after the last change, the entry is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Which object.
    pub key: ObjectKey,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of a device.
    pub device: Device,
    /// In bytes.
    pub size: u64,
    /// Names.
    pub links: u32,
    /// Change of content.
    pub mtime: Time,
    /// Any change.
    pub ctime: Time,
}

/// Two changes within one tick of the kernel's clock may leave the same time, which is
/// at most 10 ms long; twice that to be safe.
const TICK: i128 = 20_000_000;

impl Stamp {
    /// What a `statx` said. Directories have the size zero: theirs says nothing.
    pub fn of(stat: &Statx) -> Stamp {
        let mode = u32::from(stat.stx_mode);
        Stamp {
            key: ObjectKey {
                device: (stat.stx_dev_major, stat.stx_dev_minor),
                inode: stat.stx_ino,
                born: stat.stx_btime.into(),
            },
            mode,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            device: Device { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor },
            size: if mode & libc::S_IFMT == libc::S_IFDIR { 0 } else { stat.stx_size },
            links: stat.stx_nlink,
            mtime: stat.stx_mtime.into(),
            ctime: stat.stx_ctime.into(),
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.is(libc::S_IFDIR)
    }

    /// Whether it is a file with content.
    pub fn is_file(&self) -> bool {
        self.is(libc::S_IFREG)
    }

    /// Whether both are of one type.
    pub fn same_type(&self, other: &Stamp) -> bool {
        (self.mode ^ other.mode) & libc::S_IFMT == 0
    }

    fn is(&self, kind: u32) -> bool {
        self.mode & libc::S_IFMT == kind
    }

    /// Whether a change after `now`, when it was read, must show in the times.
    pub fn is_settled(&self, now: Time) -> bool {
        now.total() - self.ctime.total() > TICK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_just_now_may_change_again_unseen() {
        let at = |seconds, nanoseconds| Time { seconds, nanoseconds };
        let key = ObjectKey { device: (0, 1), inode: 1, born: Time::default() };
        let device = Device { major: 0, minor: 0 };
        let stamp = Stamp {
            key,
            mode: libc::S_IFREG | 0o644,
            uid: 0,
            gid: 0,
            device,
            size: 1,
            links: 1,
            mtime: at(0, 0),
            ctime: at(100, 990_000_000),
        };
        assert!(!stamp.is_settled(at(101, 0)));
        assert!(!stamp.is_settled(at(99, 0)), "a clock that was set back proves nothing");
        assert!(stamp.is_settled(at(101, 20_000_000)));
        assert!(stamp.is_file() && !stamp.is_directory());
    }
}
