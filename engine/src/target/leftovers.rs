//! Removing a directory in which somebody else may have mounted something.
//!
//! A CRIU that is killed while it restores cgroups leaves mounts of whole cgroup
//! hierarchies below its work directory, and a runtime that is killed one of the
//! container's root below its own. To remove such a directory with all that is below
//! it would be to remove what is mounted there: the host's cgroups, the container's
//! files.

use crate::check::proc::mounts;
use nix::mount::{MntFlags, umount2};
use std::io;
use std::path::Path;

/// More mounts than this below one directory are not looked at.
const MAX_MOUNTS: usize = 4096;

/// Detaches whatever is mounted below a directory, or on it, in this mount namespace.
///
/// # Errors
/// The first that cannot be detached.
pub fn detach_below(directory: &Path) -> io::Result<()> {
    let Ok(directory) = directory.canonicalize() else { return Ok(()) };
    let mut points: Vec<String> = mounts::of(std::process::id() as i32)
        .into_iter()
        .map(|mount| unescaped(&mount.point))
        .filter(|point| Path::new(point).starts_with(&directory))
        .take(MAX_MOUNTS)
        .collect();
    // What was mounted last, and lies deepest, first.
    points.reverse();
    points.sort_by_key(|point| std::cmp::Reverse(Path::new(point).components().count()));
    for point in points {
        match umount2(Path::new(&point), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Somebody else was faster.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(errno) => {
                return Err(io::Error::new(io::Error::from(errno).kind(), format!("{point}: {errno}")));
            }
        }
    }
    Ok(())
}

/// Removes a directory and what is in it, but nothing that is mounted there.
///
/// # Errors
/// A mount that cannot be detached, and then the directory stays; or what of it
/// cannot be removed.
pub fn remove_directory(directory: &Path) -> io::Result<()> {
    detach_below(directory)?;
    std::fs::remove_dir_all(directory)
}

/// The kernel writes blanks and the like of a path as three octal digits.
fn unescaped(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(value.unwrap_or(*first));
        rest = &tail[if value.is_some() { 3 } else { 0 }..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MsFlags, mount};

    #[test]
    fn blanks_in_paths_are_read() {
        assert_eq!(unescaped(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescaped(r"/a\9"), r"/a\9");
        assert_eq!(unescaped(r"\"), r"\");
    }

    #[test]
    fn what_is_mounted_below_is_not_removed() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let kept = tempfile::tempdir().unwrap();
        std::fs::write(kept.path().join("file"), b"kept").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let point = directory.path().join("a b");
        std::fs::create_dir(&point).unwrap();
        for _ in 0..2 {
            mount(Some(kept.path()), &point, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        }
        remove_directory(directory.path()).unwrap();
        assert!(!directory.path().exists());
        assert_eq!(std::fs::read(kept.path().join("file")).unwrap(), b"kept");
    }
}
