//! A container's standard input and output, which lead out of it.

use crate::criu::proto::Fd;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

const OUTPUT: &str = "ferry-output.log";

/// One of the three.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stream {
    /// Closed, or something of the container's own (its `/dev/null`): CRIU's to see to.
    Own,
    /// A pipe, whose other end is at the source's host.
    Pipe,
    /// A file of the host, outside the container's mounts.
    HostFile {
        /// As the host names it.
        path: PathBuf,
        /// How CRIU names it.
        key: String,
    },
}

/// What the first three descriptors of a process are.
pub(super) fn of(init: i32) -> io::Result<[Stream; 3]> {
    let mounts = std::fs::read_to_string(format!("/proc/{init}/mountinfo"))?;
    let inside = |mount: u32| {
        mounts.lines().any(|line| line.split(' ').next().and_then(|id| id.parse().ok()) == Some(mount))
    };
    let stream = |number: i32| -> io::Result<Stream> {
        let path = format!("/proc/{init}/fd/{number}");
        let link = match std::fs::read_link(&path) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stream::Own),
            Err(error) => return Err(error),
        };
        if link.to_string_lossy().starts_with("pipe:[") {
            return Ok(Stream::Pipe);
        }
        let about = std::fs::metadata(&path)?;
        let info = std::fs::read_to_string(format!("/proc/{init}/fdinfo/{number}"))?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        Ok(match mount {
            Some(mount) if about.is_file() && !inside(mount) => {
                Stream::HostFile { path: link, key: format!("file[{mount:x}:{:x}]", about.ino()) }
            }
            _ => Stream::Own,
        })
    };
    Ok([stream(0)?, stream(1)?, stream(2)?])
}

/// What CRIU is to leave out of a dump, each once.
pub(super) fn external(streams: &[Stream; 3]) -> Vec<String> {
    let mut keys: Vec<String> = streams.iter().filter_map(key).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// What a restore takes from the first three descriptors instead.
pub(super) fn inherited(streams: &[Stream; 3]) -> Vec<Fd> {
    let all = streams.iter().enumerate();
    all.filter_map(|(fd, stream)| Some(Fd { key: key(stream)?, fd: fd as i32 })).collect()
}

fn key(stream: &Stream) -> Option<String> {
    match stream {
        Stream::HostFile { key, .. } => Some(key.clone()),
        Stream::Own | Stream::Pipe => None,
    }
}

/// The three of a copy: the same files of this host, and for the other end of a pipe
/// nothing to read and a file beside the bundle to write to.
///
/// # Errors
/// The path that cannot be opened, and why.
pub(super) fn here(streams: &[Stream; 3], bundle: &Path) -> io::Result<[Stdio; 3]> {
    let writes_to = |stream: &Stream| match stream {
        Stream::Own => Ok(Stdio::null()),
        Stream::Pipe => append(&output(bundle)),
        Stream::HostFile { path, .. } => append(path),
    };
    let input = match &streams[0] {
        Stream::Own | Stream::Pipe => Stdio::null(),
        Stream::HostFile { path, .. } => open(OpenOptions::new().read(true), path)?,
    };
    Ok([input, writes_to(&streams[1])?, writes_to(&streams[2])?])
}

/// Where output goes whose pipe ended at the source's host.
pub(super) fn output(bundle: &Path) -> PathBuf {
    bundle.join(OUTPUT)
}

fn append(path: &Path) -> io::Result<Stdio> {
    open(OpenOptions::new().read(true).append(true).create(true).mode(0o600), path)
}

fn open(how: &OpenOptions, path: &Path) -> io::Result<Stdio> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    how.open(path).map(Stdio::from).map_err(named)
}
