//! One link: a connection with the control stream, perhaps more for pages.

use super::limiter::Limiter;
use super::streams::{self, StreamKind};
use crate::link::{
    BlobReceiver, BlobSender, ControlReceiver, ControlSender, Link, LinkError, PageReceiver, PageSender,
};
use crate::page::PageChunk;
use crate::wire::compress::{self, Advice, Advisor, Compression, Encoding};
use crate::wire::control::Message;
use crate::wire::{codec, frame};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use quinn::{
    Connection, ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, VarInt, WriteError,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

/// How long a close waits for the peer to have what was said before: `Abort` or
/// `Resumed` followed by a close must arrive, and QUIC's close drops what is
/// still on its way.
const FLUSH: Duration = Duration::from_secs(2);
/// How long the reason of a close may come after the end of the control stream.
const REASON: Duration = Duration::from_secs(3);
/// How long a close may take to leave this host.
const PARTING: Duration = Duration::from_millis(500);

/// A link over QUIC.
pub(super) struct QuicLink {
    pub(super) peer: String,
    /// Connections that take page streams in turn, the first being the control
    /// stream's.
    pub(super) connections: Vec<Connection>,
    pub(super) control: Mutex<Option<(Arc<Mutex<SendStream>>, RecvStream)>>,
    /// The control stream's outgoing half once more: a close flushes it.
    pub(super) said: Arc<Mutex<SendStream>>,
    /// Page streams of all connections, as the peer opens them.
    pub(super) incoming: Mutex<mpsc::Receiver<Result<RecvStream, ConnectionError>>>,
    /// Streams of blobs likewise.
    pub(super) blobs: Mutex<mpsc::Receiver<Result<RecvStream, ConnectionError>>>,
    pub(super) compression: Compression,
    pub(super) limiter: Option<Arc<Limiter>>,
    pub(super) next: AtomicUsize,
    /// Keeps the endpoints, and their sockets, alive.
    pub(super) _endpoints: Vec<quinn::Endpoint>,
}

#[async_trait]
impl Link for QuicLink {
    fn peer(&self) -> String {
        self.peer.clone()
    }

    async fn control(&self) -> Result<(Box<dyn ControlSender>, Box<dyn ControlReceiver>), LinkError> {
        let (send, recv) = self
            .control
            .lock()
            .await
            .take()
            .ok_or_else(|| LinkError::Local("the control stream is taken".into()))?;
        let connection = self.connections[0].clone();
        Ok((Box::new(Sender(send)), Box::new(Receiver { stream: recv, buffer: BytesMut::new(), connection })))
    }

    async fn open_pages(&self) -> Result<Box<dyn PageSender>, LinkError> {
        let stream = self.open(StreamKind::Pages).await?;
        Ok(Box::new(Pages { stream, advisor: Advisor::new(self.compression), limiter: self.limiter.clone() }))
    }

    async fn accept_pages(&self) -> Result<Box<dyn PageReceiver>, LinkError> {
        match self.incoming.lock().await.recv().await {
            Some(Ok(stream)) => Ok(Box::new(Incoming { stream })),
            Some(Err(error)) => Err(lost(error)),
            None => Err(LinkError::Lost("the connection has ended".into())),
        }
    }

    async fn open_blobs(&self) -> Result<Box<dyn BlobSender>, LinkError> {
        let stream = self.open(StreamKind::Blobs).await?;
        Ok(Box::new(streams::Blobs::new(stream, self.compression, self.limiter.clone())))
    }

    async fn accept_blobs(&self) -> Result<Box<dyn BlobReceiver>, LinkError> {
        match self.blobs.lock().await.recv().await {
            Some(Ok(stream)) => Ok(Box::new(streams::IncomingBlobs::new(stream))),
            Some(Err(error)) => Err(lost(error)),
            None => Err(LinkError::Lost("the connection has ended".into())),
        }
    }

    async fn close(&self, reason: &str) {
        if self.connections[0].close_reason().is_none() {
            let _ = timeout(FLUSH, self.flush()).await;
        }
        for connection in &self.connections {
            connection.close(VarInt::from_u32(0), reason.as_bytes());
        }
        // Lets the last packets go before the process may end.
        for endpoint in &self._endpoints {
            let _ = timeout(PARTING, endpoint.wait_idle()).await;
        }
    }
}

impl QuicLink {
    /// Opens a stream on the next connection in turn, and says what it carries.
    async fn open(&self, kind: StreamKind) -> Result<SendStream, LinkError> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let mut stream = self.connections[turn].open_uni().await.map_err(lost)?;
        stream.write_all(&[kind as u8]).await.map_err(write_lost)?;
        Ok(stream)
    }

    /// Ends the outgoing half of the control stream and waits until the peer has
    /// acknowledged all of it, or has gone.
    async fn flush(&self) {
        let mut said = self.said.lock().await;
        // Already finished: it may still be on its way.
        let _ = said.finish();
        let stopped = said.stopped();
        let _ = stopped.await;
    }
}

struct Sender(Arc<Mutex<SendStream>>);

#[async_trait]
impl ControlSender for Sender {
    async fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        let bytes = codec::encode(message).map_err(|error| LinkError::Local(error.to_string()))?;
        self.0.lock().await.write_chunk(bytes).await.map_err(write_lost)
    }
}

struct Receiver {
    stream: RecvStream,
    /// Bytes that came and are not a whole message yet: kept here, not in the
    /// future, so that dropping the future loses nothing.
    buffer: BytesMut,
    connection: Connection,
}

