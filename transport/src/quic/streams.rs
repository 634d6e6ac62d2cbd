//! What unidirectional streams carry: each begins with a byte that says it. Page streams
//! are read in [`link`](super::link); streams of blobs are here.

use super::limiter::Limiter;
use super::link::{read_lost, write_lost};
use crate::link::{BlobReceiver, BlobSender, LinkError};
use crate::wire::blob;
use crate::wire::compress::{Compression, Encoding};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use quinn::{Connection, ConnectionError, ReadExactError, RecvStream, SendStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A stream's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum StreamKind {
    Pages = 0,
    Blobs = 1,
}

/// How long a stream may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(10);

type Streams = mpsc::Sender<Result<RecvStream, ConnectionError>>;

/// Where the peer's streams go.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) pages: Streams,
    pub(super) blobs: Streams,
}

/// Takes the streams of a connection as the peer opens them. One that does not say what
/// it is, or is nothing known, is stopped; the connection's end is told to both.
pub(super) async fn gather(connection: Connection, found: Found) {
    loop {
        match connection.accept_uni().await {
            // On its own: another one must not wait for this one's first byte.
            Ok(stream) => drop(tokio::spawn(sort(stream, found.clone()))),
            Err(error) => {
                let _ = found.pages.send(Err(error.clone())).await;
                let _ = found.blobs.send(Err(error)).await;
                return;
            }
        }
    }
}

async fn sort(mut stream: RecvStream, found: Found) {
    let mut kind = [0];
    let read = timeout(PATIENCE, stream.read_exact(&mut kind)).await;
    let into = match (read, kind[0]) {
        (Ok(Ok(())), kind) if kind == StreamKind::Pages as u8 => found.pages,
        (Ok(Ok(())), kind) if kind == StreamKind::Blobs as u8 => found.blobs,
        _ => {
            let _ = stream.stop(1u32.into());
            return;
        }
    };
    let _ = into.send(Ok(stream)).await;
}

/// An outgoing stream of blobs.
pub(super) struct Blobs {
    stream: SendStream,
    encoding: Encoding,
    limiter: Option<Arc<Limiter>>,
}

impl Blobs {
    /// Files are compressed where the user asks for an encoding; `auto` measures pages,
    /// and leaves files, which often are compressed already, as they are.
    pub(super) fn new(stream: SendStream, compression: Compression, limiter: Option<Arc<Limiter>>) -> Blobs {
        let encoding = match compression {
            Compression::Off | Compression::Auto => Encoding::Raw,
            Compression::Lz4 => Encoding::Lz4,
            Compression::Zstd => Encoding::Zstd,
        };
        Blobs { stream, encoding, limiter }
    }
}

#[async_trait]
impl BlobSender for Blobs {
    async fn send(&mut self, blob: Bytes) -> Result<crate::units::Bytes, LinkError> {
        let encoding = self.encoding;
        let encoded = if encoding == Encoding::Raw {
            blob::encode(&blob, encoding)
        } else {
            tokio::task::spawn_blocking(move || blob::encode(&blob, encoding)).await.map_err(local)?
        };
        let mut parts = encoded.map_err(local)?;
        let length = parts.iter().map(Bytes::len).sum::<usize>() as u64;
        if let Some(limiter) = &self.limiter {
            limiter.take(length).await;
        }
        self.stream.write_all_chunks(&mut parts).await.map_err(write_lost)?;
        Ok(crate::units::Bytes(length))
    }

    async fn finish(&mut self) -> Result<(), LinkError> {
        self.stream.finish().map_err(|error| LinkError::Lost(error.to_string()))
    }
}

/// An incoming stream of blobs.
pub(super) struct IncomingBlobs {
    stream: RecvStream,
}

impl IncomingBlobs {
    pub(super) fn new(stream: RecvStream) -> IncomingBlobs {
        IncomingBlobs { stream }
    }
}

#[async_trait]
impl BlobReceiver for IncomingBlobs {
    async fn recv(&mut self) -> Result<Option<Bytes>, LinkError> {
        let mut head = [0; blob::HEADER_LEN];
        match self.stream.read_exact(&mut head).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
            Err(error) => return Err(exact_lost(error)),
        }
        let header = blob::Header::parse(head).map_err(broken)?;
        let mut payload = BytesMut::zeroed(header.payload_len());
        self.stream.read_exact(&mut payload).await.map_err(exact_lost)?;
        let payload = payload.freeze();
        let content = if header.is_compressed() {
            tokio::task::spawn_blocking(move || header.content(payload)).await.map_err(local)?
        } else {
            header.content(payload)
        };
        content.map(Some).map_err(broken)
    }
}

fn broken(error: blob::BlobError) -> LinkError {
    LinkError::Protocol(error.to_string())
}

fn local(error: impl std::fmt::Display) -> LinkError {
    LinkError::Local(error.to_string())
}

fn exact_lost(error: ReadExactError) -> LinkError {
    match error {
        ReadExactError::FinishedEarly(_) => LinkError::Protocol("a stream of blobs ended within one".into()),
        ReadExactError::ReadError(error) => read_lost(error),
    }
}
