//! Texts of others, for people to read.

use std::fmt;

/// A text that a peer, or the name of a file or a process, may have put anything
/// into: what would steer a terminal, or begin a line of its own, is shown escaped.
pub struct Plain<'a>(pub &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_shown_and_not_done() {
        assert_eq!(Plain("naïve – ok").to_string(), "naïve – ok");
        assert_eq!(Plain("a\u{1b}[2Jb\nc\u{9b}d").to_string(), "a\\u{1b}[2Jb\\nc\\u{9b}d");
    }
}
