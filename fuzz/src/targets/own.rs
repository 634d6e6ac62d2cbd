//! What ferry wrote itself, or a person typed: journals, addresses.

use ferry_engine::destination::recovery as there;
use ferry_engine::journal::{DestinationRecord, Record, Side, SourceRecord, TaskId, parse};
use ferry_engine::source::recovery as here;

/// A journal's content, of either side, and what it proves. The checksums are
/// mended, so that records are reached.
pub fn journal(input: &[u8]) {
    conclude(input);
    let mended = input.split(|byte| *byte == b'\n').filter(|line| line.len() > CHECKSUM).map(|line| {
        let record = &line[CHECKSUM..];
        [format!("{:08x} ", crc32fast::hash(record)).as_bytes(), record, b"\n"].concat()
    });
    conclude(&mended.collect::<Vec<_>>().concat());
}

/// Eight digits and a space.
const CHECKSUM: usize = 9;

fn conclude(input: &[u8]) {
    for alive in [false, true] {
        let _ = here::conclude(&parse::<SourceRecord>(input), |_| alive);
        let standing = there::conclude(&parse::<DestinationRecord>(input), |_| alive);
        let _ = (
            there::answer(&standing),
            there::settlement(&standing, || there::ReleaseTrace::Silent, |_| alive),
        );
    }
}

pub(super) fn journal_seeds() -> Vec<Vec<u8>> {
    let engine = TaskId { pid: 1, start_time: 2, namespace: 0 };
    let tasks = vec![TaskId { pid: 3, start_time: 4, namespace: 0 }];
    let move_ip = Some("192.0.2.7/24@eth0".to_owned());
    let source = [
        SourceRecord::Started {
            target: "pid:3".into(),
            to: "there:4433".into(),
            engine,
            address: None,
            images: "/run/ferry".into(),
            aftercare: None,
        },
        SourceRecord::Freezing { tasks: tasks.clone(), stopped: tasks.clone() },
        SourceRecord::Holding { tasks: tasks.clone() },
        SourceRecord::Committing,
        SourceRecord::InDoubt { cause: "silence".into() },
        SourceRecord::Completed,
        SourceRecord::Aborted { cause: "given up".into() },
        SourceRecord::Resolved { runs: Side::Source },
    ];
    let destination = [
        DestinationRecord::Accepted { target: "pid:3".into(), from: "here".into(), engine, move_ip },
        DestinationRecord::TakingOver,
        DestinationRecord::Restoring { pids: vec![3] },
        DestinationRecord::Prepared { tasks },
        DestinationRecord::Committed,
        DestinationRecord::Released,
        DestinationRecord::InDoubt { cause: "CRIU is gone".into() },
        DestinationRecord::Resumed,
        DestinationRecord::Drained,
        DestinationRecord::Discarded { cause: "given up".into() },
        DestinationRecord::Resolved { runs: Side::Destination },
    ];
    vec![lines(&source), lines(&destination)]
}

fn lines(records: &[impl Record]) -> Vec<u8> {
    let line = |record| {
        let json = serde_json::json!({ "at": 1_764_000_000_123u64, "record": record }).to_string();
        format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
    };
    records.iter().map(line).collect::<String>().into_bytes()
}

/// `ADDR/LEN@IFACE`, as typed and as journaled.
pub fn address_move(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    if let Some(moved) = here::parse_address_move(text) {
        let again = format!("{}/{}@{}", moved.address, moved.prefix, moved.interface);
        assert_eq!(here::parse_address_move(&again), Some(moved));
    }
}

pub(super) fn address_seeds() -> Vec<Vec<u8>> {
    ["192.0.2.7/24@eth0", "2001:db8::7/64@bond0.100"].map(|text| text.as_bytes().to_vec()).to_vec()
}