#[async_trait]
impl ControlReceiver for Receiver {
    async fn recv(&mut self) -> Result<Message, LinkError> {
        loop {
            if let Some(message) =
                codec::decode(&mut self.buffer).map_err(|error| LinkError::Protocol(error.to_string()))?
            {
                return Ok(message);
            }
            match self.stream.read_chunk(64 << 10, true).await.map_err(read_lost)? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if !self.buffer.is_empty() => {
                    return Err(LinkError::Protocol("the control stream ended within a message".into()));
                }
                // An orderly close ends the stream first; its reason follows.
                None => {
                    return Err(match timeout(REASON, self.connection.closed()).await {
                        Ok(ended) => lost(ended),
                        Err(_) => LinkError::Closed("the control stream ended".into()),
                    });
                }
            }
        }
    }
}

struct Pages {
    stream: SendStream,
    advisor: Advisor,
    limiter: Option<Arc<Limiter>>,
}

impl Pages {
    fn encoding(&mut self, data: &Bytes) -> Encoding {
        match self.advisor.advise() {
            Advice::Use(encoding) => encoding,
            Advice::Sample => {
                let lz4 = compress::sample(Encoding::Lz4, data);
                let zstd = compress::sample(Encoding::Zstd, data);
                self.advisor.sampled(lz4, zstd)
            }
        }
    }
}

#[async_trait]
impl PageSender for Pages {
    async fn send(&mut self, chunk: PageChunk) -> Result<crate::units::Bytes, LinkError> {
        let began = Instant::now();
        let raw = chunk.data.len() as u64;
        let encoding = if raw == 0 { Encoding::Raw } else { self.encoding(&chunk.data) };
        // Compressing 1 MiB takes a millisecond or more; checksumming it does not.
        let frame = if encoding == Encoding::Raw {
            frame::encode(&chunk, encoding)
        } else {
            tokio::task::spawn_blocking(move || frame::encode(&chunk, encoding))
                .await
                .map_err(|error| LinkError::Local(error.to_string()))?
        };
        let frame = frame.map_err(|error| LinkError::Local(error.to_string()))?;
        let length = frame.len() as u64;
        let waiting = Instant::now();
        if let Some(limiter) = &self.limiter {
            limiter.take(length).await;
        }
        let mut parts = [frame.head, frame.payload];
        self.stream.write_all_chunks(&mut parts).await.map_err(write_lost)?;
        if raw > 0 {
            self.advisor.sent(raw, length, waiting.elapsed(), began.elapsed());
        }
        Ok(crate::units::Bytes(length))
    }

    async fn finish(&mut self) -> Result<(), LinkError> {
        self.stream.finish().map_err(|error| LinkError::Lost(error.to_string()))
    }
}

struct Incoming {
    stream: RecvStream,
}

#[async_trait]
impl PageReceiver for Incoming {
    async fn recv(&mut self) -> Result<Option<PageChunk>, LinkError> {
        let mut head = [0; frame::HEADER_LEN];
        match self.stream.read_exact(&mut head).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
            Err(error) => return Err(exact_lost(error)),
        }
        let header = frame::Header::parse(head).map_err(broken)?;
        let mut runs = vec![0; header.runs_len()];
        self.stream.read_exact(&mut runs).await.map_err(exact_lost)?;
        let runs = header.runs(&runs).map_err(broken)?;
        let mut payload = BytesMut::zeroed(header.payload_len());
        self.stream.read_exact(&mut payload).await.map_err(exact_lost)?;
        let payload = payload.freeze();
        let chunk = if header.is_compressed() {
            tokio::task::spawn_blocking(move || header.chunk(runs, payload))
                .await
                .map_err(|error| LinkError::Local(error.to_string()))?
        } else {
            header.chunk(runs, payload)
        };
        chunk.map(Some).map_err(broken)
    }
}

fn broken(error: frame::FrameError) -> LinkError {
    LinkError::Protocol(error.to_string())
}

/// What the end of a connection means for the user.
pub(super) fn lost(error: ConnectionError) -> LinkError {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            LinkError::Closed(String::from_utf8_lossy(&close.reason).into_owned())
        }
        ConnectionError::LocallyClosed => LinkError::Lost("this side closed it".into()),
        // TLS alerts arrive as crypto errors, 0x100 + the alert.
        ConnectionError::TransportError(ref inner) if (0x100..0x200).contains(&u64::from(inner.code)) => {
            untrusted(&inner.to_string())
        }
        ConnectionError::ConnectionClosed(ref close)
            if (0x100..0x200).contains(&u64::from(close.error_code)) =>
        {
            untrusted(&close.to_string())
        }
        other => LinkError::Lost(other.to_string()),
    }
}

fn untrusted(detail: &str) -> LinkError {
    LinkError::Untrusted(format!(
        "one of the two hosts does not know the other ({detail}); pair them: `ferry pair --listen ADDR` on the destination, then `ferry pair HOST:PORT CODE` here"
    ))
}

pub(super) fn write_lost(error: WriteError) -> LinkError {
    match error {
        WriteError::ConnectionLost(error) => lost(error),
        other => LinkError::Lost(other.to_string()),
    }
}

pub(super) fn read_lost(error: ReadError) -> LinkError {
    match error {
        ReadError::ConnectionLost(error) => lost(error),
        other => LinkError::Lost(other.to_string()),
    }
}

fn exact_lost(error: ReadExactError) -> LinkError {
    match error {
        ReadExactError::FinishedEarly(_) => LinkError::Protocol("a page stream ended within a frame".into()),
        ReadExactError::ReadError(error) => read_lost(error),
    }
}
