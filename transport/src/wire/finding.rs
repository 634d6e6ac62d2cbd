//! What a pre-flight finds, as both hosts tell it each other and the user.

use crate::plain::Plain;
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

/// Whether the operator said `--force`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forced {
    /// Yes.
    Yes,
    /// No.
    No,
}

/// What a finding is about. Externally tagged, since the wire's format cannot look ahead for
/// a tag; in JSON `"host"`, `{"descriptor": {"fd": 3, "link": "…"}}`, and so on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
    /// The host that says it.
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

    /// Every text shortened.
    pub(super) fn shortened(&self, short: impl Fn(&String) -> String) -> Finding {
        let subject = match self.subject.clone() {
            Subject::Descriptor { fd, link } => Subject::Descriptor { fd, link: short(&link) },
            Subject::Mapping { start, end, name } => Subject::Mapping { start, end, name: short(&name) },
            Subject::Mount { path } => Subject::Mount { path: short(&path) },
            Subject::Namespace { of } => Subject::Namespace { of: short(&of) },
            Subject::File { path } => Subject::File { path: short(&path) },
            same @ (Subject::Process | Subject::Thread { .. } | Subject::Host) => same,
        };
        Finding {
            subject,
            comm: short(&self.comm),
            what: short(&self.what),
            advice: short(&self.advice),
            ..self.clone()
        }
    }
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
            write!(f, "process {pid} ({}): ", Plain(&self.comm))?;
        }
        match &self.subject {
            Subject::Descriptor { fd, link } => write!(f, "fd {fd} -> {}: ", Plain(link))?,
            Subject::Mapping { start, end, name } => {
                write!(f, "mapping {start:x}-{end:x} {}: ", Plain(name))?
            }
            Subject::Mount { path } => write!(f, "mount {}: ", Plain(path))?,
            Subject::Namespace { of } => write!(f, "{} namespace: ", Plain(of))?,
            Subject::File { path } => write!(f, "{}: ", Plain(path))?,
            Subject::Thread { tid } => write!(f, "thread {tid}: ")?,
            Subject::Process | Subject::Host => {}
        }
        write!(f, "{}", Plain(&self.what))?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, " — {}", Plain(&self.advice)) }
    }
}

/// The findings of one host, the worst first, and no more than a message may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// The most findings of one host; of more, the least bad are left out.
    pub const MOST: usize = 256;

    /// Sorts and counts them.
    pub fn new(mut all: Vec<Finding>) -> Findings {
        all.sort_by_key(|finding| std::cmp::Reverse((finding.severity, finding.force == Force::Final)));
        if all.len() > Findings::MOST {
            let left_out = all.split_off(Findings::MOST - 1);
            let what = format!("{} more findings, none worse than these, are left out", left_out.len());
            // As bad as the worst that it stands for.
            all.push(Finding::host(left_out[0].severity, left_out[0].force, what, ""));
        }
        Findings(all)
    }

    /// Them all, the worst first.
    pub fn all(&self) -> &[Finding] {
        &self.0
    }

    /// Those that stop a migration.
    pub fn stopping(&self, forced: Forced) -> impl Iterator<Item = &Finding> {
        self.0.iter().filter(move |finding| finding.stops(forced))
    }

    /// Whether any stops it.
    pub fn stop(&self, forced: Forced) -> bool {
        self.stopping(forced).next().is_some()
    }

    pub(super) fn shortened(&self, most: usize, short: impl Fn(&String) -> String) -> Findings {
        Findings(self.0.iter().take(most).map(|finding| finding.shortened(&short)).collect())
    }
}

impl fmt::Display for Findings {
    /// Blocking ones of a refusal, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, finding) in self.0.iter().filter(|f| f.severity == Severity::Blocks).enumerate() {
            write!(f, "{}{finding}", if n == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, force: Force) -> Finding {
        Finding::host(severity, force, "what", "advice")
    }

    #[test]
    fn force_overrides_what_is_not_final() {
        let notes = finding(Severity::Risks, Force::Final);
        let overridable = finding(Severity::Blocks, Force::Overridable);
        let last = finding(Severity::Blocks, Force::Final);
        let stops = |forced| [&notes, &overridable, &last].map(|finding| finding.stops(forced));
        assert_eq!(stops(Forced::No), [false, true, true]);
        assert_eq!(stops(Forced::Yes), [false, false, true]);
    }

    #[test]
    fn the_worst_come_first_and_the_rest_is_counted() {
        let mut all = vec![finding(Severity::Notes, Force::Overridable); 400];
        all.push(finding(Severity::Blocks, Force::Final));
        let findings = Findings::new(all);
        assert_eq!(findings.all().len(), Findings::MOST);
        assert_eq!(findings.all()[0].severity, Severity::Blocks);
        let last = findings.all().last().unwrap();
        assert!(last.what.starts_with("146 more"), "{last}");
        assert_eq!(last.severity, Severity::Notes);
        assert!(findings.stop(Forced::Yes));
    }

    #[test]
    fn nothing_in_it_steers_a_terminal() {
        let mut evil = finding(Severity::Risks, Force::Overridable);
        evil.subject = Subject::File { path: "/a\x1b[2Jb\n".into() };
        let text = evil.to_string();
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.contains("/a\\u{1b}[2Jb\\n"), "{text}");
    }

    #[test]
    fn its_json_names_the_kind_of_subject() {
        let mut one = finding(Severity::Blocks, Force::Overridable);
        one.subject = Subject::Descriptor { fd: 3, link: "pipe:[1]".into() };
        let json = serde_json::to_value(&one).unwrap();
        assert_eq!(json["severity"], "blocks");
        assert_eq!(json["subject"]["descriptor"]["fd"], 3);
        assert_eq!(serde_json::from_value::<Finding>(json).unwrap(), one);
    }
}
