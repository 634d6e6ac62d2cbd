//! The engine's HTTP API on its unix socket, blocking.
//!
//! Paths carry no version: the engine then answers in its newest one, and what it
//! says is passed on as it is.

use serde_json::Value;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::{Response, StatusCode};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Agent, Body, SendBody};

/// Where an engine listens unless it was told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// The longest answer that is read, images apart.
const MAX_ANSWER: u64 = 16 << 20;
/// How long the engine may take for what needs no waiting.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the engine did not do.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It refused.
    #[error("Docker refused ({status}): {message}")]
    Refused {
        /// HTTP's number: 404 where there is no such thing, 409 where it is in the way.
        status: u16,
        /// Its own words.
        message: String,
    },
    /// It cannot be reached, or said something that cannot be read.
    #[error("Docker at {socket}: {what}")]
    Unreachable {
        /// Where it was asked.
        socket: PathBuf,
        /// What happened.
        what: String,
    },
}

impl ApiError {
    /// Whether what was asked about is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, ApiError::Refused { status: 404, .. })
    }
}

/// An engine that can be asked.
#[derive(Clone, Debug)]
pub struct Api {
    agent: Agent,
    socket: PathBuf,
}

/// How long an answer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// As long as is usual.
    Briefly,
    /// As long as it takes: the caller ends the wait by ending what is waited for.
    Forever,
}

impl Api {
    /// The engine behind this socket. Asks nothing yet.
    pub fn at(socket: &Path) -> Api {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // A connection that the engine closed meanwhile would fail the next question.
            .max_idle_connections(0)
            .build();
        let agent = Agent::with_parts(config, Socket(socket.to_owned()), DefaultResolver::default());
        Api { agent, socket: socket.to_owned() }
    }

    /// Where it is asked.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for something.
    pub fn get(&self, path: &str) -> Result<Value, ApiError> {
        let request = self.agent.get(url(path)).config().timeout_global(Some(PATIENCE)).build();
        self.read_json(self.checked(request.call())?)
    }

    /// Has something done.
    pub fn post(&self, path: &str, body: &Value, waiting: Waiting) -> Result<Value, ApiError> {
        let patience = (waiting == Waiting::Briefly).then_some(PATIENCE);
        let request = self.agent.post(url(path)).config().timeout_global(patience).build();
        let request = request.header("Content-Type", "application/json");
        let answer = match body {
            Value::Null => request.send_empty(),
            body => request.send(body.to_string()),
        };
        self.read_json(self.checked(answer)?)
    }

    /// Has something removed.
    pub fn delete(&self, path: &str) -> Result<(), ApiError> {
        let request = self.agent.delete(url(path)).config().timeout_global(Some(PATIENCE)).build();
        self.checked(request.call()).map(drop)
    }

    /// Asks for a stream of bytes.
    pub fn download(&self, path: &str) -> Result<impl Read + Send + use<>, ApiError> {
        let answer = self.checked(self.agent.get(url(path)).call())?;
        Ok(answer.into_body().into_with_config().limit(u64::MAX).reader())
    }

    /// Gives a stream of bytes, to its end; what the engine says of it.
    pub fn upload(&self, path: &str, kind: &str, mut content: impl Read) -> Result<String, ApiError> {
        let request = self.agent.post(url(path)).header("Content-Type", kind);
        let mut answer = self.checked(request.send(SendBody::from_reader(&mut content)))?;
        self.read_text(&mut answer)
    }

    fn checked(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, ApiError> {
        let mut answer = answer.map_err(|error| self.unreachable(&error))?;
        // 304: it is so already.
        if answer.status().is_success() || answer.status() == StatusCode::NOT_MODIFIED {
            return Ok(answer);
        }
        let text = self.read_text(&mut answer)?;
        let said = serde_json::from_str::<Value>(&text).ok();
        let message = said.and_then(|said| Some(said.get("message")?.as_str()?.to_owned())).unwrap_or(text);
        Err(ApiError::Refused { status: answer.status().as_u16(), message: message.trim().to_owned() })
    }

    fn read_json(&self, mut answer: Response<Body>) -> Result<Value, ApiError> {
        let text = self.read_text(&mut answer)?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|error| self.unreachable(&error))
    }

    fn read_text(&self, answer: &mut Response<Body>) -> Result<String, ApiError> {
        let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        let body = body.map_err(|error| self.unreachable(&error))?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    fn unreachable(&self, error: &dyn std::fmt::Display) -> ApiError {
        ApiError::Unreachable { socket: self.socket.clone(), what: error.to_string() }
    }
}

/// An address that needs no resolving: where it leads to is the socket's matter.
fn url(path: &str) -> String {
    format!("http://127.0.0.1{path}")
}

/// A name as part of a path or a query.
pub fn escaped(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Connects to a unix socket, whatever the address says.
#[derive(Debug)]
struct Socket(PathBuf);

impl<In: Transport> Connector<In> for Socket {
    type Out = Stream;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<In>,
    ) -> Result<Option<Stream>, ureq::Error> {
        let stream = UnixStream::connect(&self.0)?;
        let (input, output) = (details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Stream { stream, buffers: LazyBuffers::new(input, output) }))
    }
}

#[derive(Debug)]
struct Stream {
    stream: UnixStream,
    buffers: LazyBuffers,
}

impl Transport for Stream {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.set_write_timeout(timeout.not_zero().map(|limit| *limit))?;
        self.stream.write_all(&self.buffers.output()[..amount]).map_err(|error| told(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.set_read_timeout(timeout.not_zero().map(|limit| *limit))?;
        let amount =
            self.stream.read(self.buffers.input_append_buf()).map_err(|error| told(error, timeout))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // No connection is used twice.
        false
    }
}

fn told(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// An engine that says one thing to whoever asks, and what it was asked.
    fn answering(text: &'static str) -> (tempfile::TempDir, Api, std::thread::JoinHandle<String>) {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        (place, Api::at(&socket), asked)
    }

    #[test]
    fn an_answer_is_read_and_a_refusal_is_told_in_dockers_words() {
        let (_place, api, asked) = answering("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}");
        assert_eq!(api.get("/info?x=1").unwrap(), serde_json::json!({ "a": 1 }));
        assert!(asked.join().unwrap().starts_with("GET /info?x=1 HTTP/1.1\r\n"));

        let refusal =
            "HTTP/1.1 404 Not Found\r\nContent-Length: 30\r\n\r\n{\"message\":\"no such thing\"}   ";
        let (_place, api, _asked) = answering(refusal);
        let error = api.post("/x", &Value::Null, Waiting::Briefly).unwrap_err();
        assert!(error.is_missing() && error.to_string().contains("no such thing"), "{error}");
    }

    #[test]
    fn nonsense_and_silence_are_errors() {
        for nonsense in ["", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{{{", "garbage\r\n\r\n"] {
            let (_place, api, _asked) = answering(nonsense);
            assert!(matches!(api.get("/info"), Err(ApiError::Unreachable { .. })), "{nonsense:?}");
        }
        assert!(Api::at(Path::new("/nonexistent/docker.sock")).get("/info").is_err());
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("a/b c?d&e"), "a%2Fb%20c%3Fd%26e");
        assert_eq!(escaped("name_1.2-x"), "name_1.2-x");
    }
}
