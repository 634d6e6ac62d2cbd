//! What a demo moves: the workload that checks itself, or a real server; each with
//! clients on open connections that check every reply.

use super::stage::SERVICE;
use anyhow::{Context, Result, bail, ensure};
use ferry_engine::report::ClientReport;
use ferry_lab::apps::load::{Load, LoadResult};
use ferry_lab::apps::nginx::{self, Http, Workers};
use ferry_lab::apps::redis::{self, Redis, RedisLoad};
use ferry_lab::hosts::{Host, Lab, Program};
use ferry_lab::probe::Probe;
use ferry_lab::workload::Client;
use ferry_transport::units::{ByteRate, Bytes};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Connections under load.
const CLIENTS: u32 = 4;
/// How long a program may take to serve.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long what passes over all of its memory may take.
const LONG: Duration = Duration::from_secs(300);
/// nobody: what redis-server runs as.
const NOBODY: (u32, u32) = (65534, 65534);

/// What is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum App {
    /// The built-in workload, which knows what each of its pages must hold.
    Workload,
    /// redis-server with a data set, clients counting and writing.
    Redis,
    /// nginx with keep-alive clients.
    Nginx,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub memory: Bytes,
    pub dirty_rate: ByteRate,
    pub working_set: Bytes,
    pub processes: u32,
}

/// A program on the source, and its clients.
pub trait Subject {
    /// Its first process.
    fn pid(&self) -> i32;

    /// Begins traffic on connections that then stay open.
    fn begin(&mut self, client: &Host) -> Result<()>;

    /// Ends the traffic, and compares what the program holds with what it must.
    fn end(&mut self, client: &Host) -> Result<Seen>;
}

/// What a subject's clients saw.
pub struct Seen {
    pub client: ClientReport,
    /// What was compared.
    pub compared: String,
    /// What was wrong: nothing, usually.
    pub wrong: Vec<String>,
}

impl App {
    /// Ends early where the program is missing. Nothing is installed.
    pub fn need(self) -> Result<()> {
        let (program, package) = match self {
            App::Workload => return Ok(()),
            App::Redis => (redis::SERVER, "redis-server"),
            App::Nginx => (nginx::SERVER, "nginx-light"),
        };
        if !Path::new(program).exists() {
            bail!("{program} is not installed: `apt-get install {package}`, or `scripts/install-test-apps`");
        }
        Ok(())
    }

    /// Starts it on the source and waits until it serves what it is to hold.
    pub fn start(self, lab: &Lab, size: Size) -> Result<Box<dyn Subject>> {
        Ok(match self {
            App::Workload => Box::new(SelfChecking::start(lab, size)?),
            App::Redis => Box::new(RedisServer::start(lab, size.memory)?),
            App::Nginx => Box::new(NginxServer::start(lab)?),
        })
    }
}

/// `ferry workload`.
struct SelfChecking {
    pid: i32,
    probe: Option<Probe>,
}

impl SelfChecking {
    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(SERVICE), 7000);

    fn start(lab: &Lab, size: Size) -> Result<SelfChecking> {
        eprintln!("a workload of {} that dirties {} on the source", size.memory, size.dirty_rate);
        let own = std::env::current_exe()?.display().to_string();
        let workload = lab.source().spawn(
            Program::new(own)
                .args(["workload", "--listen", &Self::ADDRESS.to_string()])
                .args(["--memory", &size.memory.0.to_string()])
                .args(["--dirty-rate", &size.dirty_rate.0.to_string()])
                .args(["--working-set", &size.working_set.0.to_string()])
                .args(["--processes", &size.processes.to_string()]),
        )?;
        let filled = || Client::connect(Self::ADDRESS, PATIENCE)?.wait_filled(LONG);
        lab.client().enter(filled)??;
        Ok(SelfChecking { pid: workload.pid, probe: None })
    }
}

impl Subject for SelfChecking {
    fn pid(&self) -> i32 {
        self.pid
    }

    fn begin(&mut self, client: &Host) -> Result<()> {
        self.probe = Some(Probe::start_in(client, Self::ADDRESS, CLIENTS, Duration::from_millis(1))?);
        Ok(())
    }

    fn end(&mut self, client: &Host) -> Result<Seen> {
        let seen = self.probe.take().context("no probe runs")?.stop();
        // Every page is checked where the workload now is.
        let checked = client.enter(|| Client::connect(Self::ADDRESS, PATIENCE)?.check())??;
        let mut wrong = seen.messages.clone();
        if !seen.is_clean() {
            wrong.push(format!(
                "{} replies lost, {} repeated, {} out of order, {} connections broken",
                seen.lost, seen.repeated, seen.reordered, seen.errors
            ));
        }
        if checked.errors > 0 || checked.checked == 0 {
            wrong.push(format!("{} of {} pages are wrong", checked.errors, checked.checked));
        }
        let client = ClientReport {
            longest_gap_ms: seen.longest_gap_ms,
            operations: seen.operations,
            lost: seen.lost + seen.repeated + seen.reordered + seen.errors,
        };
        Ok(Seen { client, compared: format!("all {} pages were checked there", checked.checked), wrong })
    }
}

