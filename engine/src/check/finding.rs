//! What a pre-flight finds.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a finding means for the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Notes,
    /// It may fail, or something may be lost.
    Risks,
    /// It will fail.
    Blocks,
}

/// Whether `--force` may override a blocking finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Force {
    /// The operator may know better: what is lost may not matter, or the
    /// state may be gone by the freeze.
    Overridable,
    /// It cannot succeed.
    Final,
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Subject {
    /// The process itself.
    Process,
    /// One thread.
    Thread {
        /// Its number on this host.
        tid: i32,
    },
    /// An open descriptor.
    Descriptor {
        /// Its number in the process.
        fd: i32,
        /// What it refers to, as the kernel prints it.
        link: String,
    },
    /// A mapping.
    Mapping {
        /// First address.
        start: u64,
        /// First address behind it.
        end: u64,
        /// What is mapped.
        name: String,
    },
    /// A mount.
    Mount {
        /// Where.
        path: String,
    },
    /// A namespace.
    Namespace {
        /// `pid`, `net`, `mnt`, …
        of: String,
    },
    /// A file.
    File {
        /// Its path in the workload's mount namespace.
        path: String,
    },
    /// A host, this one or the destination.
    Host,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Whose, where it is a process's.
    pub pid: Option<i32>,
    /// That process's name.
    pub comm: String,
    /// What it is about.
    pub subject: Subject,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub advice: String,
    /// Whether it may be overridden.
    pub force: Force,
}

impl Finding {
    /// A finding about a host.
    pub fn host(
        severity: Severity,
        force: Force,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Finding {
        Finding {
            severity,
            pid: None,
            comm: String::new(),
            subject: Subject::Host,
            what: what.into(),
            advice: advice.into(),
            force,
        }
    }

    /// Whether it stops a migration that is, or is not, forced.
    pub fn stops(&self, forced: Forced) -> bool {
        self.severity == Severity::Blocks && !(forced == Forced::Yes && self.force == Force::Overridable)
    }
}

/// Whether the operator said `--force`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// Yes.
    Yes,
    /// No.
    No,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Notes => "note",
            Severity::Risks => "risk",
            Severity::Blocks => "blocks",
        };
        write!(f, "{severity}: ")?;
        if let Some(pid) = self.pid {
            write!(f, "process {pid} ({}): ", self.comm)?;
        }
        match &self.subject {
            Subject::Descriptor { fd, link } => write!(f, "fd {fd} -> {link}: ")?,
            Subject::Mapping { start, end, name } => write!(f, "mapping {start:x}-{end:x} {name}: ")?,
            Subject::Mount { path } => write!(f, "mount {path}: ")?,
            Subject::Namespace { of } => write!(f, "{of} namespace: ")?,
            Subject::File { path } => write!(f, "{path}: ")?,
            Subject::Thread { tid } => write!(f, "thread {tid}: ")?,
            Subject::Process | Subject::Host => {}
        }
        write!(f, "{}", self.what)?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, " — {}", self.advice) }
    }
}
