//! nginx as a workload, and a keep-alive HTTP client that checks every reply.

use super::load::{Operation, connect};
use crate::hosts::{Host, Program};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Where Debian's package puts the server.
pub const SERVER: &str = "/usr/sbin/nginx";
/// The file that it serves under `/content`.
pub const CONTENT: &str = "/content";

const DIRECTORY: &str = "/srv/nginx";
const CONFIGURATION: &str = include_str!("nginx.conf");

/// Who the workers run as; the master is root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// `nobody`, as usual.
    Nobody,
    /// `root`.
    Root,
}

/// Puts a configuration and a file to serve into the lab's shared directory.
/// Returns the server and the file's content.
///
/// # Errors
/// When a file cannot be written.
pub fn server(host: &Host, address: SocketAddr, workers: Workers) -> Result<(Program, Vec<u8>)> {
    let user = match workers {
        Workers::Nobody => "nobody nogroup",
        Workers::Root => "root",
    };
    let text = CONFIGURATION
        .replace("@USER@", user)
        .replace("@LISTEN@", &address.to_string())
        .replace("@DIRECTORY@", DIRECTORY);
    let files = format!("{DIRECTORY}/files");
    fs::create_dir_all(host.path(&files))?;
    let configuration = format!("{DIRECTORY}/nginx.conf");
    fs::write(host.path(&configuration), text)?;
    let content: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(host.path(format!("{files}{CONTENT}")), &content)?;
    let error_log = format!("{DIRECTORY}/error.log");
    let program =
        Program::new(SERVER).args(["-e", &error_log, "-c", &configuration]).stderr("/srv/nginx.err");
    Ok((program, content))
}

/// One keep-alive connection.
#[derive(Debug)]
pub struct Http(BufReader<TcpStream>);

impl Http {
    /// Connects.
    ///
    /// # Errors
    /// As the socket.
    pub fn connect(address: SocketAddr) -> Result<Http> {
        Ok(Http(BufReader::new(connect(address)?)))
    }

    /// One GET; returns the body.
    ///
    /// # Errors
    /// When the connection broke, or the answer is not a success.
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

/// Each answer repeats the request's number and the server's count of the
/// connection's requests: a lost or repeated one shows.
impl Operation for Http {
    fn step(&mut self, number: u64) -> Result<()> {
        let body = self.get(&format!("/echo?n={number}"))?;
        let wanted = format!("request {number} of connection {number}\n");
        ensure!(body == wanted.as_bytes(), "body `{}` instead of `{wanted}`", String::from_utf8_lossy(&body));
        Ok(())
    }
}
