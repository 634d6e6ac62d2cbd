//! What earlier moves to a destination cost beyond the forecast: it corrects the next.
//!
//! `<state>/experience.json` keeps for each destination by how much first principles
//! missed each part of the last downtimes there. The correction of a part is their
//! median, so that one move on a busy host changes little. What cannot be read is no
//! experience: a forecast is then what first principles say.

use crate::report::DowntimeReport;
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const SCHEMA: u32 = 1;
/// Moves that are remembered of a destination: enough for a median.
const LESSONS: usize = 9;
/// Destinations that are remembered: the last ones.
const DESTINATIONS: usize = 64;
/// More than the most that is ever written.
const MAX_FILE: u64 = 1 << 20;
/// A part is corrected by at most this, either way, in milliseconds.
const BOUND: f64 = 250.0;

/// All of it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Book {
    schema: u32,
    /// The one that was moved to last comes last.
    destinations: Vec<Destination>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Destination {
    /// As typed.
    to: String,
    /// The newest last.
    missed: Vec<DowntimeReport>,
}

/// What experience adds to each part of a forecast, and how many moves it comes from.
pub(super) fn of(state: &Path, to: &str) -> (DowntimeReport, usize) {
    let book = read(state).unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(%error, "earlier moves do not correct the prediction");
        }
        Book::default()
    });
    let missed = book.destinations.into_iter().find(|known| known.to == to).map_or(Vec::new(), |d| d.missed);
    let newest = &missed[missed.len().saturating_sub(LESSONS)..];
    (median(newest), newest.len())
}

/// Remembers by how much first principles missed.
pub(super) fn learn(state: &Path, to: &str, missed: DowntimeReport) -> io::Result<()> {
    // Whatever keeps the old from being read is ended by writing anew.
    let mut book = read(state).unwrap_or_default();
    let known = book.destinations.iter().position(|known| known.to == to);
    let mut destination = match known {
        Some(at) => book.destinations.remove(at),
        None => Destination { to: to.to_owned(), missed: Vec::new() },
    };
    destination.missed.push(missed);
    keep_newest(&mut destination.missed, LESSONS);
    book.destinations.push(destination);
    keep_newest(&mut book.destinations, DESTINATIONS);
    book.schema = SCHEMA;
    let mut draft = tempfile::NamedTempFile::new_in(state)?;
    serde_json::to_writer(&mut draft, &book)?;
    draft.persist(path(state))?;
    Ok(())
}

fn path(state: &Path) -> PathBuf {
    state.join("experience.json")
}

fn read(state: &Path) -> io::Result<Book> {
    let mut text = Vec::new();
    std::fs::File::open(path(state))?.take(MAX_FILE).read_to_end(&mut text)?;
    let book: Book = serde_json::from_slice(&text)?;
    if book.schema != SCHEMA {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "experience of another version"));
    }
    Ok(book)
}

fn keep_newest<T>(list: &mut Vec<T>, most: usize) {
    list.drain(..list.len().saturating_sub(most));
}

/// Of each part, within the bound; nothing of nothing.
fn median(missed: &[DowntimeReport]) -> DowntimeReport {
    let mut values: Vec<[f64; 8]> = missed.iter().map(DowntimeReport::values).collect();
    if values.is_empty() {
        return DowntimeReport::default();
    }
    DowntimeReport::from_values(std::array::from_fn(|part| {
        values.sort_by(|a, b| a[part].total_cmp(&b[part]));
        // Of an even number the lower of the two in the middle: a busy host only ever adds.
        values[(values.len() - 1) / 2][part].clamp(-BOUND, BOUND)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(dump_ms: f64) -> DowntimeReport {
        DowntimeReport { dump_ms, ..DowntimeReport::default() }
    }

    #[test]
    fn the_median_of_the_last_moves_corrects_and_one_bad_move_does_not() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(of(state.path(), "there"), (DowntimeReport::default(), 0));
        for missed in [10.0, 12.0, 9000.0] {
            learn(state.path(), "there", dump(missed)).unwrap();
        }
        assert_eq!(of(state.path(), "there"), (dump(12.0), 3));
        assert_eq!(of(state.path(), "elsewhere").1, 0);
        for _ in 0..LESSONS {
            learn(state.path(), "there", dump(-9000.0)).unwrap();
        }
        assert_eq!(of(state.path(), "there"), (dump(-BOUND), LESSONS), "what is old is forgotten");
    }

    #[test]
    fn the_file_stays_small() {
        let state = tempfile::tempdir().unwrap();
        for n in 0..DESTINATIONS + 6 {
            learn(state.path(), &format!("host-{n}"), dump(n as f64)).unwrap();
        }
        assert_eq!(of(state.path(), "host-5").1, 0);
        assert_eq!(of(state.path(), "host-6").1, 1);
        assert_eq!(read(state.path()).unwrap().destinations.len(), DESTINATIONS);
    }

    #[test]
    fn what_cannot_be_read_is_no_experience_and_is_replaced() {
        let state = tempfile::tempdir().unwrap();
        let truths = [
            "",
            "{",
            "[]",
            r#"{"schema":2,"destinations":[]}"#,
            r#"{"schema":1,"destinations":[{"to":"there","missed":[{"dump_ms":1e999}]}]}"#,
        ];
        for text in truths {
            std::fs::write(path(state.path()), text).unwrap();
            assert_eq!(of(state.path(), "there").1, 0, "{text}");
            learn(state.path(), "there", dump(1.0)).unwrap();
            assert_eq!(of(state.path(), "there"), (dump(1.0), 1), "{text}");
        }
    }

    #[test]
    fn numbers_beyond_reason_are_bounded() {
        let missed = [dump(1e300), dump(f64::NAN), dump(f64::INFINITY)];
        assert_eq!(median(&missed).dump_ms, BOUND);
    }
}
