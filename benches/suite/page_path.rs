//! How fast pages travel: the page path against a bare QUIC stream of the same
//! bytes, between the same two hosts, in turn.
//!
//! The bare stream uses sockets, tuning and buffers of the same kind and size; what
//! is compared is what frames, checksums and reassembly cost. Both ends run in this
//! process, each socket in its host's network.

use crate::{median, spread};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use ferry_lab::hosts::{Lab, LabOptions};
use ferry_transport::link::{Connector, Link};
use ferry_transport::page::{MAX_CHUNK_PAGES, PAGE_SIZE, PageAddr, PageChunk, Round, Run, RunKind, SpaceId};
use ferry_transport::quic::trust::{Peer, Role};
use ferry_transport::quic::{Identity, LinkOptions, QuicConnector, QuicListener, Trust, bare};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;
use tokio::runtime::Runtime;

/// Pairs of runs.
const RUNS: usize = 5;
/// Chunks of 1 MiB in a run.
const CHUNKS: usize = 1024;

/// With so many connections; Gbit/s.
#[derive(Serialize)]
pub struct Compared {
    connections: usize,
    page_path: Vec<f64>,
    bare_stream: Vec<f64>,
    /// Of the medians.
    ratio: f64,
}

pub fn run() -> Result<Vec<Compared>> {
    let helper = Some(PathBuf::from(crate::support::rig::FERRY));
    let lab = Lab::new("page path", LabOptions { helper, ..LabOptions::default() })?;
    let runtime = Runtime::new()?;
    let state = tempfile::tempdir()?;
    let identity = Identity::load_or_create(state.path())?;
    let trust = Trust::open(state.path());
    let fingerprint = identity.fingerprint();
    trust.add(&Peer { name: "self".into(), fingerprint, role: Role::Both })?;
    let data: Bytes = rand::random_iter::<u8>().take(MAX_CHUNK_PAGES * PAGE_SIZE).collect::<Vec<_>>().into();

    println!("  {CHUNKS} MiB of incompressible pages, {RUNS} pairs, median (lowest to highest) in Gbit/s");
    let mut all = Vec::new();
    for connections in [1, 2, 4] {
        let options = LinkOptions { connections, ..LinkOptions::default() };
        let (source, destination) = (lab.source(), lab.destination());
        let address = |port| SocketAddr::from((destination.address(), port));
        // Sockets belong to the network of the thread that makes them.
        let port = 5000 + connections as u16;
        let listener = destination.enter(|| {
            let _inside = runtime.enter();
            QuicListener::bind(address(port), &identity, trust.clone(), options.clone())
        })??;
        let server = destination.enter(|| {
            let _inside = runtime.enter();
            bare::Server::bind(address(port + 1000), &identity, trust.clone(), &options)
        })??;
        let connector = QuicConnector::new(address(port), identity.clone(), trust.clone(), options.clone());
        let (here, bare) = source.enter(|| {
            runtime.block_on(async {
                let here = connector.connect().await?;
                Ok::<_, anyhow::Error>((
                    here,
                    bare::Pair::connect(&server, &identity, trust.clone(), &options).await?,
                ))
            })
        })??;
        let compared = runtime.block_on(async {
            let there = listener.accept().await.context("the listener was closed")?;
            let compared = in_turn(connections, &*here, &*there, &bare, &data).await;
            here.close("measured").await;
            compared
        })?;
        let Compared { page_path, bare_stream, ratio, .. } = &compared;
        println!(
            "  {connections} connections: page path {}, bare stream {}, ratio {ratio:.2}",
            spread(page_path),
            spread(bare_stream)
        );
        all.push(compared);
    }
    Ok(all)
}

async fn in_turn(
    connections: usize,
    here: &dyn Link,
    there: &dyn Link,
    bare: &bare::Pair,
    data: &Bytes,
) -> Result<Compared> {
    let (mut page_path, mut bare_stream) = (Vec::new(), Vec::new());
    // One of each to warm up (MTU discovery, congestion window), then in turn.
    for run in 0..=RUNS {
        let framed = send_pages(here, there, data, connections).await?;
        let plain = bare.send(data, CHUNKS).await?;
        if run > 0 {
            page_path.push(framed * 8.0 / 1e9);
            bare_stream.push(plain * 8.0 / 1e9);
        }
    }
    let ratio = median(&page_path) / median(&bare_stream);
    Ok(Compared { connections, page_path, bare_stream, ratio })
}

fn chunk(data: &Bytes, n: usize) -> PageChunk {
    let start = PageAddr::from_index((n * MAX_CHUNK_PAGES) as u64);
    let run = Run { start, count: MAX_CHUNK_PAGES as u32, kind: RunKind::Data };
    PageChunk { space: SpaceId(1), round: Round(0), runs: vec![run], data: data.clone() }
}

/// Sends all chunks over `streams` page streams; bytes per second.
async fn send_pages(here: &dyn Link, there: &dyn Link, data: &Bytes, streams: usize) -> Result<f64> {
    let began = Instant::now();
    let mut tasks = Vec::new();
    for stream in 0..streams {
        let mut pages = here.open_pages().await?;
        let data = data.clone();
        tasks.push(tokio::spawn(async move {
            for n in (stream..CHUNKS).step_by(streams) {
                pages.send(chunk(&data, n)).await?;
            }
            pages.finish().await?;
            anyhow::Ok(0)
        }));
    }
    for _ in 0..streams {
        let mut pages = there.accept_pages().await?;
        tasks.push(tokio::spawn(async move {
            let mut got = 0;
            while let Some(chunk) = pages.recv().await? {
                got += chunk.data.len();
            }
            anyhow::Ok(got)
        }));
    }
    let mut got = 0;
    for task in tasks {
        got += task.await??;
    }
    ensure!(got == CHUNKS * MAX_CHUNK_PAGES * PAGE_SIZE, "{got} bytes arrived");
    Ok(got as f64 / began.elapsed().as_secs_f64())
}