/// redis-server; its data set's digest is taken while no client writes.
struct RedisServer {
    pid: i32,
    control: Redis,
    keys: u64,
    digest: String,
    load: Option<Load>,
}

impl RedisServer {
    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(SERVICE), 6379);
    /// Commands per second of each connection.
    const RATE: f64 = 2500.0;

    fn start(lab: &Lab, memory: Bytes) -> Result<RedisServer> {
        eprintln!("redis-server with {memory} of data on the source");
        let program = redis::server(Self::ADDRESS).user(NOBODY.0, NOBODY.1).stderr("/srv/redis.err");
        let server = lab.source().spawn(program)?;
        let mut control = serving(lab.client(), || Redis::connect(Self::ADDRESS))?;
        control.set_patience(LONG)?;
        let keys = control.populate(memory)?;
        let digest = control.digest()?;
        Ok(RedisServer { pid: server.pid, control, keys, digest, load: None })
    }
}

impl Subject for RedisServer {
    fn pid(&self) -> i32 {
        self.pid
    }

    fn begin(&mut self, client: &Host) -> Result<()> {
        let connect = || (0..CLIENTS).map(|name| RedisLoad::connect(Self::ADDRESS, name)).collect();
        let connections: Vec<RedisLoad> = client.enter(|| -> Result<_> { connect() })??;
        self.load = Some(Load::start(connections, Self::RATE));
        Ok(())
    }

    fn end(&mut self, _: &Host) -> Result<Seen> {
        let seen = self.load.take().context("no client runs")?.stop();
        let mut wrong = complaints(&seen);
        // On the connection that was open all the way. What the clients wrote they
        // have read back; without it the data set must be what it was.
        self.control.forget_load(0..CLIENTS)?;
        let digest = self.control.digest()?;
        if digest != self.digest {
            wrong.push(format!("the data set's digest is {digest}, and was {}", self.digest));
        }
        let compared = format!("DEBUG DIGEST of {} keys: {digest} there, {} here", self.keys, self.digest);
        Ok(Seen { client: client_report(&seen), compared, wrong })
    }
}

/// nginx; what it serves is compared byte for byte.
struct NginxServer {
    pid: i32,
    content: Vec<u8>,
    control: Http,
    load: Option<Load>,
}

impl NginxServer {
    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(SERVICE), 8080);
    /// Requests per second of each connection.
    const RATE: f64 = 500.0;

    fn start(lab: &Lab) -> Result<NginxServer> {
        eprintln!("nginx with two workers on the source");
        let (program, content) = nginx::server(lab.source(), Self::ADDRESS, Workers::Nobody)?;
        let server = lab.source().spawn(program)?;
        let control = serving(lab.client(), || Http::connect(Self::ADDRESS))?;
        Ok(NginxServer { pid: server.pid, content, control, load: None })
    }
}

impl Subject for NginxServer {
    fn pid(&self) -> i32 {
        self.pid
    }

    fn begin(&mut self, client: &Host) -> Result<()> {
        ensure!(self.control.get(nginx::CONTENT)? == self.content, "nginx serves something else");
        let connect = || (0..CLIENTS).map(|_| Http::connect(Self::ADDRESS)).collect();
        let connections: Vec<Http> = client.enter(|| -> Result<_> { connect() })??;
        self.load = Some(Load::start(connections, Self::RATE));
        Ok(())
    }

    fn end(&mut self, _: &Host) -> Result<Seen> {
        let seen = self.load.take().context("no client runs")?.stop();
        let mut wrong = complaints(&seen);
        if self.control.get(nginx::CONTENT)? != self.content {
            wrong.push("a file is served wrong".into());
        }
        let compared = format!("a file of {} bytes was read again there", self.content.len());
        Ok(Seen { client: client_report(&seen), compared, wrong })
    }
}

/// Connects in the client's network once the program serves.
fn serving<T: Send>(client: &Host, connect: impl Fn() -> Result<T> + Sync) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.enter(&connect)? {
            Ok(connection) => return Ok(connection),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context("the program does not serve"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn complaints(seen: &LoadResult) -> Vec<String> {
    let mut wrong = seen.errors.clone();
    if seen.operations == 0 {
        wrong.push("no client had a reply".into());
    }
    wrong
}

fn client_report(seen: &LoadResult) -> ClientReport {
    ClientReport {
        longest_gap_ms: ferry_engine::report::ms(seen.longest_gap),
        operations: seen.operations,
        lost: seen.errors.len() as u64,
    }
}
