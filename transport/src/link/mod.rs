//! The seam between the engine and the network: one control stream, any number of
//! page streams and, where something comes along, streams of blobs to one
//! authenticated peer.

use crate::page::PageChunk;
use crate::units::Bytes;
use crate::wire::control::Message;
use async_trait::async_trait;

pub mod breakpoint;
pub mod faulty;
pub mod memory;

/// Why a link cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed it in order.
    #[error("the peer closed the connection: {0}")]
    Closed(String),
    /// It broke: timeout, reset, unreachable.
    #[error("the connection to the peer was lost: {0}")]
    Lost(String),
    /// The peer said something that no honest peer says.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// The peer is not one that was paired.
    #[error("the peer is not trusted: {0}")]
    Untrusted(String),
    /// This side could not do its part.
    #[error("{0}")]
    Local(String),
}

/// Sends control messages. On error nothing more can be sent.
#[async_trait]
pub trait ControlSender: Send {
    /// Queues and flushes one message; returning says nothing about its arrival.
    async fn send(&mut self, message: &Message) -> Result<(), LinkError>;
}

/// Receives control messages in order.
#[async_trait]
pub trait ControlReceiver: Send {
    /// The next message. Cancel-safe: dropping the future loses nothing.
    async fn recv(&mut self) -> Result<Message, LinkError>;
}

/// One outgoing page stream.
#[async_trait]
pub trait PageSender: Send {
    /// Encodes and queues one chunk; waits when the peer or a rate limit is
    /// slower. Returns the bytes that it takes on the wire.
    async fn send(&mut self, chunk: PageChunk) -> Result<Bytes, LinkError>;
    /// Ends the stream in order.
    async fn finish(&mut self) -> Result<(), LinkError>;
}

/// One incoming page stream.
#[async_trait]
pub trait PageReceiver: Send {
    /// The next chunk, its checksum verified; `None` when the stream ended in order.
    async fn recv(&mut self) -> Result<Option<PageChunk>, LinkError>;
}

/// One outgoing stream of a companion's blobs.
#[async_trait]
pub trait BlobSender: Send {
    /// Encodes and queues one blob, of 1 to [`MAX_BLOB`](crate::wire::blob::MAX_BLOB)
    /// bytes; waits like a page stream. Returns the bytes that it takes on the wire.
    async fn send(&mut self, blob: bytes::Bytes) -> Result<Bytes, LinkError>;
    /// Ends the stream in order.
    async fn finish(&mut self) -> Result<(), LinkError>;
}

/// One incoming stream of a companion's blobs.
#[async_trait]
pub trait BlobReceiver: Send {
    /// The next blob, its checksum verified; `None` when the stream ended in order.
    async fn recv(&mut self) -> Result<Option<bytes::Bytes>, LinkError>;
}

/// An authenticated link to one peer.
#[async_trait]
pub trait Link: Send + Sync {
    /// Who the peer is: the name it was paired under and its address, for people.
    fn peer(&self) -> String;
    /// The control stream's two halves; the initiating side opens it, the other
    /// accepts it. To be called once.
    async fn control(&self) -> Result<(Box<dyn ControlSender>, Box<dyn ControlReceiver>), LinkError>;
    /// Opens a page stream.
    async fn open_pages(&self) -> Result<Box<dyn PageSender>, LinkError>;
    /// Accepts the next page stream of the peer. Cancel-safe.
    async fn accept_pages(&self) -> Result<Box<dyn PageReceiver>, LinkError>;
    /// Opens a stream of blobs.
    async fn open_blobs(&self) -> Result<Box<dyn BlobSender>, LinkError>;
    /// Accepts the next stream of blobs of the peer. Cancel-safe.
    async fn accept_blobs(&self) -> Result<Box<dyn BlobReceiver>, LinkError>;
    /// Ends the link with a reason that the peer can show. Idempotent.
    async fn close(&self, reason: &str);
}

/// Makes links to one peer: the source keeps it to reconnect while in doubt.
#[async_trait]
pub trait Connector: Send + Sync {
    /// A fresh link to the peer.
    async fn connect(&self) -> Result<Box<dyn Link>, LinkError>;
}
