//! What a CRIU says about itself and about the kernel it runs on.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// CRIU's version, ordered as its releases are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// `4` of 4.2.1.
    pub major: u32,
    /// `2` of 4.2.1.
    pub minor: u32,
    /// `1` of 4.2.1; 0 where there is none.
    pub patch: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl std::str::FromStr for Version {
    type Err = io::Error;
    fn from_str(text: &str) -> Result<Version, io::Error> {
        let unreadable =
            || io::Error::new(io::ErrorKind::InvalidData, format!("`{text}` is not a version of CRIU"));
        let mut parts = text.trim().splitn(3, '.');
        let mut part = || parts.next().map(leading_number);
        let (major, minor) = (part().flatten(), part().flatten());
        let patch = part().flatten().unwrap_or(0);
        Ok(Version { major: major.ok_or_else(unreadable)?, minor: minor.ok_or_else(unreadable)?, patch })
    }
}

/// `1-rc2` → 1.
fn leading_number(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..digits].parse().ok()
}

/// Asks a CRIU for its version.
///
/// # Errors
/// It cannot be started, fails, or says something else.
pub fn version(criu: &Path) -> io::Result<Version> {
    let output = Command::new(criu).arg("--version").stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("{}: {}", output.status, last_line(&said))));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let said = text.lines().find_map(|line| line.strip_prefix("Version:"));
    said.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it does not tell its version"))?.parse()
}

/// Something that CRIU needs of the kernel, as `criu check --feature` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Soft-dirty page tracking: the `criu` tracker of memory.
    MemoryTracking,
    /// userfaultfd with events: lazy restore.
    LazyPages,
    /// The network lock that ferry uses.
    NftablesLock,
    /// glibc ≥ 2.35 registers restartable sequences; dumping them needs this.
    RestartableSequences,
    /// Choosing PIDs of restored threads at their creation.
    SetTid,
}

impl Feature {
    /// CRIU's name.
    pub fn name(self) -> &'static str {
        match self {
            Feature::MemoryTracking => "mem_dirty_track",
            Feature::LazyPages => "uffd-noncoop",
            Feature::NftablesLock => "network_lock_nftables",
            Feature::RestartableSequences => "get_rseq_conf",
            Feature::SetTid => "clone3_set_tid",
        }
    }
}

/// Whether a feature is there.
///
/// # Errors
/// CRIU cannot be started.
pub fn has(criu: &Path, feature: Feature) -> io::Result<bool> {
    let status = Command::new(criu)
        .args(["check", "--feature", feature.name()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(status.success())
}

/// `criu check`: whether it could work here at all.
///
/// # Errors
/// What CRIU complains about.
pub fn check(criu: &Path) -> io::Result<()> {
    let output = Command::new(criu).arg("check").stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("Error (")).take(3).collect();
    let what = if errors.is_empty() { last_line(&said).to_owned() } else { errors.join("; ") };
    Err(io::Error::other(format!("`criu check` failed ({}): {what}", output.status)))
}

fn last_line(text: &str) -> &str {
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_released() {
        let parse = |text: &str| text.parse::<Version>().unwrap();
        assert_eq!(parse(" 4.2.1"), Version { major: 4, minor: 2, patch: 1 });
        assert_eq!(parse("4.2-rc1"), Version { major: 4, minor: 2, patch: 0 });
        assert!(parse("3.17.1") < parse("4.2"));
        assert!("four".parse::<Version>().is_err());
        assert!("".parse::<Version>().is_err());
        assert!("99999999999.1".parse::<Version>().is_err());
    }
}
