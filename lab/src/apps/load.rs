//! Clients on open connections that check every reply.

use anyhow::Result;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One connection that can do one checked operation at a time.
pub trait Operation: Send + 'static {
    /// One request and its reply, checked. `number` counts from 1.
    ///
    /// # Errors
    /// When the connection broke or the reply is wrong: the connection is then over.
    fn step(&mut self, number: u64) -> Result<()>;
}

/// What load clients saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadResult {
    /// Replies that were right.
    pub operations: u64,
    /// The longest time between two replies on one connection.
    pub longest_gap: Duration,
    /// What went wrong: at most one line a connection, which ends with it.
    pub errors: Vec<String>,
}

impl LoadResult {
    /// Whether there was traffic, and every reply was right.
    pub fn is_right(&self) -> bool {
        self.errors.is_empty() && self.operations > 0
    }
}

/// Connections under load, each on a thread.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<LoadResult>>,
    /// Replies so far, of each connection.
    replies: Vec<Arc<AtomicU64>>,
}

impl Load {
    /// Drives each connection at `per_second` operations.
    pub fn start<O: Operation>(connections: Vec<O>, per_second: f64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut threads, mut replies) = (Vec::new(), Vec::new());
        for connection in connections {
            let (stop, count) = (stop.clone(), Arc::new(AtomicU64::new(0)));
            replies.push(count.clone());
            threads.push(std::thread::spawn(move || drive(connection, per_second, &stop, &count)));
        }
        Load { stop, threads, replies }
    }

    /// Waits until every connection has had a reply to a request that it sent from now
    /// on. `false` if one broke, or had none within `patience`: a client whose request
    /// was lost sends it again at growing intervals, which after an outage of some
    /// seconds are as long.
    pub fn goes_on(&self, patience: Duration) -> bool {
        let replies = || self.replies.iter().map(|count| count.load(Ordering::Relaxed));
        // The next reply may be to a request that was under way.
        let wanted: Vec<u64> = replies().map(|count| count + 2).collect();
        let deadline = Instant::now() + patience;
        while !replies().zip(&wanted).all(|(count, wanted)| count >= *wanted) {
            if !self.is_well() || Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Whether every connection still works.
    pub fn is_well(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops after the replies outstanding and says what was seen.
    pub fn stop(self) -> LoadResult {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = LoadResult::default();
        for thread in self.threads {
            match thread.join() {
                Ok(one) => {
                    all.operations += one.operations;
                    all.longest_gap = all.longest_gap.max(one.longest_gap);
                    all.errors.extend(one.errors);
                }
                Err(_) => all.errors.push("a load thread panicked".into()),
            }
        }
        all
    }
}

fn drive(
    mut connection: impl Operation,
    per_second: f64,
    stop: &AtomicBool,
    replies: &AtomicU64,
) -> LoadResult {
    let mut result = LoadResult::default();
    let start = Instant::now();
    let mut last = start;
    // Operations that a frozen connection missed are not caught up.
    let mut due = 0.0;
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = connection.step(result.operations + 1) {
            result.errors.push(format!("operation {}: {error:#}", result.operations + 1));
            break;
        }
        result.operations += 1;
        replies.store(result.operations, Ordering::Relaxed);
        let now = Instant::now();
        result.longest_gap = result.longest_gap.max(now - last);
        last = now;
        due = f64::max(due + 1.0 / per_second, start.elapsed().as_secs_f64() - 0.05);
        let ahead = due - start.elapsed().as_secs_f64();
        if ahead > 0.0005 {
            std::thread::sleep(Duration::from_secs_f64(ahead));
        }
    }
    result
}

/// Connects with a long patience for replies.
///
/// # Errors
/// As the socket.
pub fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}
