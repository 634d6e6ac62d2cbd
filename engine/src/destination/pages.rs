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
    /// Why no more can be stored.
    broken: watch::Receiver<Option<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl PageIntake {
    pub(super) fn start(link: Arc<dyn Link>, store: Arc<PageStore>) -> PageIntake {
        let (count, stored) = watch::channel(0u64);
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
                let (store, count, report) = (Arc::clone(&into), count.clone(), report.clone());
                streams.spawn(async move {
                    loop {
                        let stored = match stream.recv().await {
                            Ok(Some(chunk)) => store.put(&chunk).map_err(|error| error.to_string()),
                            Ok(None) => return,
                            Err(error) => Err(error.to_string()),
                        };
                        if let Err(error) = stored {
                            let _ = report.send(Some(error));
                            return;
                        }
                        count.send_modify(|count| *count += 1);
                    }
                });
            }
            while streams.join_next().await.is_some() {}
        });
        PageIntake { store, stored, broken, task }
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
            let broken = self.broken.borrow().clone();
            if let Some(why) = broken {
                return Err(why);
            }
            tokio::select! {
                _ = self.stored.changed() => {}
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

    /// Why pages cannot be stored; the link's own end is not a reason.
    pub(super) fn failure(&self) -> Option<String> {
        self.broken.borrow().clone()
    }
}

impl Drop for PageIntake {
    fn drop(&mut self) {
        self.task.abort();
    }
}
