//! A link that breaks at a chosen point, to try a cut at every message.
//!
//! Both ends are wrapped with one [`Fault`]. At the cut the network is gone for
//! both: every operation, those that wait included, is [`LinkError::Lost`]. What
//! was sent before the cut still arrives, as on a real network it may; what the
//! other end did not get is never learnt by the sender, whose `send` succeeded.

use super::{
    BlobReceiver, BlobSender, ControlReceiver, ControlSender, Link, LinkError, PageReceiver, PageSender,
};
use crate::link::Connector;
use crate::page::PageChunk;
use crate::units::Bytes;
use crate::wire::control::Message;
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Which end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that connects: the source.
    Initiator,
    /// The one that accepts: the destination.
    Acceptor,
}

/// When a link breaks. Counts begin at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Never.
    Never,
    /// This side's n-th control message is swallowed: its `send` succeeds, the
    /// other never sees it.
    Swallowing(Side, u64),
    /// This side's n-th control message arrives, and nothing after it.
    After(Side, u64),
    /// After this many page chunks in all, of both sides.
    AfterChunks(u64),
}

/// What goes wrong on a link.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Where it breaks.
    pub cut: Cut,
    /// How long every control message is held up before it is sent.
    pub delay: Duration,
}

impl Fault {
    /// Breaks there, without delay.
    pub fn cut(cut: Cut) -> Fault {
        Fault { cut, delay: Duration::ZERO }
    }
}

/// The state that the two ends of one link share.
struct State {
    fault: Fault,
    messages: [AtomicU64; 2],
    chunks: AtomicU64,
    cut: watch::Sender<bool>,
}

/// What the fault does with what is being sent.
enum Fate {
    Passes,
    PassesLast,
    Swallowed,
}

impl State {
    fn new(fault: Fault) -> Arc<State> {
        let (cut, _) = watch::channel(false);
        Arc::new(State { fault, messages: Default::default(), chunks: AtomicU64::new(0), cut })
    }

    fn message(&self, side: Side) -> Fate {
        let index = self.messages[side as usize].fetch_add(1, Ordering::SeqCst);
        match self.fault.cut {
            Cut::Swallowing(who, n) if who == side && n == index => Fate::Swallowed,
            Cut::After(who, n) if who == side && n == index => Fate::PassesLast,
            _ => Fate::Passes,
        }
    }

    fn chunk(&self) -> Fate {
        let index = self.chunks.fetch_add(1, Ordering::SeqCst);
        match self.fault.cut {
            Cut::AfterChunks(0) => Fate::Swallowed,
            Cut::AfterChunks(n) if n == index + 1 => Fate::PassesLast,
            Cut::AfterChunks(n) if n <= index => Fate::Swallowed,
            _ => Fate::Passes,
        }
    }

    fn break_now(&self) {
        self.cut.send_replace(true);
    }

    fn broken(&self) -> Result<(), LinkError> {
        if *self.cut.borrow() { Err(severed()) } else { Ok(()) }
    }

    /// Runs an operation that the cut ends. What is already there is taken first.
    async fn unless_cut<T>(
        &self,
        operation: impl Future<Output = Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        let mut cut = self.cut.subscribe();
        tokio::select! {
            biased;
            done = operation => done,
            _ = cut.wait_for(|cut| *cut) => Err(severed()),
        }
    }
}

fn severed() -> LinkError {
    LinkError::Lost("the cable was cut".into())
}

/// Wraps the two ends of a link: the initiator's and the acceptor's.
pub fn pair(
    initiator: Box<dyn Link>,
    acceptor: Box<dyn Link>,
    fault: Fault,
) -> (Box<dyn Link>, Box<dyn Link>) {
    let state = State::new(fault);
    let wrap = |inner, side| Box::new(FaultyLink { inner, side, state: Arc::clone(&state) });
    (wrap(initiator, Side::Initiator), wrap(acceptor, Side::Acceptor))
}

/// A network in memory whose n-th link has the n-th fault; links beyond them are
/// sound, so that a reconnect succeeds.
pub fn network(faults: Vec<Fault>) -> (FaultyConnector, super::memory::MemoryListener) {
    let (links, listener) = super::memory::listener();
    let faults = std::sync::Mutex::new(faults.into_iter());
    (FaultyConnector { links, faults }, listener)
}

/// Makes links in memory that break as planned.
pub struct FaultyConnector {
    links: tokio::sync::mpsc::Sender<Box<dyn Link>>,
    faults: std::sync::Mutex<std::vec::IntoIter<Fault>>,
}

#[async_trait]
impl Connector for FaultyConnector {
    async fn connect(&self) -> Result<Box<dyn Link>, LinkError> {
        let next = self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        let (here, there) = super::memory::pair();
        let (here, there) = pair(here, there, next.unwrap_or(Fault::cut(Cut::Never)));
        self.links.send(there).await.map_err(|_| LinkError::Lost("nobody listens".into()))?;
        Ok(here)
    }
}

struct FaultyLink {
    inner: Box<dyn Link>,
    side: Side,
    state: Arc<State>,
}

#[async_trait]
impl Link for FaultyLink {
    fn peer(&self) -> String {
        self.inner.peer()
    }

