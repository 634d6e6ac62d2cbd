//! A small RESP client (the protocol of redis) that checks every reply.

use super::load::{Operation, connect};
use anyhow::{Result, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A reply of the kinds the tests need.
#[derive(Debug, PartialEq, Eq)]
pub enum Resp {
    Simple(String),
    Integer(i64),
    Bulk(Vec<u8>),
}

/// One connection.
pub struct Redis(BufReader<TcpStream>);

impl Redis {
    pub fn connect(address: SocketAddr) -> Result<Redis> {
        Ok(Redis(BufReader::with_capacity(16 << 10, connect(address)?)))
    }

    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        Ok(self.0.get_ref().set_read_timeout(Some(patience))?)
    }

    /// One command and its reply.
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

    /// The digest of the whole data set.
    pub fn digest(&mut self) -> Result<Resp> {
        self.command(&["DEBUG", "DIGEST"])
    }
}

/// Commands of one connection by turns: a counter of its own, which shows a
/// lost or repeated command, and a value written and read back.
pub struct RedisLoad {
    redis: Redis,
    name: u32,
    /// `INCR`s sent.
    increments: i64,
    written: String,
}

impl RedisLoad {
    pub fn connect(address: SocketAddr, name: u32) -> Result<RedisLoad> {
        Ok(RedisLoad { redis: Redis::connect(address)?, name, increments: 0, written: String::new() })
    }
}

impl Operation for RedisLoad {
    fn step(&mut self, number: u64) -> Result<()> {
        // The same key for a SET and the GET after it.
        let key = format!("load:{}:{}", self.name, number / 3 % 333);
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
