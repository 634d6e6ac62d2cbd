//! Page streams into the page store.

use crate::page_store::PageStore;
use ferry_transport::link::Link;
use ferry_transport::wire::control::RoundTotals;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Takes every page stream of a link into a store.
pub(super) struct PageIntake {
    store: Arc<PageStore>,
    /// Counts stored chunks; only its changing matters.
    stored: watch::Receiver<u64>,
    /// Why the store takes no more.
    refused: watch::Receiver<Option<String>>,
    /// Why no more come.
    broken: watch::Receiver<Option<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl PageIntake {
    pub(super) fn start(link: Arc<dyn Link>, store: Arc<PageStore>) -> PageIntake {
        let (count, stored) = watch::channel(0u64);
        let (refusal, refused) = watch::channel(None);
        let (report, broken) = watch::channel(None);
        let into = Arc::clone(&store);
        let task = tokio::spawn(async move {
            let mut streams = JoinSet::new();
            loop {
                let mut stream = match link.accept_pages().await {
                    Ok(stream) => stream,
                    Err(error) => {
                        report.send_if_modified(|broken| broken.get_or_insert(error.to_string()).is_empty());
                        break;
                    }
                };
                let (store, count) = (Arc::clone(&into), count.clone());
                let (refusal, report) = (refusal.clone(), report.clone());
                streams.spawn(async move {
                    loop {
                        let chunk = match stream.recv().await {
                            Ok(Some(chunk)) => chunk,
                            Ok(None) => return,
                            Err(error) => {
                                let _ = report.send(Some(error.to_string()));
                                return;
                            }
                        };
                        if let Err(error) = store.put(&chunk) {
                            let _ = refusal.send(Some(error.to_string()));
                            // Ended here, the stream would tell the source that something is
                            // wrong before the control stream can say what.
                            std::future::pending::<()>().await;
                        }
                        count.send_modify(|count| *count += 1);
                    }
                });
            }
            while streams.join_next().await.is_some() {}
        });
        PageIntake { store, stored, refused, broken, task }
    }

    /// Waits until everything that the source says it sent in a round is stored,
    /// and compares. `patience` is for a silence: it begins anew with every chunk.
    pub(super) async fn complete(&mut self, totals: &RoundTotals, patience: Duration) -> Result<(), String> {
        loop {
            self.stored.borrow_and_update();
            let arrived = self.store.totals(totals.round);
            if arrived.chunks >= totals.chunks {
                return if arrived == *totals {
                    Ok(())
                } else {
                    Err(format!("round {}: {arrived:?} arrived of {totals:?}", totals.round.0))
                };
            }
            let failed = self.refused.borrow().clone().or_else(|| self.broken.borrow().clone());
            if let Some(why) = failed {
                return Err(why);
            }
            tokio::select! {
                _ = self.stored.changed() => {}
                _ = self.refused.changed() => {}
                _ = self.broken.changed() => {}
                () = tokio::time::sleep(patience) => {
                    return Err(format!(
                        "round {}: {} of {} chunks arrived, and none for {patience:?}",
                        totals.round.0, arrived.chunks, totals.chunks
                    ));
                }
            }
        }
    }

    /// How many chunks have been stored: that it grows says that the source is at work.
    pub(super) fn chunks(&self) -> u64 {
        *self.stored.borrow()
    }

    /// Completes when the store takes no more, with the reason. The link's own end is
    /// not one: the control stream says why.
    pub(super) fn refusal(&self) -> impl Future<Output = String> + use<> {
        let mut refused = self.refused.clone();
        async move {
            let why = refused.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
            match why {
                Some(why) => why,
                None => std::future::pending().await,
            }
        }
    }
}

impl Drop for PageIntake {
    fn drop(&mut self) {
        self.task.abort();
    }
}
