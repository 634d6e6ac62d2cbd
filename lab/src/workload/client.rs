//! A client for asking a workload how it stands.

use super::wire::{Reply, Request};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// One connection to a workload.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    sequence: u64,
}

impl Client {
    /// Connects, trying again until `patience` is over: the workload may still
    /// be starting.
    ///
    /// # Errors
    /// The last attempt's.
    pub fn connect(address: SocketAddr, patience: Duration) -> io::Result<Client> {
        let deadline = Instant::now() + patience;
        loop {
            match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(Client { stream, sequence: 0 });
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// How long to wait for a reply; for ever unless set.
    ///
    /// # Errors
    /// As the socket.
    pub fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(patience)
    }

    /// How things stand.
    ///
    /// # Errors
    /// As the socket, or when the reply is not to this request.
    pub fn count(&mut self) -> io::Result<Reply> {
        self.sequence += 1;
        self.ask(Request::Count { sequence: self.sequence })
    }

    /// Has all memory of all processes checked; [`Reply::errors`] says how
    /// many pages were ever found wrong.
    ///
    /// # Errors
    /// As the socket, or when the reply is not to this request.
    pub fn check(&mut self) -> io::Result<Reply> {
        self.sequence += 1;
        self.ask(Request::Check { sequence: self.sequence })
    }

    /// The longest time that a process was kept from running since this was last
    /// asked (by any client); zero unless it takes its pulse.
    ///
    /// # Errors
    /// As the socket, or when the reply is not to this request.
    pub fn longest_gap(&mut self) -> io::Result<Duration> {
        self.sequence += 1;
        let reply = self.ask(Request::Pulse { sequence: self.sequence })?;
        Ok(Duration::from_nanos(reply.gap))
    }

    /// Waits until every process has filled its memory.
    ///
    /// # Errors
    /// As [`Client::count`], or `TimedOut`.
    pub fn wait_filled(&mut self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let reply = self.count()?;
            if reply.filled == reply.processes {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the workload is still filling its memory",
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn ask(&mut self, request: Request) -> io::Result<Reply> {
        request.write(&mut self.stream)?;
        let reply = Reply::read(&mut self.stream)?;
        if (reply.sequence, reply.served) == (self.sequence, self.sequence) {
            Ok(reply)
        } else {
            let what =
                format!("reply {} ({} served) to request {}", reply.sequence, reply.served, self.sequence);
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }

    /// The bare connection.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// Sends request `sequence` and reads whatever reply comes.
pub(crate) fn exchange(stream: &mut TcpStream, sequence: u64) -> io::Result<Reply> {
    Request::Count { sequence }.write(stream)?;
    Reply::read(stream)
}