    async fn control(&self) -> Result<(Box<dyn ControlSender>, Box<dyn ControlReceiver>), LinkError> {
        let (send, recv) = self.inner.control().await?;
        let state = || Arc::clone(&self.state);
        let send = Sender { inner: send, side: self.side, state: state() };
        Ok((Box::new(send), Box::new(Receiver { inner: recv, state: state() })))
    }

    async fn open_pages(&self) -> Result<Box<dyn PageSender>, LinkError> {
        self.state.broken()?;
        let inner = self.state.unless_cut(self.inner.open_pages()).await?;
        Ok(Box::new(Pages { inner, state: Arc::clone(&self.state) }))
    }

    async fn accept_pages(&self) -> Result<Box<dyn PageReceiver>, LinkError> {
        let inner = self.state.unless_cut(self.inner.accept_pages()).await?;
        Ok(Box::new(Incoming { inner, state: Arc::clone(&self.state) }))
    }

    async fn open_blobs(&self) -> Result<Box<dyn BlobSender>, LinkError> {
        self.state.broken()?;
        let inner = self.state.unless_cut(self.inner.open_blobs()).await?;
        Ok(Box::new(Blobs { inner, state: Arc::clone(&self.state) }))
    }

    async fn accept_blobs(&self) -> Result<Box<dyn BlobReceiver>, LinkError> {
        let inner = self.state.unless_cut(self.inner.accept_blobs()).await?;
        Ok(Box::new(IncomingBlobs { inner, state: Arc::clone(&self.state) }))
    }

    async fn close(&self, reason: &str) {
        // Over a cut cable not even the reason passes: the peer has its loss.
        if self.state.broken().is_ok() {
            self.inner.close(reason).await;
        }
    }
}

struct Sender {
    inner: Box<dyn ControlSender>,
    side: Side,
    state: Arc<State>,
}

#[async_trait]
impl ControlSender for Sender {
    async fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        self.state.broken()?;
        if !self.state.fault.delay.is_zero() {
            tokio::time::sleep(self.state.fault.delay).await;
            self.state.broken()?;
        }
        match self.state.message(self.side) {
            Fate::Passes => self.state.unless_cut(self.inner.send(message)).await,
            Fate::PassesLast => {
                let sent = self.inner.send(message).await;
                self.state.break_now();
                sent
            }
            Fate::Swallowed => {
                self.state.break_now();
                Ok(())
            }
        }
    }
}

struct Receiver {
    inner: Box<dyn ControlReceiver>,
    state: Arc<State>,
}

#[async_trait]
impl ControlReceiver for Receiver {
    async fn recv(&mut self) -> Result<Message, LinkError> {
        lost_if_cut(&self.state, self.state.unless_cut(self.inner.recv()).await)
    }
}

/// After the cut there is no orderly end any more.
fn lost_if_cut<T>(state: &State, result: Result<T, LinkError>) -> Result<T, LinkError> {
    if result.is_err() {
        state.broken()?;
    }
    result
}

struct Pages {
    inner: Box<dyn PageSender>,
    state: Arc<State>,
}

#[async_trait]
impl PageSender for Pages {
    async fn send(&mut self, chunk: PageChunk) -> Result<Bytes, LinkError> {
        self.state.broken()?;
        match self.state.chunk() {
            Fate::Passes => self.state.unless_cut(self.inner.send(chunk)).await,
            Fate::PassesLast => {
                let sent = self.inner.send(chunk).await;
                self.state.break_now();
                sent
            }
            Fate::Swallowed => {
                self.state.break_now();
                Err(severed())
            }
        }
    }

    async fn finish(&mut self) -> Result<(), LinkError> {
        self.state.broken()?;
        self.inner.finish().await
    }
}

struct Incoming {
    inner: Box<dyn PageReceiver>,
    state: Arc<State>,
}

#[async_trait]
impl PageReceiver for Incoming {
    async fn recv(&mut self) -> Result<Option<PageChunk>, LinkError> {
        match lost_if_cut(&self.state, self.state.unless_cut(self.inner.recv()).await) {
            // A sender that gave up drops its stream, which must not look like its end.
            Ok(None) => self.state.broken().map(|()| None),
            other => other,
        }
    }
}

struct Blobs {
    inner: Box<dyn BlobSender>,
    state: Arc<State>,
}

#[async_trait]
impl BlobSender for Blobs {
    async fn send(&mut self, blob: bytes::Bytes) -> Result<Bytes, LinkError> {
        self.state.broken()?;
        self.state.unless_cut(self.inner.send(blob)).await
    }

    async fn finish(&mut self) -> Result<(), LinkError> {
        self.state.broken()?;
        self.inner.finish().await
    }
}

struct IncomingBlobs {
    inner: Box<dyn BlobReceiver>,
    state: Arc<State>,
}

#[async_trait]
impl BlobReceiver for IncomingBlobs {
    async fn recv(&mut self) -> Result<Option<bytes::Bytes>, LinkError> {
        match lost_if_cut(&self.state, self.state.unless_cut(self.inner.recv()).await) {
            Ok(None) => self.state.broken().map(|()| None),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests;
