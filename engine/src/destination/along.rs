//! The stream of blobs into what takes them: directories that come along.

use crate::companion::{CompanionError, CompanionSink};
use ferry_transport::link::{Link, LinkError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

/// Takes the stream of blobs of a link into a sink.
pub(super) struct AlongIntake {
    /// Absent once it was decided about.
    sink: Shared,
    taken: watch::Receiver<u64>,
    broken: watch::Receiver<Option<String>>,
    task: tokio::task::JoinHandle<()>,
}

type Shared = Arc<Mutex<Option<Box<dyn CompanionSink>>>>;

impl AlongIntake {
    pub(super) fn start(link: Arc<dyn Link>, sink: Box<dyn CompanionSink>) -> AlongIntake {
        let sink: Shared = Arc::new(Mutex::new(Some(sink)));
        let (count, taken) = watch::channel(0);
        let (report, broken) = watch::channel(None);
        let into = Arc::clone(&sink);
        let task = tokio::spawn(take_all(link, into, count, report));
        AlongIntake { sink, taken, broken, task }
    }

    /// Waits until so many blobs have been taken. `patience` is for a silence.
    pub(super) async fn complete(&mut self, blobs: u64, patience: Duration) -> Result<(), String> {
        loop {
            let taken = *self.taken.borrow_and_update();
            if taken >= blobs {
                return Ok(());
            }
            let broken = self.broken.borrow().clone();
            if let Some(why) = broken {
                return Err(why);
            }
            tokio::select! {
                _ = self.taken.changed() => {}
                _ = self.broken.changed() => {}
                () = tokio::time::sleep(patience) => {
                    return Err(format!(
                        "{taken} of {blobs} parts of what comes along arrived, and none for {patience:?}"
                    ));
                }
            }
        }
    }

    /// How many blobs have been taken: that it grows says that the source is at work.
    pub(super) fn taken(&self) -> u64 {
        *self.taken.borrow()
    }

    /// Completes when no more can be taken, with the reason.
    pub(super) async fn failed(&self) -> String {
        let mut broken = self.broken.clone();
        let why = broken.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }

    /// See [`CompanionSink::ready`].
    pub(super) async fn ready(&self) -> Result<(), String> {
        let sink = Arc::clone(&self.sink);
        let ready = spawn_blocking(move || lock(&sink).as_mut().map_or(Ok(()), |sink| sink.ready()));
        flatten(ready.await)
    }

    /// See [`CompanionSink::commit`].
    pub(super) async fn commit(&mut self) -> Result<(), String> {
        self.decide(|sink| sink.commit()).await
    }

    /// See [`CompanionSink::discard`].
    pub(super) async fn discard(&mut self) -> Result<(), String> {
        self.decide(|sink| sink.discard()).await
    }

    async fn decide(
        &mut self,
        decision: impl FnOnce(Box<dyn CompanionSink>) -> Result<(), CompanionError> + Send + 'static,
    ) -> Result<(), String> {
        self.task.abort();
        let sink = Arc::clone(&self.sink);
        let decided = spawn_blocking(move || {
            // A blob that is being written is written first.
            let taken = lock(&sink).take();
            taken.map_or(Ok(()), decision)
        });
        flatten(decided.await)
    }
}

impl Drop for AlongIntake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs until it is ended: the stream of a sink that failed stays open, so that the source
/// hears why from the destination and not of a stream that ended.
async fn take_all(
    link: Arc<dyn Link>,
    sink: Shared,
    count: watch::Sender<u64>,
    report: watch::Sender<Option<String>>,
) {
    let mut stream = None;
    let failed = loop {
        let blob = match &mut stream {
            None => match link.accept_blobs().await {
                Ok(accepted) => {
                    stream = Some(accepted);
                    continue;
                }
                Err(error) => Err(error),
            },
            Some(stream) => stream.recv().await,
        };
        let taken = match blob {
            Ok(Some(blob)) => {
                let sink = Arc::clone(&sink);
                let take = move || lock(&sink).as_mut().map_or(Ok(()), |sink| sink.take(&blob));
                flatten(spawn_blocking(take).await)
            }
            // That the link ended is the control stream's to say.
            Ok(None) | Err(LinkError::Closed(_) | LinkError::Lost(_)) => break None,
            Err(error) => Err(error.to_string()),
        };
        match taken {
            Ok(()) => count.send_modify(|count| *count += 1),
            Err(why) => break Some(why),
        }
    };
    if failed.is_some() {
        report.send_replace(failed);
    }
    std::future::pending::<()>().await;
    drop((stream, count, report));
}

fn lock(sink: &Shared) -> std::sync::MutexGuard<'_, Option<Box<dyn CompanionSink>>> {
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}

fn flatten(joined: Result<Result<(), CompanionError>, tokio::task::JoinError>) -> Result<(), String> {
    joined.map_err(|panic| panic.to_string())?.map_err(|error| error.to_string())
}
