//! Clients on open connections that check every reply.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One connection that can do one checked operation at a time.
pub trait Operation: Send + 'static {
    /// One request and its reply, checked. `number` counts from 1.
    fn step(&mut self, number: u64) -> Result<()>;
}

/// What a load client saw.
#[derive(Debug, Default)]
pub struct LoadResult {
    pub operations: u64,
    pub longest_gap: Duration,
    pub errors: Vec<String>,
}

/// Connections under load, each on a thread.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<LoadResult>>,
}

impl Load {
    /// Drives each connection at `per_second` operations.
    pub fn start<O: Operation>(connections: Vec<O>, per_second: f64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = connections
            .into_iter()
            .map(|connection| {
                let stop = stop.clone();
                std::thread::spawn(move || drive(connection, per_second, &stop))
            })
            .collect();
        Load { stop, threads }
    }

    /// Whether every connection still works.
    pub fn is_well(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops and says what was seen. Panics on any wrong or missing reply.
    pub fn finish(self) -> LoadResult {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = LoadResult::default();
        for thread in self.threads {
            let one = thread.join().expect("a load thread");
            all.operations += one.operations;
            all.longest_gap = all.longest_gap.max(one.longest_gap);
            all.errors.extend(one.errors);
        }
        println!(
            "  {} operations, longest gap {:.1} ms",
            all.operations,
            all.longest_gap.as_secs_f64() * 1e3
        );
        assert!(all.errors.is_empty(), "{all:?}");
        assert!(all.operations > 0);
        all
    }
}

fn drive(mut connection: impl Operation, per_second: f64, stop: &AtomicBool) -> LoadResult {
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
pub fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

/// A client of tests/apps/counter.{py,js}.
pub struct Counter(BufReader<TcpStream>);

impl Counter {
    pub fn connect(address: SocketAddr) -> Result<Counter> {
        Ok(Counter(BufReader::new(connect(address)?)))
    }
}

impl Counter {
    /// Has the server do something (see the script), and waits until it is done.
    pub fn deed(&mut self, deed: &str) -> Result<()> {
        self.0.get_mut().write_all(format!("do {deed}\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        ensure!(line == "done\n", "reply `{}` to {deed}", line.trim());
        Ok(())
    }
}

impl Operation for Counter {
    fn step(&mut self, number: u64) -> Result<()> {
        self.0.get_mut().write_all(format!("{number}\n").as_bytes())?;
        let mut line = String::new();
        ensure!(self.0.read_line(&mut line)? > 0, "the connection was closed");
        ensure!(line == format!("{number} {number} ok\n"), "reply `{}` to {number}", line.trim());
        Ok(())
    }
}

/// A keep-alive client of nginx as tests/apps/nginx.conf sets it up.
pub struct Http(BufReader<TcpStream>);

impl Http {
    pub fn connect(address: SocketAddr) -> Result<Http> {
        Ok(Http(BufReader::new(connect(address)?)))
    }

    /// One GET; returns the body.
    pub fn get(&mut self, path: &str) -> Result<Vec<u8>> {
        self.0.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes())?;
        let mut length = None;
        let mut status = String::new();
        ensure!(self.0.read_line(&mut status)? > 0, "the connection was closed");
        ensure!(status.starts_with("HTTP/1.1 200"), "status {status}");
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "the connection was closed in a header");
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = Some(value.trim().parse::<usize>()?);
            }
        }
        let length = length.context("no content-length")?;
        ensure!(length < 64 << 20, "a body of {length} bytes");
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(body)
    }
}

impl Operation for Http {
    fn step(&mut self, number: u64) -> Result<()> {
        let body = self.get(&format!("/echo?n={number}"))?;
        let wanted = format!("request {number} of connection {number}\n");
        ensure!(body == wanted.as_bytes(), "body `{}` instead of `{wanted}`", String::from_utf8_lossy(&body));
        Ok(())
    }
}
