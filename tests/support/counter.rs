//! A client of tests/apps/counter.{py,js}, and what a load must have seen.

use anyhow::{Result, ensure};
use ferry_lab::apps::load::{Load, Operation, connect};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

/// One connection.
pub struct Counter(BufReader<TcpStream>);

impl Counter {
    pub fn connect(address: SocketAddr) -> Result<Counter> {
        Ok(Counter(BufReader::new(connect(address)?)))
    }

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

/// Ends a load. Panics on any wrong or missing reply.
pub fn finish(load: Load) {
    let seen = load.stop();
    println!("  {} operations, longest gap {:.1} ms", seen.operations, seen.longest_gap.as_secs_f64() * 1e3);
    assert!(seen.is_right(), "{seen:?}");
}
