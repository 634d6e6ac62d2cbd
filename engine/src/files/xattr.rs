//! Extended attributes: read and written by name below `/proc/self/fd`, so that no
//! link is followed and devices, which cannot be opened, have theirs too.

use super::entry::Xattr;
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

/// The kernel's limits.
const MAX_LIST: usize = 64 << 10;
const MAX_VALUE: usize = 64 << 10;
/// The most bytes that all attributes of one entry may have here.
pub(super) const MAX_TOTAL: usize = 512 << 10;

/// Names of an overlay's attributes that hold handles of this host's file system:
/// they mean nothing elsewhere, and an overlay does without them.
const OF_THIS_HOST: [&[u8]; 2] = [b"trusted.overlay.origin", b"trusted.overlay.uuid"];

/// Where an entry's attributes are.
pub(super) fn place(directory: impl AsFd, name: &OsStr) -> OsString {
    let mut place = OsString::from(format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()));
    place.push(name);
    place
}

/// All attributes of an entry, sorted; none where the file system has none.
pub(super) fn read(place: &OsStr) -> io::Result<Vec<Xattr>> {
    let mut list = Vec::with_capacity(1024);
    match llistxattr(place, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => {}
        Err(Errno::RANGE) => {
            list.reserve(MAX_LIST);
            llistxattr(place, rustix::buffer::spare_capacity(&mut list))?;
        }
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let mut xattrs = Vec::new();
    let mut total = 0;
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if OF_THIS_HOST.contains(&name) {
            continue;
        }
        let mut value = Vec::with_capacity(256);
        let got = match lgetxattr(place, name, rustix::buffer::spare_capacity(&mut value)) {
            Err(Errno::RANGE) => {
                value.reserve(MAX_VALUE);
                lgetxattr(place, name, rustix::buffer::spare_capacity(&mut value))
            }
            other => other,
        };
        match got {
            Ok(_) => {}
            // Removed meanwhile.
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(error.into()),
        }
        total += name.len() + value.len();
        if total > MAX_TOTAL {
            return Err(io::Error::other(format!("more than {MAX_TOTAL} bytes of extended attributes")));
        }
        xattrs.push(Xattr { name: name.to_vec(), value });
    }
    xattrs.sort();
    Ok(xattrs)
}

/// Makes the attributes of an entry these, and no others.
pub(super) fn write(place: &OsStr, wanted: &[Xattr]) -> io::Result<()> {
    let present = read(place)?;
    if present == wanted {
        return Ok(());
    }
    let names: BTreeSet<&[u8]> = wanted.iter().map(|xattr| &xattr.name[..]).collect();
    for gone in present.iter().filter(|xattr| !names.contains(&xattr.name[..])) {
        // A security module gives what it gives.
        if !gone.name.starts_with(b"security.") {
            lremovexattr(place, &gone.name[..])?;
        }
    }
    for xattr in wanted.iter().filter(|xattr| !present.contains(xattr)) {
        match lsetxattr(place, &xattr.name[..], &xattr.value, XattrFlags::empty()) {
            Ok(()) => {}
            // Labels of a security module that is not at work here.
            Err(Errno::OPNOTSUPP | Errno::INVAL) if is_label(&xattr.name) => {}
            Err(error) => {
                let name = OsStr::from_bytes(&xattr.name).to_string_lossy().into_owned();
                return Err(io::Error::new(
                    io::Error::from(error).kind(),
                    format!("the extended attribute {name} cannot be set: {error}"),
                ));
            }
        }
    }
    Ok(())
}

/// File capabilities are security too, and are never left out.
fn is_label(name: &[u8]) -> bool {
    name.starts_with(b"security.") && name != b"security.capability"
}
