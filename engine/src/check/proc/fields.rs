//! `/proc/PID/stat`, and the "Name: value" files (`status`, `fdinfo`).

use std::str::FromStr;

/// What of `/proc/PID/stat` (proc_pid_stat(5)) matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The name.
    pub comm: String,
    /// R, S, D, T, t, Z, …
    pub state: char,
    /// The parent.
    pub parent: i32,
    /// The process group.
    pub group: i32,
    /// The session.
    pub session: i32,
    /// The controlling terminal's device number, 0 for none.
    pub terminal: i32,
    /// `PF_…` flags.
    pub flags: u64,
}

/// A kernel thread.
const PF_KTHREAD: u64 = 0x0020_0000;

impl Stat {
    /// Parses the file. The name may hold anything, closing brackets too.
    pub fn parse(text: &str) -> Option<Stat> {
        let (before, after) = text.rsplit_once(')')?;
        let comm = before.split_once('(')?.1.to_owned();
        let mut fields = after.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let mut number = || fields.next()?.parse::<i64>().ok();
        let (parent, group, session, terminal) = (number()?, number()?, number()?, number()?);
        number()?;
        Some(Stat {
            comm,
            state,
            parent: i32::try_from(parent).ok()?,
            group: i32::try_from(group).ok()?,
            session: i32::try_from(session).ok()?,
            terminal: terminal as i32,
            flags: number()? as u64,
        })
    }

    /// Reads it; `None` when the process or thread is gone.
    pub fn of(path: &str) -> Option<Stat> {
        Stat::parse(&super::read(path, 4096).ok()?)
    }

    /// Whether it is a kernel thread.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }
}

/// A "Name: value" file.
#[derive(Clone, Debug, Default)]
pub struct Fields(pub String);

impl Fields {
    /// Reads it; empty when it is gone.
    pub fn of(path: &str) -> Fields {
        Fields(super::read(path, 256 * 1024).unwrap_or_default())
    }

    /// The value's words.
    pub fn words<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_ascii_whitespace()
    }

    /// The value's first word, as a number.
    pub fn number<T: FromStr>(&self, name: &str) -> Option<T> {
        self.words(name).next()?.parse().ok()
    }

    /// The value's first word, a hexadecimal mask.
    pub fn mask(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.words(name).next()?, 16).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_with_brackets_and_spaces() {
        let stat = Stat::parse("12 (a) b (c)) S 1 2 3 34816 -1 4194560 0").unwrap();
        assert_eq!((stat.comm.as_str(), stat.state, stat.parent), ("a) b (c)", 'S', 1));
        assert_eq!((stat.group, stat.session, stat.terminal), (2, 3, 34816));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}", name in ".{0,5}") {
            let _ = Stat::parse(&text);
            let fields = Fields(text);
            let _ = (fields.number::<u64>(&name), fields.mask(&name), fields.words(&name).count());
        }
    }
}
