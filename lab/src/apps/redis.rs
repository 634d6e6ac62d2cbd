//! redis-server as a workload, and a small RESP client (its protocol) that checks
//! every reply.

use super::load::{Operation, connect};
use crate::hosts::Program;
use anyhow::{Result, bail, ensure};
use ferry_transport::units::Bytes;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Where Debian's package puts the server.
pub const SERVER: &str = "/usr/bin/redis-server";
/// Bytes of each value of [`Redis::populate`]d data.
const VALUE: u64 = 1000;

/// The server, writing no file, with the debug commands that show its data set.
pub fn server(address: SocketAddr) -> Program {
    Program::new(SERVER)
        .args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()])
        .args(["--save", "", "--appendonly", "no", "--protected-mode", "no"])
        .args(["--enable-debug-command", "yes", "--dir", "/srv"])
}

/// A reply of the kinds that are needed here.
#[derive(Debug, PartialEq, Eq)]
pub enum Resp {
    /// A status, such as OK.
    Simple(String),
    /// A number.
    Integer(i64),
    /// A value.
    Bulk(Vec<u8>),
}

/// One connection.
#[derive(Debug)]
pub struct Redis(BufReader<TcpStream>);

impl Redis {
    /// Connects.
    ///
    /// # Errors
    /// As the socket.
    pub fn connect(address: SocketAddr) -> Result<Redis> {
        Ok(Redis(BufReader::with_capacity(16 << 10, connect(address)?)))
    }

    /// How long to wait for a reply.
    ///
    /// # Errors
    /// As the socket.
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        Ok(self.0.get_ref().set_read_timeout(Some(patience))?)
    }

    /// One command and its reply.
    ///
    /// # Errors
    /// When the connection broke, or the server says that the command is wrong.
    pub fn command(&mut self, words: &[&str]) -> Result<Resp> {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.0.get_mut().write_all(text.as_bytes())?;
        let mut line = String::new();
        ensure!(self.0.read_line(&mut line)? > 0, "the connection was closed");
        let line = line.trim_end();
        let Some(kind) = line.chars().next() else { bail!("empty reply") };
        match (kind, &line[1..]) {
            ('+', rest) => Ok(Resp::Simple(rest.to_string())),
            (':', rest) => Ok(Resp::Integer(rest.parse()?)),
            ('$', rest) => {
                let length: usize = rest.parse()?;
                ensure!(length < 64 << 20, "a reply of {length} bytes");
                let mut bytes = vec![0; length + 2];
                self.0.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Ok(Resp::Bulk(bytes))
            }
            _ => bail!("reply `{line}` to {words:?}"),
        }
    }

    /// Makes keys until about this much memory is used; returns how many.
    ///
    /// # Errors
    /// As [`Redis::command`].
    pub fn populate(&mut self, memory: Bytes) -> Result<u64> {
        let keys = (memory.0 / VALUE).max(1);
        let reply = self.command(&["DEBUG", "POPULATE", &keys.to_string(), "data", &VALUE.to_string()])?;
        ensure!(reply == Resp::Simple("OK".into()), "DEBUG POPULATE: {reply:?}");
        Ok(keys)
    }

    /// The digest of the whole data set.
    ///
    /// # Errors
    /// As [`Redis::command`].
    pub fn digest(&mut self) -> Result<String> {
        match self.command(&["DEBUG", "DIGEST"])? {
            Resp::Simple(digest) => Ok(digest),
            other => bail!("DEBUG DIGEST: {other:?}"),
        }
    }

    /// Removes what [`RedisLoad`]s of these names wrote.
    ///
    /// # Errors
    /// As [`Redis::command`].
    pub fn forget_load(&mut self, names: std::ops::Range<u32>) -> Result<()> {
        for name in names {
            let mut keys = vec![format!("load:counter:{name}")];
            keys.extend((0..KEYS).map(|key| format!("load:{name}:{key}")));
            let words: Vec<&str> = std::iter::once("DEL").chain(keys.iter().map(String::as_str)).collect();
            self.command(&words)?;
        }
        Ok(())
    }
}

/// Keys that each [`RedisLoad`] writes, its counter aside.
const KEYS: u64 = 333;

/// Commands of one connection by turns: a counter of its own, which shows a
/// lost or repeated command, and a value written and read back.
#[derive(Debug)]
pub struct RedisLoad {
    redis: Redis,
    name: u32,
    /// `INCR`s sent.
    increments: i64,
    written: String,
}

impl RedisLoad {
    /// Connects; the name keeps its keys apart from those of other connections.
    ///
    /// # Errors
    /// As the socket.
    pub fn connect(address: SocketAddr, name: u32) -> Result<RedisLoad> {
        Ok(RedisLoad { redis: Redis::connect(address)?, name, increments: 0, written: String::new() })
    }
}

impl Operation for RedisLoad {
    fn step(&mut self, number: u64) -> Result<()> {
        // The same key for a SET and the GET after it.
        let key = format!("load:{}:{}", self.name, number / 3 % KEYS);
        match number % 3 {
            0 => {
                self.increments += 1;
                let reply = self.redis.command(&["INCR", &format!("load:counter:{}", self.name)])?;
                ensure!(reply == Resp::Integer(self.increments), "INCR {}: {reply:?}", self.increments);
            }
            1 => {
                self.written = format!("{number}-{key}");
                let reply = self.redis.command(&["SET", &key, &self.written])?;
                ensure!(reply == Resp::Simple("OK".into()), "SET: {reply:?}");
            }
            _ => {
                let reply = self.redis.command(&["GET", &key])?;
                ensure!(
                    reply == Resp::Bulk(self.written.clone().into_bytes()),
                    "GET: {reply:?} not {}",
                    self.written
                );
            }
        }
        Ok(())
    }
}
