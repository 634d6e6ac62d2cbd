//! The seam to what comes along with a workload beside its memory: directories. A
//! source's driver lets a [`Companion`] do a round beside each round of the memory, and
//! the last difference while the tasks stand still; what it says travels as blobs, in
//! order, on a stream of its own, into a [`CompanionSink`] at the destination. Neither
//! the drivers nor the transport know what is in a blob.

use bytes::Bytes as Blob;
use ferry_transport::units::Bytes;
use std::time::Duration;

/// Why something does not come along.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CompanionError(String);

impl CompanionError {
    /// For this reason.
    pub fn new(what: impl Into<String>) -> CompanionError {
        CompanionError(what.into())
    }
}

/// Whoever took blobs takes no more: the link is gone.
#[derive(Debug)]
pub struct SinkGone;

/// Where blobs go, in order; waits while the network is slower.
pub trait BlobSink {
    /// Takes one blob, of at most [`MAX_BLOB`](ferry_transport::wire::blob::MAX_BLOB) bytes.
    fn put(&mut self, blob: Blob) -> Result<(), SinkGone>;
}

/// What one round did.
#[derive(Clone, Debug, Default)]
pub struct CompanionRound {
    /// Blobs that were put.
    pub blobs: u64,
    /// Their content.
    pub bytes: Bytes,
    /// Entries that were new or changed, or went.
    pub entries: u64,
    /// Content that was read to find out.
    pub read: Bytes,
    /// How long it took.
    pub took: Duration,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// What a freeze now would cost, estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    /// To look, and to read what has changed.
    pub cost: Duration,
    /// To be sent.
    pub send: Bytes,
}

/// Something that comes along, at the source. Blocking: it lives on a thread of its own.
/// A failure leaves what it is about as it is.
pub trait Companion: Send {
    /// What the destination needs to know beforehand: part of the offer.
    fn setup(&self) -> Vec<u8>;

    /// Sends what changed since the last round; the first time, everything.
    fn round(&mut self, sink: &mut dyn BlobSink) -> Result<CompanionRound, CompanionError>;

    /// What a freeze now would cost.
    fn peek(&mut self) -> Result<Forecast, CompanionError>;

    /// Every task stands still, and CRIU may be dumping: sends the last difference.
    fn finish(&mut self, sink: &mut dyn BlobSink) -> Result<CompanionRound, CompanionError>;

    /// The dump is complete: sends what it has itself added (names for files that are
    /// open without one), and what the whole is to be.
    fn seal(&mut self, sink: &mut dyn BlobSink) -> Result<CompanionRound, CompanionError>;
}

/// Something that comes along, at the destination. Blocking. Exactly one of `commit` and
/// `discard` is to be called; dropping it undecided is a bug that is logged and decides
/// nothing.
pub trait CompanionSink: Send {
    /// Takes the next blob. After an error nothing but `discard` makes sense.
    fn take(&mut self, blob: &[u8]) -> Result<(), CompanionError>;

    /// Everything has come: sees that it is what the source says, and puts it where the
    /// restore expects it. On failure everything is as it was before.
    fn ready(&mut self) -> Result<(), CompanionError>;

    /// The copy runs: what was there before goes, and the disk has it all when this returns.
    fn commit(self: Box<Self>) -> Result<(), CompanionError>;

    /// Nothing of it is left, and what was there before is there again.
    fn discard(self: Box<Self>) -> Result<(), CompanionError>;
}
