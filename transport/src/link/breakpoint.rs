//! A link that stops at a chosen message until it is let go on.
//!
//! For tests with real processes: while an engine stands at a breakpoint, the test
//! kills it, its peer or its CRIU, or cuts the cable, and thereby does so at that
//! very message. Two files are the signal: the link makes `DIR/reached` when it gets
//! there, and waits until somebody makes `DIR/go`.

use super::{
    BlobReceiver, BlobSender, Connector, ControlReceiver, ControlSender, Link, LinkError, PageReceiver,
    PageSender,
};
use crate::wire::control::Message;
use async_trait::async_trait;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// When a link stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before the message is given to the network.
    BeforeSend,
    /// After it was given to the network, before anything else is done.
    AfterSend,
    /// After it arrived, before anybody has seen it.
    AfterReceive,
}

/// A place to stop at, once.
#[derive(Clone, Debug)]
pub struct Breakpoint {
    when: When,
    /// The message's name, as [`Message::name`] says it.
    message: String,
    directory: PathBuf,
    passed: Arc<AtomicBool>,
}

impl FromStr for Breakpoint {
    type Err = String;

    /// `before-send|after-send|after-receive:MESSAGE:DIRECTORY`.
    fn from_str(text: &str) -> Result<Breakpoint, String> {
        let mut parts = text.splitn(3, ':');
        let (Some(when), Some(message), Some(directory)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(format!("{text:?} is not WHEN:MESSAGE:DIRECTORY"));
        };
        let when = match when {
            "before-send" => When::BeforeSend,
            "after-send" => When::AfterSend,
            "after-receive" => When::AfterReceive,
            other => return Err(format!("{other:?} is not before-send, after-send or after-receive")),
        };
        let (message, directory) = (message.to_owned(), directory.into());
        Ok(Breakpoint { when, message, directory, passed: Arc::default() })
    }
}

impl Breakpoint {
    /// Waits here, if this is the place and it is the first time.
    async fn stop(&self, when: When, message: &Message) {
        let here = when == self.when && message.name() == self.message;
        if !here || self.passed.load(Ordering::SeqCst) {
            return;
        }
        if let Err(error) = std::fs::write(self.directory.join("reached"), b"") {
            tracing::error!(%error, "the breakpoint cannot be signalled");
            return;
        }
        while !self.directory.join("go").exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Only now: whoever waits may be dropped here and come again.
        self.passed.store(true, Ordering::SeqCst);
    }
}

/// Wraps a link.
pub fn stop_at(inner: Box<dyn Link>, at: Breakpoint) -> Box<dyn Link> {
    Box::new(StoppingLink { inner, at })
}

/// Makes links that stop; reconnected ones too, so that a question can be stopped at.
pub struct StoppingConnector {
    /// Makes the links.
    pub inner: Box<dyn Connector>,
    /// Where they stop: the first that gets there.
    pub at: Breakpoint,
}

#[async_trait]
impl Connector for StoppingConnector {
    async fn connect(&self) -> Result<Box<dyn Link>, LinkError> {
        Ok(stop_at(self.inner.connect().await?, self.at.clone()))
    }
}

struct StoppingLink {
    inner: Box<dyn Link>,
    at: Breakpoint,
}

#[async_trait]
impl Link for StoppingLink {
    fn peer(&self) -> String {
        self.inner.peer()
    }

    async fn control(&self) -> Result<(Box<dyn ControlSender>, Box<dyn ControlReceiver>), LinkError> {
        let (send, recv) = self.inner.control().await?;
        let at = || self.at.clone();
        Ok((
            Box::new(Sender { inner: send, at: at() }),
            Box::new(Receiver { inner: recv, at: at(), held: None }),
        ))
    }

    async fn open_pages(&self) -> Result<Box<dyn PageSender>, LinkError> {
        self.inner.open_pages().await
    }

    async fn accept_pages(&self) -> Result<Box<dyn PageReceiver>, LinkError> {
        self.inner.accept_pages().await
    }

    async fn open_blobs(&self) -> Result<Box<dyn BlobSender>, LinkError> {
        self.inner.open_blobs().await
    }

    async fn accept_blobs(&self) -> Result<Box<dyn BlobReceiver>, LinkError> {
        self.inner.accept_blobs().await
    }

    async fn close(&self, reason: &str) {
        self.inner.close(reason).await;
    }
}

struct Sender {
    inner: Box<dyn ControlSender>,
    at: Breakpoint,
}

#[async_trait]
impl ControlSender for Sender {
    async fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        self.at.stop(When::BeforeSend, message).await;
        let sent = self.inner.send(message).await;
        self.at.stop(When::AfterSend, message).await;
        sent
    }
}

struct Receiver {
    inner: Box<dyn ControlReceiver>,
    at: Breakpoint,
    /// Arrived, and the breakpoint not yet passed: the future may be dropped there.
    held: Option<Message>,
}

#[async_trait]
impl ControlReceiver for Receiver {
    async fn recv(&mut self) -> Result<Message, LinkError> {
        let message = match self.held.take() {
            Some(message) => message,
            None => self.inner.recv().await?,
        };
        let message = self.held.insert(message);
        self.at.stop(When::AfterReceive, message).await;
        self.held.take().ok_or_else(|| LinkError::Local("a message was lost".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::memory;

    fn breakpoint(text: &str, directory: &std::path::Path) -> Breakpoint {
        format!("{text}:{}", directory.display()).parse().unwrap()
    }

    #[tokio::test]
    async fn a_link_stops_there_once_and_goes_on_when_told() {
        let directory = tempfile::tempdir().unwrap();
        let (here, there) = memory::pair();
        let here = stop_at(here, breakpoint("before-send:Commit", directory.path()));
        let (mut sender, _) = here.control().await.unwrap();
        let (_, mut receiver) = there.control().await.unwrap();
        sender.send(&Message::Freezing).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap(), Message::Freezing);
        let sending = tokio::spawn(async move {
            sender.send(&Message::Commit).await.unwrap();
            sender.send(&Message::Commit).await.unwrap();
        });
        while !directory.path().join("reached").exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!sending.is_finished());
        std::fs::write(directory.path().join("go"), b"").unwrap();
        for _ in 0..2 {
            assert_eq!(receiver.recv().await.unwrap(), Message::Commit);
        }
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn a_message_that_is_held_when_its_reader_gives_up_is_not_lost() {
        let directory = tempfile::tempdir().unwrap();
        let (here, there) = memory::pair();
        let there = stop_at(there, breakpoint("after-receive:Commit", directory.path()));
        let (mut sender, _) = here.control().await.unwrap();
        let (_, mut receiver) = there.control().await.unwrap();
        sender.send(&Message::Commit).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(30), receiver.recv()).await.is_err());
        std::fs::write(directory.path().join("go"), b"").unwrap();
        assert_eq!(receiver.recv().await.unwrap(), Message::Commit);
    }

    #[test]
    fn what_is_not_a_breakpoint_is_refused() {
        for bad in ["", "before-send", "before-send:Commit", "at:Commit:/x"] {
            assert!(bad.parse::<Breakpoint>().is_err(), "{bad}");
        }
    }
}
