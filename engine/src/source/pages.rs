//! The page path at the source: memory thread → bounded queues → page streams.
//!
//! The memory source blocks (it waits for the kernel and for the network), so it
//! lives on a thread of its own, [`MemoryThread`]; the streams are tasks of the
//! runtime. A queue holds [`QUEUE`] chunks of at most 1 MiB, which bounds what the
//! engine holds of the workload's memory whatever its size.

use crate::memory::{FrozenSpace, MemoryError, MemorySource, PageSink, RoundScan, SinkClosed};
use ferry_transport::link::{Link, LinkError};
use ferry_transport::page::{PageChunk, Round};
use ferry_transport::units::{Bytes, PageCount};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Chunks that wait per page stream.
const QUEUE: usize = 8;

/// The open page streams: chunks go to them in turn.
pub struct PageStreams {
    queues: Vec<mpsc::Sender<PageChunk>>,
    tasks: JoinSet<Result<(), LinkError>>,
    wire: Arc<AtomicU64>,
}

impl PageStreams {
    /// Opens `count` page streams on the link.
    pub async fn open(link: &dyn Link, count: usize) -> Result<PageStreams, LinkError> {
        let wire = Arc::new(AtomicU64::new(0));
        let mut streams = PageStreams { queues: Vec::new(), tasks: JoinSet::new(), wire: wire.clone() };
        for _ in 0..count.max(1) {
            let mut sender = link.open_pages().await?;
            let (queue, mut chunks) = mpsc::channel::<PageChunk>(QUEUE);
            let wire = wire.clone();
            streams.queues.push(queue);
            streams.tasks.spawn(async move {
                while let Some(chunk) = chunks.recv().await {
                    let Bytes(sent) = sender.send(chunk).await?;
                    wire.fetch_add(sent, Ordering::Relaxed);
                }
                sender.finish().await
            });
        }
        Ok(streams)
    }

    /// Bytes that went out on all streams so far.
    pub fn wire_bytes(&self) -> Bytes {
        Bytes(self.wire.load(Ordering::Relaxed))
    }

    /// A sink that feeds the streams in turn, from any thread that may block.
    pub fn sink(&self) -> StreamSink {
        StreamSink { queues: self.queues.clone(), next: 0 }
    }

    /// Waits for the first stream that breaks; never returns while all work.
    pub async fn broken(&mut self) -> LinkError {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Err(error))) => return error,
                Some(Err(panic)) => return LinkError::Local(format!("a page stream failed: {panic}")),
                Some(Ok(Ok(()))) => {}
                None => std::future::pending().await,
            }
        }
    }
}

/// Feeds page streams in turn.
pub struct StreamSink {
    queues: Vec<mpsc::Sender<PageChunk>>,
    next: usize,
}

impl PageSink for StreamSink {
    fn put(&mut self, chunk: PageChunk) -> Result<(), SinkClosed> {
        self.next = (self.next + 1) % self.queues.len();
        self.queues[self.next].blocking_send(chunk).map_err(|_| SinkClosed)
    }
}

type Reply<T> = oneshot::Sender<Result<T, MemoryError>>;

enum Order {
    Round(Round, StreamSink, Reply<RoundScan>),
    Peek(Reply<PageCount>),
    Finish(Round, StreamSink, Reply<(RoundScan, Vec<FrozenSpace>)>),
    Disarm,
}

/// A memory source on its thread; a clone is another handle to the same one.
#[derive(Clone)]
pub struct MemoryThread {
    orders: std::sync::mpsc::Sender<Order>,
}

impl MemoryThread {
    /// Starts the thread.
    pub fn start(mut source: Box<dyn MemorySource>) -> std::io::Result<MemoryThread> {
        let (orders, inbox) = std::sync::mpsc::channel();
        std::thread::Builder::new().name("memory".into()).spawn(move || {
            while let Ok(order) = inbox.recv() {
                // A reply that nobody waits for any more is not an error.
                match order {
                    Order::Round(round, mut sink, reply) => {
                        let _ = reply.send(source.round(round, &mut sink));
                    }
                    Order::Peek(reply) => {
                        let _ = reply.send(source.peek());
                    }
                    Order::Finish(round, mut sink, reply) => {
                        let _ = reply.send(source.finish(round, &mut sink));
                    }
                    Order::Disarm => source.disarm(),
                }
            }
            source.disarm();
        })?;
        Ok(MemoryThread { orders })
    }

    /// See [`MemorySource::round`].
    pub async fn round(&self, round: Round, sink: StreamSink) -> Result<RoundScan, MemoryError> {
        self.ask(|reply| Order::Round(round, sink, reply)).await
    }

    /// See [`MemorySource::peek`].
    pub async fn peek(&self) -> Result<PageCount, MemoryError> {
        self.ask(Order::Peek).await
    }

    /// See [`MemorySource::finish`].
    pub async fn finish(
        &self,
        round: Round,
        sink: StreamSink,
    ) -> Result<(RoundScan, Vec<FrozenSpace>), MemoryError> {
        self.ask(|reply| Order::Finish(round, sink, reply)).await
    }

    /// See [`MemorySource::disarm`]; happens when the thread gets to it.
    pub fn disarm(&self) {
        let _ = self.orders.send(Order::Disarm);
    }

    async fn ask<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, MemoryError> {
        let (reply, answer) = oneshot::channel();
        let gone = || MemoryError::Process {
            pid: 0,
            what: "the memory thread ended",
            cause: std::io::ErrorKind::BrokenPipe.into(),
        };
        self.orders.send(order(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
