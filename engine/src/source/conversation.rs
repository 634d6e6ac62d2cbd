//! The conversation with the destination: one link at a time, the messages on it,
//! and whatever may interrupt a wait.

use super::along::{BlobStream, QueueSink};
use super::pages::{PageStreams, StreamSink};
use super::recovery;
use ferry_transport::link::{Connector, ControlReceiver, ControlSender, Link, LinkError};
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{Hello, Message, MigrationId, Outcome};
use std::time::Duration;
use tokio::sync::watch;

/// How often a wait tells how far it is.
const TICK: Duration = Duration::from_millis(200);
/// How long the control stream may take to say why another stream ended.
const LAST_WORD: Duration = Duration::from_millis(500);

/// A source's way to its destination. Every wait ends when the link or a page stream
/// does, when the destination fails, and when the user gives up.
pub(super) struct Conversation {
    connector: Box<dyn Connector>,
    abort: watch::Receiver<Option<String>>,
    session: Option<Session>,
    /// What page streams of ended sessions sent.
    sent_before: Bytes,
}

/// The open link.
struct Session {
    link: Box<dyn Link>,
    sender: Box<dyn ControlSender>,
    receiver: Box<dyn ControlReceiver>,
    streams: Option<PageStreams>,
    blobs: Option<BlobStream>,
}

/// What came instead of the work's end.
pub(super) enum Interrupted {
    /// The destination said something.
    Said(Message),
    /// It cannot go on.
    Failed(String),
}

impl From<Interrupted> for String {
    fn from(interrupted: Interrupted) -> String {
        match interrupted {
            Interrupted::Said(message) => unexpected(&message),
            Interrupted::Failed(why) => why,
        }
    }
}

impl Conversation {
    pub(super) fn new(connector: Box<dyn Connector>, abort: watch::Receiver<Option<String>>) -> Conversation {
        Conversation { connector, abort, session: None, sent_before: Bytes(0) }
    }

    /// Opens the link and its control stream.
    pub(super) async fn open(&mut self) -> Result<(), String> {
        let link = tokio::select! {
            link = self.connector.connect() => link.map_err(text)?,
            why = aborted(self.abort.clone()) => return Err(why),
        };
        let (sender, receiver) = link.control().await.map_err(text)?;
        self.session = Some(Session { link, sender, receiver, streams: None, blobs: None });
        Ok(())
    }

    /// Opens the page streams.
    pub(super) async fn open_pages(&mut self, streams: usize) -> Result<(), String> {
        let session = self.session()?;
        session.streams = Some(PageStreams::open(&*session.link, streams).await.map_err(text)?);
        Ok(())
    }

    /// Opens the stream of what comes along.
    pub(super) async fn open_blobs(&mut self) -> Result<(), String> {
        let session = self.session()?;
        session.blobs = Some(BlobStream::open(&*session.link).await.map_err(text)?);
        Ok(())
    }

    /// Where blobs of what comes along go.
    pub(super) fn blob_sink(&mut self) -> Result<QueueSink, String> {
        Ok(self.session()?.blobs.as_ref().ok_or("no stream of blobs")?.sink())
    }

    /// Where pages go.
    pub(super) fn sink(&mut self) -> Result<StreamSink, String> {
        Ok(self.session()?.streams.as_ref().ok_or("no page streams")?.sink())
    }

    /// The control stream, for many messages in a row.
    pub(super) fn sender(&mut self) -> Result<&mut dyn ControlSender, String> {
        Ok(&mut *self.session()?.sender)
    }

    /// Bytes that page streams and blobs have taken, those of ended links too.
    pub(super) fn wire_bytes(&self) -> Bytes {
        let sent = self.session.as_ref().map_or(Bytes(0), |session| {
            session.streams.as_ref().map_or(Bytes(0), PageStreams::wire_bytes)
                + session.blobs.as_ref().map_or(Bytes(0), BlobStream::wire_bytes)
        });
        self.sent_before + sent
    }

    pub(super) async fn send(&mut self, message: Message) -> Result<(), String> {
        self.sender()?.send(&message).await.map_err(text)
    }

    /// The next message; after `patience` the error says `silence`.
    pub(super) async fn receive(
        &mut self,
        patience: Duration,
        silence: impl FnOnce() -> String,
    ) -> Result<Message, String> {
        let waited = self.watch(tokio::time::sleep(patience), |_| {}).await;
        match waited {
            Ok(()) => Err(silence()),
            Err(Interrupted::Said(message)) => Ok(message),
            Err(Interrupted::Failed(why)) => Err(why),
        }
    }

