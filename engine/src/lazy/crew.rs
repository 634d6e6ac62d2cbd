//! The fill threads: a batch for each space in turn, until told to stop.

use super::fill::{Space, Step};
use super::plan::FillOptions;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const FILL_THREADS: usize = 2;
/// How long a fill thread that found nothing to do waits.
const IDLE: Duration = Duration::from_micros(300);

/// The fill threads and what they share with the main loop.
#[derive(Debug)]
pub(super) struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    spaces: Mutex<Vec<Arc<Space>>>,
    stop: AtomicBool,
    /// An eventfd: tells the main loop that a space lacks nothing any more.
    wake: Arc<std::fs::File>,
    options: FillOptions,
}

impl Crew {
    /// Nobody works yet.
    pub(super) fn new(spaces: Vec<Arc<Space>>, wake: Arc<std::fs::File>, options: FillOptions) -> Crew {
        let stop = AtomicBool::new(false);
        let shared = Shared { spaces: Mutex::new(spaces), stop, wake, options };
        Crew { shared: Arc::new(shared), threads: Vec::new() }
    }

    pub(super) fn is_at_work(&self) -> bool {
        !self.threads.is_empty()
    }

    pub(super) fn begin(&mut self) -> io::Result<()> {
        for _ in 0..FILL_THREADS {
            let shared = Arc::clone(&self.shared);
            self.threads.push(std::thread::Builder::new().spawn(move || shared.fill())?);
        }
        Ok(())
    }

    /// Ends the threads; none is inside anything afterwards.
    pub(super) fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }

    pub(super) fn spaces(&self) -> Vec<Arc<Space>> {
        self.shared.spaces()
    }

    pub(super) fn add(&self, more: impl IntoIterator<Item = Space>) {
        self.shared.lock().extend(more.into_iter().map(Arc::new));
    }

    /// Lets go of a space: closes its descriptor, once no batch is on its way to it.
    pub(super) fn remove(&self, space: &Arc<Space>) {
        self.shared.lock().retain(|other| !Arc::ptr_eq(other, space));
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Space>>> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spaces(&self) -> Vec<Arc<Space>> {
        self.lock().clone()
    }

    fn fill(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let mut idle = true;
            for space in self.spaces() {
                match space.step() {
                    Ok(Step::Progress) => idle = false,
                    Ok(Step::Blocked) => {}
                    Ok(Step::Complete) => {
                        // A full counter wakes as well.
                        let _ = io::Write::write(&mut &*self.wake, &1u64.to_ne_bytes());
                    }
                    Err(error) => eprintln!("ferry pager: PID {}: {error}; trying again", space.pid),
                }
            }
            if idle {
                std::thread::sleep(IDLE);
            } else if !self.options.pause.is_zero() {
                std::thread::sleep(self.options.pause);
            }
        }
    }
}
