//! What comes along beside memory: a companion on a thread of its own, its blobs on a
//! stream of their own, and what it has come to.

use crate::companion::{BlobSink, Companion, CompanionError, CompanionRound, Forecast, SinkGone};
use crate::report::{FilesReport, ms};
use ferry_transport::link::{Link, LinkError};
use ferry_transport::units::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Blobs that wait for the network: at most 8 MiB.
const QUEUE: usize = 8;

/// The open stream.
pub(super) struct BlobStream {
    queue: mpsc::Sender<bytes::Bytes>,
    wire: Arc<AtomicU64>,
}

impl BlobStream {
    /// Opens it. It ends when it, and every sink of it, is dropped.
    pub(super) async fn open(link: &dyn Link) -> Result<BlobStream, LinkError> {
        let mut sender = link.open_blobs().await?;
        let (queue, mut blobs) = mpsc::channel::<bytes::Bytes>(QUEUE);
        let wire = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&wire);
        tokio::spawn(async move {
            while let Some(blob) = blobs.recv().await {
                match sender.send(blob).await {
                    Ok(Bytes(sent)) => drop(count.fetch_add(sent, Ordering::Relaxed)),
                    // Whoever puts the next blob is told; the control stream says why.
                    Err(error) => return tracing::debug!(%error, "the stream of blobs ended"),
                }
            }
            let _ = sender.finish().await;
        });
        Ok(BlobStream { queue, wire })
    }

    /// Bytes that went out so far.
    pub(super) fn wire_bytes(&self) -> Bytes {
        Bytes(self.wire.load(Ordering::Relaxed))
    }

    /// Where blobs go, from any thread that may block.
    pub(super) fn sink(&self) -> QueueSink {
        QueueSink(self.queue.clone())
    }
}

/// Feeds the stream.
pub(super) struct QueueSink(mpsc::Sender<bytes::Bytes>);

impl BlobSink for QueueSink {
    fn put(&mut self, blob: bytes::Bytes) -> Result<(), SinkGone> {
        self.0.blocking_send(blob).map_err(|_| SinkGone)
    }
}

type Reply<T> = oneshot::Sender<Result<T, CompanionError>>;

enum Order {
    Round(QueueSink, Reply<CompanionRound>),
    Peek(Reply<Forecast>),
    Finish(QueueSink, Reply<CompanionRound>),
    Seal(QueueSink, Reply<CompanionRound>),
}

/// The companion, and what it has sent.
pub(super) struct Along {
    orders: std::sync::mpsc::Sender<Order>,
    /// What it said it would cost to freeze now.
    pub(super) forecast: Forecast,
    blobs: u64,
    report: FilesReport,
    final_time: Duration,
}

/// The end of something that was begun.
pub(super) struct Pending<T>(oneshot::Receiver<Result<T, CompanionError>>);

impl<T> Pending<T> {
    pub(super) async fn done(self) -> Result<T, String> {
        let answer = self.0.await.map_err(|_| "the thread of what comes along ended".to_owned())?;
        answer.map_err(|error| error.to_string())
    }
}

impl Along {
    /// Starts the thread.
    pub(super) fn start(mut companion: Box<dyn Companion>) -> std::io::Result<Along> {
        let (orders, inbox) = std::sync::mpsc::channel();
        std::thread::Builder::new().name("companion".into()).spawn(move || {
            while let Ok(order) = inbox.recv() {
                // A reply that nobody waits for any more is not an error.
                match order {
                    Order::Round(mut sink, reply) => drop(reply.send(companion.round(&mut sink))),
                    Order::Peek(reply) => drop(reply.send(companion.peek())),
                    Order::Finish(mut sink, reply) => drop(reply.send(companion.finish(&mut sink))),
                    Order::Seal(mut sink, reply) => drop(reply.send(companion.seal(&mut sink))),
                }
            }
        })?;
        Ok(Along {
            orders,
            forecast: Forecast::default(),
            blobs: 0,
            report: FilesReport::default(),
            final_time: Duration::ZERO,
        })
    }

    /// See [`Companion::round`].
    pub(super) fn round(&self, sink: QueueSink) -> Pending<CompanionRound> {
        self.order(|reply| Order::Round(sink, reply))
    }

    /// See [`Companion::peek`].
    pub(super) fn peek(&self) -> Pending<Forecast> {
        self.order(Order::Peek)
    }

    /// See [`Companion::finish`].
    pub(super) fn finish(&self, sink: QueueSink) -> Pending<CompanionRound> {
        self.order(|reply| Order::Finish(sink, reply))
    }

    /// See [`Companion::seal`].
    pub(super) fn seal(&self, sink: QueueSink) -> Pending<CompanionRound> {
        self.order(|reply| Order::Seal(sink, reply))
    }

    /// A round is over; how many blobs there are in all.
    pub(super) fn count(&mut self, round: &CompanionRound) -> u64 {
        self.blobs += round.blobs;
        self.report.rounds += 1;
        self.report.bytes += round.bytes.0;
        self.blobs
    }

    /// A part of the last difference is over; how many blobs there are in all.
    pub(super) fn count_final(&mut self, round: &CompanionRound) -> u64 {
        self.blobs += round.blobs;
        self.report.bytes += round.bytes.0;
        self.report.final_bytes += round.bytes.0;
        self.final_time += round.took;
        self.report.final_ms = Some(ms(self.final_time));
        self.blobs
    }

    /// What it came to.
    pub(super) fn report(&self) -> FilesReport {
        self.report
    }

    fn order<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Pending<T> {
        let (reply, answer) = oneshot::channel();
        // Where the thread is gone, the reply goes with the order.
        let _ = self.orders.send(order(reply));
        Pending(answer)
    }
}
