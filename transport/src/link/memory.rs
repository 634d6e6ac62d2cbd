//! A link inside one process, for tests: no sockets, nothing encoded, the same
//! order and the same ends as a real one.
//!
//! What was sent before a close still arrives, then comes
//! [`LinkError::Closed`] with the reason; an end that is dropped without a close
//! is [`LinkError::Lost`] for the other.

use super::{
    BlobReceiver, BlobSender, ControlReceiver, ControlSender, Link, LinkError, PageReceiver, PageSender,
};
use crate::link::Connector;
use crate::page::PageChunk;
use crate::units::Bytes;
use crate::wire::control::Message;
use crate::wire::{blob, frame};
use async_trait::async_trait;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};

/// Messages under way in one direction: few, so that a side that does not listen
/// is noticed.
const MESSAGES: usize = 64;
/// Chunks under way on one page stream: back-pressure is part of the seam.
const CHUNKS: usize = 8;
/// Page streams that were opened and not yet accepted.
const STREAMS: usize = 64;

/// How an end left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    Closed(String),
    Dropped,
}

impl End {
    fn error(&self) -> LinkError {
        match self {
            End::Closed(reason) => LinkError::Closed(reason.clone()),
            End::Open | End::Dropped => LinkError::Lost("the other end is gone".into()),
        }
    }
}

type Control = (mpsc::Sender<Message>, mpsc::Receiver<Message>);

/// One end of a link in memory.
struct MemoryLink {
    peer: &'static str,
    control: Mutex<Option<Control>>,
    open: mpsc::Sender<mpsc::Receiver<PageChunk>>,
    accept: tokio::sync::Mutex<mpsc::Receiver<mpsc::Receiver<PageChunk>>>,
    blobs: BlobStreams,
    own: Arc<watch::Sender<End>>,
    other: watch::Receiver<End>,
}

/// Streams of blobs, as they are opened and accepted.
struct BlobStreams {
    open: mpsc::Sender<mpsc::Receiver<bytes::Bytes>>,
    accept: tokio::sync::Mutex<mpsc::Receiver<mpsc::Receiver<bytes::Bytes>>>,
}

/// A link's two ends: the initiating one, and the accepting one.
pub fn pair() -> (Box<dyn Link>, Box<dyn Link>) {
    let (to_b, from_a) = mpsc::channel(MESSAGES);
    let (to_a, from_b) = mpsc::channel(MESSAGES);
    let (open_a, accept_b) = mpsc::channel(STREAMS);
    let (open_b, accept_a) = mpsc::channel(STREAMS);
    let (blobs_a, blobs_at_b) = mpsc::channel(STREAMS);
    let (blobs_b, blobs_at_a) = mpsc::channel(STREAMS);
    let blobs = |open, accept| BlobStreams { open, accept: tokio::sync::Mutex::new(accept) };
    let (end_a, a_ended) = watch::channel(End::Open);
    let (end_b, b_ended) = watch::channel(End::Open);
    let end = |peer, control, open, accept, blobs, own, other| {
        let control = Mutex::new(Some(control));
        let (accept, own) = (tokio::sync::Mutex::new(accept), Arc::new(own));
        Box::new(MemoryLink { peer, control, open, accept, blobs, own, other })
    };
    let a = end(
        "memory (accepting)",
        (to_b, from_b),
        open_a,
        accept_a,
        blobs(blobs_a, blobs_at_a),
        end_a,
        b_ended,
    );
    let b = end(
        "memory (initiating)",
        (to_a, from_a),
        open_b,
        accept_b,
        blobs(blobs_b, blobs_at_b),
        end_b,
        a_ended,
    );
    (a, b)
}

/// A network in memory: whatever the connector makes, the listener gets.
pub fn network() -> (MemoryConnector, MemoryListener) {
    let (links, listener) = listener();
    (MemoryConnector { links }, listener)
}

pub(super) fn listener() -> (mpsc::Sender<Box<dyn Link>>, MemoryListener) {
    let (links, accepted) = mpsc::channel(16);
    (links, MemoryListener { accepted: tokio::sync::Mutex::new(accepted) })
}

/// Makes links in memory, any number, at any time.
#[derive(Clone)]
pub struct MemoryConnector {
    links: mpsc::Sender<Box<dyn Link>>,
}

/// Takes what the [`MemoryConnector`] makes.
pub struct MemoryListener {
    accepted: tokio::sync::Mutex<mpsc::Receiver<Box<dyn Link>>>,
}

impl MemoryListener {
    /// The next link; `None` when every connector is gone.
    pub async fn accept(&self) -> Option<Box<dyn Link>> {
        self.accepted.lock().await.recv().await
    }
}

