//! The report for people.

use super::{DowntimeReport, PredictionReport, Report, ReportOutcome};
use ferry_transport::plain::Plain;
use ferry_transport::units::{ByteRate, Bytes};
use std::fmt::Write;

/// The whole report as lines for a terminal.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let headline = match report.outcome {
        ReportOutcome::Completed => "moved",
        ReportOutcome::Aborted => "NOT MOVED",
        ReportOutcome::InDoubt => "IN DOUBT",
    };
    let _ = writeln!(out, "{headline}: {} → {}", report.target, report.to);
    let _ = writeln!(out, "  workload   {}", report.workload);
    if let Some(cause) = &report.cause {
        let _ = writeln!(out, "  cause      {}", Plain(cause));
    }
    if !report.rounds.is_empty() {
        let _ = writeln!(
            out,
            "  round    duration        dirty         sent    bandwidth   dirty rate  predicted"
        );
    }
    for round in &report.rounds {
        let predicted = round.predicted_downtime_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.0} ms"));
        let _ = writeln!(
            out,
            "  {:>5}  {:>7.0} ms  {:>11}  {:>11}  {:>11}  {:>11}  {predicted:>9}",
            round.n,
            round.duration_ms,
            Bytes(round.dirty_pages * 4096).to_string(),
            Bytes(round.wire_bytes).to_string(),
            ByteRate(round.bandwidth_bytes_per_s).to_string(),
            ByteRate(round.dirty_rate_bytes_per_s).to_string(),
        );
    }
    if let Some(last) = report.rounds.last() {
        let _ = writeln!(out, "  frozen     because {}", last.reason);
    }
    if let (Some(total), Some(parts)) = (report.downtime_ms, &report.downtime) {
        let _ = writeln!(out, "  downtime   {total:.1} ms = {}", sum(parts));
        if let (Some(predicted), Some(prediction)) = (report.predicted_downtime_ms, &report.prediction) {
            let _ = writeln!(out, "  predicted  {predicted:.1} ms = {}", sum(&prediction.parts));
            if prediction.lessons > 0 {
                let PredictionReport { learned_ms, lessons, .. } = prediction;
                let _ = writeln!(
                    out,
                    "             of this {learned_ms:+.1} ms learned from {lessons} earlier moves there"
                );
            }
        }
    }
    if let Some(brownout) = report.brownout_ms {
        let _ = writeln!(out, "  brownout   {brownout:.0} ms until every page was handed over");
    }
    if let Some(files) = &report.files {
        let last = files.final_ms.map_or_else(String::new, |ms| {
            format!(", {} of it in the freeze, in {ms:.1} ms", Bytes(files.final_bytes))
        });
        let _ = writeln!(out, "  files      {} in {} rounds{last}", Bytes(files.bytes), files.rounds);
    }
    if let Some(client) = &report.client {
        let _ = writeln!(
            out,
            "  client     longest gap {:.1} ms over {} replies, {} lost or repeated",
            client.longest_gap_ms, client.operations, client.lost
        );
    }
    let _ = writeln!(
        out,
        "  total      {:.2} s, {} of memory, {} on the wire",
        report.total_ms / 1000.0,
        Bytes(report.memory_bytes),
        Bytes(report.wire_bytes)
    );
    for note in &report.notes {
        let _ = writeln!(out, "  note       {}", Plain(note));
    }
    out
}

fn sum(parts: &DowntimeReport) -> String {
    let parts: Vec<String> = parts.parts().iter().map(|(name, ms)| format!("{name} {ms:.1}")).collect();
    parts.join(" + ")
}
