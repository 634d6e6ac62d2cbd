//! `/proc/PID/mountinfo`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number, unique on this host.
    pub id: u64,
    /// The file system's device, `major:minor`.
    pub device: String,
    /// Which directory of the file system is mounted.
    pub root: String,
    /// Where.
    pub point: String,
    /// The peer group that it shares mounts with.
    pub shared: Option<u64>,
    /// The peer group that it gets mounts from.
    pub master: Option<u64>,
    /// The file system's type.
    pub kind: String,
    /// The file system's own options.
    pub options: String,
}

impl Mount {
    /// Parses one line (proc_pid_mountinfo(5)).
    pub fn parse(line: &str) -> Option<Mount> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let id = fields.next()?.parse().ok()?;
        let (_parent, device, root, point) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let mut after = after.split(' ');
        let group = |name: &str| -> Option<u64> {
            before.split(' ').skip(6).find_map(|tag| tag.strip_prefix(name)?.parse().ok())
        };
        Some(Mount {
            id,
            device: device.to_owned(),
            root: root.to_owned(),
            point: point.to_owned(),
            shared: group("shared:"),
            master: group("master:"),
            kind: after.next()?.to_owned(),
            options: after.nth(1).unwrap_or_default().to_owned(),
        })
    }
}

/// The mounts that a process sees; none when it is gone. At most 16 MiB are read.
pub fn of(pid: i32) -> Vec<Mount> {
    let Ok(file) = File::open(format!("/proc/{pid}/mountinfo")) else { return Vec::new() };
    let lines = BufReader::new(file.take(16 << 20)).split(b'\n').map_while(Result::ok);
    lines.filter_map(|line| Mount::parse(&String::from_utf8_lossy(&line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn propagation_and_type_are_read() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime shared:7 master:1 - ext3 /dev/root rw";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.id, mount.shared, mount.master), (36, Some(7), Some(1)));
        assert_eq!(
            (mount.root.as_str(), mount.point.as_str(), mount.kind.as_str()),
            ("/mnt1", "/mnt2", "ext3")
        );
        assert!(of(std::process::id() as i32).iter().any(|mount| mount.point == "/"));
    }

    proptest! {
        #[test]
        fn arbitrary_lines_never_panic(line in ".{0,200}") {
            let _ = Mount::parse(&line);
        }
    }
}
