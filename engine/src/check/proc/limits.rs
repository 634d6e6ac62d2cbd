//! `/proc/PID/limits`.

use std::collections::BTreeMap;

/// Hard limits by name (`Max open files`); `u64::MAX` for unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HardLimits(pub BTreeMap<String, u64>);

/// The columns' places; names hold spaces.
const SOFT: usize = 26;

impl HardLimits {
    /// Reads those of a process (or of `self`); none when it is gone.
    pub fn of(pid: &str) -> HardLimits {
        HardLimits::parse(&super::read(format!("/proc/{pid}/limits"), 16 << 10).unwrap_or_default())
    }

    /// Parses the file.
    pub fn parse(text: &str) -> HardLimits {
        let line = |line: &str| {
            let (name, values) = line.split_at_checked(SOFT)?;
            let hard = match values.split_ascii_whitespace().nth(1)? {
                "unlimited" => u64::MAX,
                number => number.parse().ok()?,
            };
            Some((name.trim_end().to_owned(), hard))
        };
        HardLimits(text.lines().skip(1).filter_map(line).collect())
    }

    /// Which of these are above ours: name, theirs, ours.
    pub fn above<'a>(
        &self,
        theirs: impl IntoIterator<Item = (&'a String, u64)>,
    ) -> Vec<(&'a String, u64, u64)> {
        let theirs = theirs.into_iter();
        let pairs = theirs.filter_map(|(name, hard)| Some((name, hard, *self.0.get(name)?)));
        pairs.filter(|(_, theirs, ours)| theirs > ours).collect()
    }
}

/// `u64::MAX` is unlimited.
pub fn shown(hard: u64) -> String {
    if hard == u64::MAX { "unlimited".into() } else { hard.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn our_own_are_read() {
        let own = HardLimits::of("self");
        let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(own.0["Max open files"], hard);
        assert!(own.0.len() >= 15, "{own:?}");
    }

    #[test]
    fn only_higher_ones_are_above() {
        let limits = |hard: u64| {
            HardLimits::parse(&format!("Limit\n{:26}{:<21}{hard:<21}files\n", "Max open files", 1))
        };
        let theirs = limits(20_000);
        let above = |own: HardLimits| own.above(theirs.0.iter().map(|(name, hard)| (name, *hard))).len();
        assert_eq!([above(limits(19_999)), above(limits(20_000)), above(HardLimits::default())], [1, 0, 0]);
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "(.{0,60}\n){0,4}") {
            let _ = HardLimits::parse(&text);
        }
    }
}
