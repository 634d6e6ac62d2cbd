//! Running a probe: as threads of this process, or as a program of its own.

use super::measure::{Measurement, ProbeResult, combine};
use crate::hosts::Host;
use crate::workload::Client;
use crate::workload::exchange;
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a probe waits for one reply before it calls the connection broken.
const REPLY_DEADLINE: Duration = Duration::from_secs(30);
/// How long a connection is tried at the start.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// `ferry __probe`: a probing client as a program.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The workload's address.
    #[arg(long)]
    pub connect: SocketAddr,
    /// Connections, each with one request outstanding at a time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub connections: u32,
    /// The pause after each reply, in microseconds.
    #[arg(long, default_value_t = 1000)]
    pub pause_us: u64,
    /// Seconds to run; until SIGTERM or SIGINT unless given.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// The file for the result (JSON); standard output unless given.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Runs a probe as a program, until its time is over or SIGTERM or SIGINT
/// comes, and writes its [`ProbeResult`] as JSON. Must be called while the
/// process still has one thread.
///
/// # Errors
/// When it cannot connect, or cannot write the result.
pub fn main(options: &Options) -> Result<ProbeResult> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?; // before the threads, which inherit it
    let stop = SignalFd::new(&signals)?;
    let pause = Duration::from_micros(options.pause_us);
    let probe = Probe::start(options.connect, options.connections, pause)?;
    let limit = match options.seconds {
        Some(seconds) => {
            PollTimeout::try_from(Duration::try_from_secs_f64(seconds)?).unwrap_or(PollTimeout::MAX)
        }
        None => PollTimeout::NONE,
    };
    poll(&mut [PollFd::new(stop.as_fd(), PollFlags::POLLIN)], limit)?;
    let result = probe.stop();
    let text = serde_json::to_string(&result)?;
    match &options.out {
        // Under another name first, so that a reader never sees half of it.
        Some(path) => {
            let partial = path.with_extension("partial");
            std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path))
        }
        .with_context(|| path.display().to_string())?,
        None => println!("{text}"),
    }
    Ok(result)
}

/// A probe running as threads of this process.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Measurement>>,
    start: Instant,
}

impl Probe {
    /// Connects and starts measuring.
    ///
    /// # Errors
    /// When a connection cannot be made.
    pub fn start(address: SocketAddr, connections: u32, pause: Duration) -> Result<Probe> {
        let connect = |_| Client::connect(address, CONNECT_PATIENCE);
        let clients = (0..connections).map(connect).collect::<std::io::Result<Vec<_>>>();
        let clients = clients.with_context(|| format!("cannot connect to the workload at {address}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let run = |client| {
            let stop = stop.clone();
            std::thread::spawn(move || measure(client, start, pause, &stop))
        };
        let threads = clients.into_iter().map(run).collect();
        Ok(Probe { stop, threads, start })
    }

    /// As [`Probe::start`], from inside a host's network.
    ///
    /// # Errors
    /// As [`Probe::start`].
    pub fn start_in(host: &Host, address: SocketAddr, connections: u32, pause: Duration) -> Result<Probe> {
        host.enter(|| Probe::start(address, connections, pause))?
    }

    /// Ends it after the replies outstanding and says what it measured.
    pub fn stop(self) -> ProbeResult {
        self.stop.store(true, Ordering::Relaxed);
        let collect = |thread: JoinHandle<Measurement>| {
            thread.join().unwrap_or_else(|_| {
                let mut lost = Measurement::default();
                lost.error("a probe thread panicked".into());
                lost
            })
        };
        let parts = self.threads.into_iter().map(collect).collect();
        combine(parts, self.start.elapsed())
    }
}

/// One connection's loop. A connection that breaks is counted and not made
/// again: its workload promised that it would live.
fn measure(client: Client, start: Instant, pause: Duration, stop: &AtomicBool) -> Measurement {
    let mut measurement = Measurement::default();
    let mut stream = client.into_stream();
    if let Err(error) = stream.set_read_timeout(Some(REPLY_DEADLINE)) {
        measurement.error(error.to_string());
    }
    let mut last = Instant::now();
    let mut sequence = 0;
    let mut served = 0;
    while !stop.load(Ordering::Relaxed) {
        sequence += 1;
        let reply = match exchange(&mut stream, sequence) {
            Ok(reply) => reply,
            Err(error) => {
                measurement.error(format!("request {sequence}: {error}"));
                break;
            }
        };
        let now = Instant::now();
        measurement.reply(now - start, now - last);
        last = now;
        let result = &mut measurement.result;
        if reply.sequence != sequence {
            result.reordered += 1;
        }
        let counted = reply.served.wrapping_sub(served);
        match counted {
            0 => result.lost += 1,
            1 => {}
            more if more <= u64::MAX / 2 => result.repeated += more - 1,
            fewer => result.lost += fewer.wrapping_neg(),
        }
        served = reply.served;
        result.memory_errors = result.memory_errors.max(reply.errors);
        std::thread::sleep(pause);
    }
    measurement
}