    /// Does `work` while watching the link, the streams and the user; `progress` hears
    /// from time to time what page streams have sent since.
    pub(super) async fn watch<T>(
        &mut self,
        work: impl Future<Output = T>,
        mut progress: impl FnMut(Bytes),
    ) -> Result<T, Interrupted> {
        let aborted = aborted(self.abort.clone());
        let before = self.wire_bytes();
        let ended = self.sent_before;
        let Some(Session { receiver, streams, blobs, .. }) = &mut self.session else {
            return Err(Interrupted::Failed("not connected".into()));
        };
        let mut tick = tokio::time::interval(TICK);
        tokio::pin!(work, aborted);
        loop {
            let broken = async {
                match streams.as_mut() {
                    Some(streams) => streams.broken().await,
                    None => std::future::pending::<LinkError>().await,
                }
            };
            tokio::select! {
                done = &mut work => return Ok(done),
                message = receiver.recv() => return Err(match message {
                    Ok(Message::Failed(why)) => Interrupted::Failed(format!("the destination: {why}")),
                    Ok(message) => Interrupted::Said(message),
                    Err(error) => Interrupted::Failed(text(error)),
                }),
                error = broken => {
                    return Err(Interrupted::Failed(last_word(&mut **receiver, text(error)).await));
                }
                why = &mut aborted => return Err(Interrupted::Failed(why)),
                _ = tick.tick() => {
                    let sent = ended
                        + streams.as_ref().map_or(Bytes(0), PageStreams::wire_bytes)
                        + blobs.as_ref().map_or(Bytes(0), BlobStream::wire_bytes);
                    progress(Bytes(sent.0.saturating_sub(before.0)));
                }
            }
        }
    }

    /// Why pages are not taken any more: the destination's word, if it has one.
    pub(super) async fn last_word(&mut self, otherwise: String) -> String {
        match &mut self.session {
            Some(session) => last_word(&mut *session.receiver, otherwise).await,
            None => otherwise,
        }
    }

    /// The next message, whatever it is and whatever the user wants: for a source that
    /// has sent Commit.
    pub(super) async fn hear(&mut self, patience: Duration) -> Result<Message, String> {
        let session = self.session()?;
        match tokio::time::timeout(patience, session.receiver.recv()).await {
            Ok(heard) => heard.map_err(text),
            Err(_) => Err(format!("no answer within {patience:?}")),
        }
    }

    /// Asks over a link of its own what became of a migration; the old one is given up.
    pub(super) async fn ask(&mut self, hello: &Hello, id: MigrationId) -> Result<Outcome, LinkError> {
        drop(self.end());
        recovery::ask(&*self.connector, hello, id).await
    }

    /// Ends the link with a reason that the destination can show.
    pub(super) async fn close(&mut self, reason: &str) {
        if let Some(session) = self.end() {
            session.link.close(reason).await;
        }
    }

    /// Whether the user has given up.
    pub(super) fn is_given_up(&self) -> bool {
        self.abort.borrow().is_some()
    }

    /// Ends the session; what it sent still counts.
    fn end(&mut self) -> Option<Session> {
        self.sent_before = self.wire_bytes();
        self.session.take()
    }

    fn session(&mut self) -> Result<&mut Session, String> {
        self.session.as_mut().ok_or_else(|| "not connected".into())
    }
}

/// A destination that fails ends its streams and says why on the control stream: what
/// is seen first is chance, what it says is the reason.
async fn last_word(receiver: &mut dyn ControlReceiver, otherwise: String) -> String {
    let failed = async {
        loop {
            match receiver.recv().await {
                Ok(Message::Failed(why)) => return Some(format!("the destination: {why}")),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    };
    tokio::time::timeout(LAST_WORD, failed).await.ok().flatten().unwrap_or(otherwise)
}

/// For a message that the protocol does not have here.
pub(super) fn unexpected(message: &Message) -> String {
    format!("the destination said {} out of turn", message.name())
}

fn text(error: LinkError) -> String {
    error.to_string()
}

/// Completes when the user gives up.
async fn aborted(mut abort: watch::Receiver<Option<String>>) -> String {
    let given_up = abort.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    match given_up {
        Some(why) => why,
        // Nobody can give up any more.
        None => std::future::pending().await,
    }
}
