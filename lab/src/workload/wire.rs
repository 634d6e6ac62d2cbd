//! The workload's protocol: fixed records of little-endian words over TCP.
//!
//! ```text
//! request  (16 bytes)  u64 command (0 = count, 1 = check all memory, 2 = pulse)
//!                      u64 sequence
//! reply    (80 bytes)  u64 sequence   as asked
//!                      u64 served     requests of this connection, this one included
//!                      u64 steps      pages written, all processes
//!                      u64 errors     pages found wrong, all processes
//!                      u64 verified   pages checked, all processes
//!                      u64 monotonic  nanoseconds of CLOCK_MONOTONIC at the reply
//!                      u64 checked    pages checked by this request (check only)
//!                      u64 processes  of the tree
//!                      u64 filled     processes that have filled their memory
//!                      u64 gap        nanoseconds that a process did not run, at most, since
//!                                     the last such request (pulse only)
//! ```

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// How things stand.
    Count {
        /// Comes back in the reply.
        sequence: u64,
    },
    /// The longest gap in the pulse of any process since this was last asked.
    Pulse {
        /// Comes back in the reply.
        sequence: u64,
    },
    /// Check all memory of all processes now, then answer.
    Check {
        /// Comes back in the reply.
        sequence: u64,
    },
}

impl Request {
    pub(super) fn read(from: &mut impl Read) -> io::Result<Request> {
        let [command, sequence] = read_words(from)?;
        match command {
            0 => Ok(Request::Count { sequence }),
            1 => Ok(Request::Check { sequence }),
            2 => Ok(Request::Pulse { sequence }),
            other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("unknown command {other}"))),
        }
    }

    pub(super) fn write(self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Request::Count { sequence } => write_words(to, [0, sequence]),
            Request::Check { sequence } => write_words(to, [1, sequence]),
            Request::Pulse { sequence } => write_words(to, [2, sequence]),
        }
    }
}

/// What the workload answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// As asked.
    pub sequence: u64,
    /// Requests served on this connection, this one included.
    pub served: u64,
    /// Pages written since the start, by all processes.
    pub steps: u64,
    /// Pages found wrong, by all processes.
    pub errors: u64,
    /// Pages checked since the start, by all processes.
    pub verified: u64,
    /// Nanoseconds of CLOCK_MONOTONIC at the reply, as the workload sees it.
    pub monotonic: u64,
    /// Pages checked by this request.
    pub checked: u64,
    /// Processes of the tree.
    pub processes: u64,
    /// Processes that have filled their memory.
    pub filled: u64,
    /// Nanoseconds of the longest gap since the last request for the pulse.
    pub gap: u64,
}

impl Reply {
    pub(super) fn read(from: &mut impl Read) -> io::Result<Reply> {
        let [sequence, served, steps, errors, verified, monotonic, checked, processes, filled, gap] =
            read_words(from)?;
        Ok(Reply { sequence, served, steps, errors, verified, monotonic, checked, processes, filled, gap })
    }

    pub(super) fn write(self, to: &mut impl Write) -> io::Result<()> {
        let Reply { sequence, served, steps, errors, verified, monotonic, checked, processes, filled, gap } =
            self;
        let words = [sequence, served, steps, errors, verified, monotonic, checked, processes, filled, gap];
        write_words(to, words)
    }
}

fn read_words<const N: usize>(from: &mut impl Read) -> io::Result<[u64; N]> {
    let mut words = [0u64; N];
    let mut bytes = [0u8; 128];
    let bytes = &mut bytes[..N * 8];
    from.read_exact(bytes)?;
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    Ok(words)
}

fn write_words<const N: usize>(to: &mut impl Write, words: [u64; N]) -> io::Result<()> {
    let mut bytes = [0u8; 128];
    for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *chunk = word.to_le_bytes();
    }
    to.write_all(&bytes[..N * 8])
}
