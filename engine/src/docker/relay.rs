//! Whether the CRIU that an engine starts is ferry's relay, and how it becomes so.
//!
//! runc looks for `criu` on the PATH that it has from containerd, at every checkpoint
//! and restore anew: nothing has to be restarted.

use super::api::Api;
use crate::sys::procfs::{numeric_entries, stat};
use crate::target::oci::relay::{RELAY_VERB, place_wrapper};
use nix::sys::socket::{getsockopt, sockopt};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The longest wrapper that is read.
const MAX_WRAPPER: u64 = 64 << 10;

/// What an engine starts as CRIU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayPlace {
    /// Ferry's relay.
    There,
    /// Another program.
    Elsewhere(PathBuf),
    /// Nothing.
    Missing,
    /// It cannot be told: why.
    Unknown(String),
}

/// Looks for it as runc would.
pub fn find(api: &Api) -> RelayPlace {
    let path = match search_path(api) {
        Ok(path) => path,
        Err(error) => return RelayPlace::Unknown(error.to_string()),
    };
    match path.into_iter().map(|directory| directory.join("criu")).find(|file| is_program(file)) {
        None => RelayPlace::Missing,
        Some(file) if is_relay(&file) => RelayPlace::There,
        Some(file) => RelayPlace::Elsewhere(file),
    }
}

/// Puts the relay where an engine looks for CRIU first, and says where. A CRIU of
/// somebody else's stays where it is.
///
/// # Errors
/// No place can be found or written, or the first one has a CRIU.
pub fn install(api: &Api, ferry: &Path, criu: &Path, registrations: &Path) -> io::Result<PathBuf> {
    let path = search_path(api)?;
    let first = path.iter().find(|directory| directory.is_dir());
    let first = first.ok_or_else(|| io::Error::other("the engine's PATH has no directory that is there"))?;
    let file = first.join("criu");
    if file.exists() && !is_relay(&file) {
        let what = format!(
            "{} is a CRIU of this host's own: move it to a later directory of the PATH",
            file.display()
        );
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    place_wrapper(first, ferry, criu, registrations)
}

/// The directories that the engine's runtimes look for programs in, as this process
/// reaches them.
fn search_path(api: &Api) -> io::Result<Vec<PathBuf>> {
    let containerd = containerd_of(api)?;
    let environment = fs::read(format!("/proc/{containerd}/environ"))?;
    let path = environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(b"PATH="));
    let path = path.ok_or_else(|| io::Error::other("containerd has no PATH"))?;
    let path = String::from_utf8_lossy(path).into_owned();
    // Where it sees the same files, they have their own names in messages.
    let same = fs::read_link(format!("/proc/{containerd}/ns/mnt"))? == fs::read_link("/proc/self/ns/mnt")?;
    let root = if same { PathBuf::from("/") } else { PathBuf::from(format!("/proc/{containerd}/root")) };
    Ok(path.split(':').filter(|part| part.starts_with('/')).map(|part| root.join(&part[1..])).collect())
}

/// The containerd of an engine: its child, or the one of the host.
fn containerd_of(api: &Api) -> io::Result<i32> {
    let engine = getsockopt(&UnixStream::connect(api.socket())?, sockopt::PeerCredentials)?.pid();
    let mut found = None;
    for pid in numeric_entries("/proc")? {
        let Ok(stat) = stat::of(pid) else { continue };
        if stat.name == "containerd" && (found.is_none() || stat.parent == engine) {
            found = Some(pid);
        }
    }
    found.ok_or_else(|| io::Error::other("no containerd is seen from here"))
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

fn is_relay(file: &Path) -> bool {
    let mut text = Vec::new();
    let read = fs::File::open(file).and_then(|file| file.take(MAX_WRAPPER).read_to_end(&mut text));
    read.is_ok()
        && text.starts_with(b"#!")
        && String::from_utf8_lossy(&text).contains(&format!(" {RELAY_VERB} "))
}
