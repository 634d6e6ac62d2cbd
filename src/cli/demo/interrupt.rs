//! Ctrl-C in a demo: its hosts end, with everything in them, and then it does.

use anyhow::{Result, bail};
use ferry_lab::hosts::Lab;
use std::process::exit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a demo.
const ENDS: [SignalKind; 3] = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];

/// How far the thread that hears of a signal may be behind what the signal did elsewhere.
const ABREAST: Duration = Duration::from_millis(300);

/// Waits for a signal on a thread of its own.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Mutex<Standing>>);

#[derive(Default)]
struct Standing {
    lab: Weak<Lab>,
    /// The signal that came.
    came: Option<i32>,
}

impl Interrupt {
    /// From now on a signal ends the lab that there is, and the program.
    pub fn watch() -> Result<Interrupt> {
        let interrupt = Interrupt::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let signals = {
            let _inside = runtime.enter();
            ENDS.into_iter()
                .map(|kind| Ok((kind.as_raw_value(), signal(kind)?)))
                .collect::<Result<Vec<_>>>()?
        };
        let watched = interrupt.clone();
        std::thread::Builder::new().name("interrupt".into()).spawn(move || {
            let number = runtime.block_on(first(signals));
            watched.end(number)
        })?;
        Ok(interrupt)
    }

    /// Makes a lab that a signal will end: also one that comes while it is made.
    pub fn lab(&self, make: impl FnOnce() -> Result<Lab>) -> Result<Arc<Lab>> {
        let mut standing = self.standing();
        if standing.came.is_some() {
            bail!("interrupted");
        }
        let lab = Arc::new(make()?);
        standing.lab = Arc::downgrade(&lab);
        Ok(lab)
    }

    /// What a demo's end means: nothing, once a signal has come, since a demo whose
    /// hosts are gone fails. Then this does not return.
    pub fn unless_interrupted<T>(&self, result: Result<T>) -> Result<T> {
        // Ctrl-C goes to the hosts' processes too, and their end may be seen first.
        let patience = if result.is_err() { ABREAST } else { Duration::ZERO };
        let deadline = Instant::now() + patience;
        loop {
            if let Some(number) = self.standing().came {
                exit(128 + number)
            }
            if Instant::now() >= deadline {
                return result;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&self, number: i32) -> ! {
        // Held to the end, so that who asks meanwhile waits for the hosts' end.
        let mut standing = self.standing();
        standing.came = Some(number);
        if let Some(lab) = standing.lab.upgrade() {
            lab.power_off();
        }
        eprintln!("interrupted: both hosts and all that ran on them are gone");
        exit(128 + number)
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of the first signal that comes.
async fn first(mut signals: Vec<(i32, Signal)>) -> i32 {
    std::future::poll_fn(|context| {
        let came = signals
            .iter_mut()
            .find_map(|(number, signal)| signal.poll_recv(context).is_ready().then_some(*number));
        came.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