#[async_trait]
impl Connector for MemoryConnector {
    async fn connect(&self) -> Result<Box<dyn Link>, LinkError> {
        let (here, there) = pair();
        let gone = |_| LinkError::Lost("nobody listens".into());
        self.links.send(there).await.map_err(gone)?;
        Ok(here)
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.own.send_if_modified(|end| {
            let open = *end == End::Open;
            if open {
                *end = End::Dropped;
            }
            open
        });
    }
}

#[async_trait]
impl Link for MemoryLink {
    fn peer(&self) -> String {
        self.peer.to_owned()
    }

    async fn control(&self) -> Result<(Box<dyn ControlSender>, Box<dyn ControlReceiver>), LinkError> {
        let taken = self.control.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (send, recv) = taken.ok_or_else(|| LinkError::Local("the control stream is taken".into()))?;
        let ends = Ends { own: self.own.subscribe(), other: self.other.clone() };
        Ok((Box::new(Sender { send, ends: ends.clone() }), Box::new(Receiver { recv, ends })))
    }

    async fn open_pages(&self) -> Result<Box<dyn PageSender>, LinkError> {
        let ends = Ends { own: self.own.subscribe(), other: self.other.clone() };
        let (send, recv) = mpsc::channel(CHUNKS);
        ends.clone().sending(self.open.send(recv)).await?;
        Ok(Box::new(Pages { send: Some(send), ends }))
    }

    async fn accept_pages(&self) -> Result<Box<dyn PageReceiver>, LinkError> {
        let ends = Ends { own: self.own.subscribe(), other: self.other.clone() };
        let mut accept = self.accept.lock().await;
        match ends.clone().receiving(&mut accept).await? {
            Some(recv) => Ok(Box::new(Incoming { recv, ends })),
            None => Err(ends.why()),
        }
    }

    async fn open_blobs(&self) -> Result<Box<dyn BlobSender>, LinkError> {
        let ends = Ends { own: self.own.subscribe(), other: self.other.clone() };
        let (send, recv) = mpsc::channel(CHUNKS);
        ends.clone().sending(self.blobs.open.send(recv)).await?;
        Ok(Box::new(Blobs { send: Some(send), ends }))
    }

    async fn accept_blobs(&self) -> Result<Box<dyn BlobReceiver>, LinkError> {
        let ends = Ends { own: self.own.subscribe(), other: self.other.clone() };
        let mut accept = self.blobs.accept.lock().await;
        match ends.clone().receiving(&mut accept).await? {
            Some(recv) => Ok(Box::new(IncomingBlobs { recv, ends })),
            None => Err(ends.why()),
        }
    }

    async fn close(&self, reason: &str) {
        self.own.send_if_modified(|end| {
            let open = *end == End::Open;
            if open {
                *end = End::Closed(reason.to_owned());
            }
            open
        });
    }
}

/// How both ends of the link stand.
#[derive(Clone)]
struct Ends {
    own: watch::Receiver<End>,
    other: watch::Receiver<End>,
}

impl Ends {
    fn why(&self) -> LinkError {
        if *self.own.borrow() == End::Open { self.other.borrow().error() } else { own_end() }
    }

    /// Runs until the send is done, or an end has left.
    async fn sending<T>(
        &mut self,
        send: impl Future<Output = Result<(), mpsc::error::SendError<T>>>,
    ) -> Result<(), LinkError> {
        tokio::select! {
            biased;
            end = left(&mut self.own) => { let _ = end; Err(own_end()) }
            end = left(&mut self.other) => Err(end.error()),
            sent = send => sent.map_err(|_| LinkError::Lost("the other end is gone".into())),
        }
    }

    /// Runs until something came, or an end has left and nothing is under way.
    async fn receiving<T>(&mut self, recv: &mut mpsc::Receiver<T>) -> Result<Option<T>, LinkError> {
        tokio::select! {
            biased;
            _ = left(&mut self.own) => Err(own_end()),
            item = recv.recv() => Ok(item),
            end = left(&mut self.other) => Err(end.error()),
        }
    }
}

async fn left(end: &mut watch::Receiver<End>) -> End {
    // The sender lives in the link, whose drop sets the value first.
    end.wait_for(|end| *end != End::Open).await.map_or(End::Dropped, |end| end.clone())
}

fn own_end() -> LinkError {
    LinkError::Lost("this side closed it".into())
}

struct Sender {
    send: mpsc::Sender<Message>,
    ends: Ends,
}

#[async_trait]
impl ControlSender for Sender {
    async fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        self.ends.sending(self.send.send(message.clone())).await
    }
}

struct Receiver {
    recv: mpsc::Receiver<Message>,
    ends: Ends,
}

#[async_trait]
impl ControlReceiver for Receiver {
    async fn recv(&mut self) -> Result<Message, LinkError> {
        match self.ends.receiving(&mut self.recv).await? {
            Some(message) => Ok(message),
            None => {
                // The other's sender is gone; its link may say why.
                let end = left(&mut self.ends.other).await;
                Err(end.error())
            }
        }
    }
}

