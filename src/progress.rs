//! How a migration is watched: a bar on a terminal, a line a round elsewhere.

use ferry_engine::report::RoundReport;
use ferry_engine::source::state::SourceState;
use ferry_engine::source::{Observer, Progress};
use ferry_transport::plain::Plain;
use ferry_transport::units::{ByteRate, Bytes};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// Watches on standard error.
pub struct Watch {
    bar: Option<ProgressBar>,
}

impl Watch {
    /// A bar where standard error is a terminal.
    pub fn new() -> Watch {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {bytes}/{total_bytes} {msg}")
            {
                bar.set_style(style.progress_chars("█▉ "));
            }
            bar
        });
        Watch { bar }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

impl Observer for Watch {
    fn state(&self, state: &SourceState) {
        if let Some(bar) = &self.bar {
            match state {
                SourceState::PreCopy { round } => bar.set_prefix(format!("round {}", round.0)),
                other => bar.set_prefix(other.name().to_owned()),
            }
            if state.is_end() {
                bar.finish_and_clear();
            }
        }
    }

    fn progress(&self, progress: &Progress) {
        let Some(bar) = &self.bar else { return };
        bar.set_length(progress.expected.0.max(progress.sent.0));
        bar.set_position(progress.sent.0);
        let mut message = progress.bandwidth.to_string();
        if let Some(rate) = progress.dirty_rate {
            message += &format!(", dirtied at {rate}");
        }
        if let Some(predicted) = progress.predicted {
            message += &format!(", downtime would be {} ms", predicted.as_millis());
        }
        bar.set_message(message);
    }

    fn round(&self, round: &RoundReport) {
        self.say(&format!(
            "round {}: {:.0} ms, {} dirty, {} sent at {}, dirtied at {}; {}: {}",
            round.n,
            round.duration_ms,
            Bytes(round.dirty_pages * 4096),
            Bytes(round.wire_bytes),
            ByteRate(round.bandwidth_bytes_per_s),
            ByteRate(round.dirty_rate_bytes_per_s),
            round.decision,
            round.reason
        ));
    }

    fn note(&self, note: &str) {
        self.say(&format!("note: {}", Plain(note)));
    }
}