struct Pages {
    send: Option<mpsc::Sender<PageChunk>>,
    ends: Ends,
}

#[async_trait]
impl PageSender for Pages {
    async fn send(&mut self, chunk: PageChunk) -> Result<Bytes, LinkError> {
        let send = self.send.as_ref().ok_or_else(|| LinkError::Local("the stream has ended".into()))?;
        let length = frame::HEADER_LEN + chunk.runs.len() * frame::RUN_LEN + chunk.data.len();
        self.ends.sending(send.send(chunk)).await?;
        Ok(Bytes(length as u64))
    }

    async fn finish(&mut self) -> Result<(), LinkError> {
        self.send.take().map(drop).ok_or_else(|| LinkError::Local("the stream has ended".into()))
    }
}

struct Incoming {
    recv: mpsc::Receiver<PageChunk>,
    ends: Ends,
}

#[async_trait]
impl PageReceiver for Incoming {
    async fn recv(&mut self) -> Result<Option<PageChunk>, LinkError> {
        self.ends.receiving(&mut self.recv).await
    }
}

struct Blobs {
    send: Option<mpsc::Sender<bytes::Bytes>>,
    ends: Ends,
}

#[async_trait]
impl BlobSender for Blobs {
    async fn send(&mut self, blob: bytes::Bytes) -> Result<Bytes, LinkError> {
        let send = self.send.as_ref().ok_or_else(|| LinkError::Local("the stream has ended".into()))?;
        let length = blob::HEADER_LEN + blob.len();
        self.ends.sending(send.send(blob)).await?;
        Ok(Bytes(length as u64))
    }

    async fn finish(&mut self) -> Result<(), LinkError> {
        self.send.take().map(drop).ok_or_else(|| LinkError::Local("the stream has ended".into()))
    }
}

struct IncomingBlobs {
    recv: mpsc::Receiver<bytes::Bytes>,
    ends: Ends,
}

#[async_trait]
impl BlobReceiver for IncomingBlobs {
    async fn recv(&mut self) -> Result<Option<bytes::Bytes>, LinkError> {
        self.ends.receiving(&mut self.recv).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{Round, SpaceId};

    fn chunk(n: u32) -> PageChunk {
        PageChunk { space: SpaceId(n), round: Round(0), runs: Vec::new(), data: bytes::Bytes::new() }
    }

    #[tokio::test]
    async fn messages_and_pages_pass_and_a_close_says_why() {
        let (connector, listener) = network();
        let here = connector.connect().await.unwrap();
        let there = listener.accept().await.unwrap();
        let (mut say, mut hear) = here.control().await.unwrap();
        let (mut answer, mut listen) = there.control().await.unwrap();
        say.send(&Message::Freezing).await.unwrap();
        assert_eq!(listen.recv().await.unwrap(), Message::Freezing);
        let mut out = here.open_pages().await.unwrap();
        out.send(chunk(1)).await.unwrap();
        out.finish().await.unwrap();
        let mut pages = there.accept_pages().await.unwrap();
        assert_eq!(pages.recv().await.unwrap().unwrap().space, SpaceId(1));
        assert!(pages.recv().await.unwrap().is_none());

        answer.send(&Message::Drained).await.unwrap();
        there.close("done").await;
        there.close("again").await;
        assert_eq!(hear.recv().await.unwrap(), Message::Drained);
        assert!(matches!(hear.recv().await, Err(LinkError::Closed(why)) if why == "done"));
        assert!(matches!(say.send(&Message::Commit).await, Err(LinkError::Closed(_))));
        assert!(here.open_pages().await.is_err());
        assert!(matches!(here.accept_pages().await, Err(LinkError::Closed(_))));
        assert!(connector.connect().await.is_ok(), "a fresh link any time");
    }

    #[tokio::test]
    async fn a_dropped_end_is_lost() {
        let (here, there) = pair();
        let (mut say, mut hear) = here.control().await.unwrap();
        drop(there);
        assert!(matches!(hear.recv().await, Err(LinkError::Lost(_))));
        assert!(matches!(say.send(&Message::Commit).await, Err(LinkError::Lost(_))));
    }

    #[tokio::test]
    async fn a_dropped_receive_loses_nothing() {
        let (here, there) = pair();
        let (mut say, _hear) = here.control().await.unwrap();
        let (_answer, mut listen) = there.control().await.unwrap();
        for _ in 0..3 {
            let waited = tokio::time::timeout(std::time::Duration::from_millis(1), listen.recv()).await;
            assert!(waited.is_err());
        }
        say.send(&Message::Commit).await.unwrap();
        assert_eq!(listen.recv().await.unwrap(), Message::Commit);
    }
}
