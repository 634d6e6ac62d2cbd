//! How fast pages travel: the page path against a bare QUIC stream of the same
//! bytes, over loopback, in one run.
//!
//! ```text
//! cargo run --release -p ferry-transport --example page_path -- [MIB [CONNECTIONS…]]
//! ```
//!
//! The bare stream uses the same endpoints, tuning and buffers of the same size;
//! what is compared is what frames, checksums and reassembly cost. Both ends run
//! in this process, so that the figures are for both together.

use bytes::Bytes;
use ferry_transport::link::{Connector, Link};
use ferry_transport::page::{MAX_CHUNK_PAGES, PAGE_SIZE, PageAddr, PageChunk, Round, Run, RunKind, SpaceId};
use ferry_transport::quic::trust::{Peer, Role};
use ferry_transport::quic::{Identity, LinkOptions, QuicConnector, QuicListener, Trust, bare};
use std::time::Instant;

const RUNS: usize = 5;

fn chunk(data: &Bytes, n: usize) -> PageChunk {
    let start = PageAddr::from_index((n * MAX_CHUNK_PAGES) as u64);
    let run = Run { start, count: MAX_CHUNK_PAGES as u32, kind: RunKind::Data };
    PageChunk { space: SpaceId(1), round: Round(0), runs: vec![run], data: data.clone() }
}

/// Sends `chunks` over `streams` page streams; bytes per second.
async fn page_path(here: &dyn Link, there: &dyn Link, data: &Bytes, chunks: usize, streams: usize) -> f64 {
    let began = Instant::now();
    let mut tasks = Vec::new();
    for stream in 0..streams {
        let mut pages = here.open_pages().await.unwrap();
        let data = data.clone();
        tasks.push(tokio::spawn(async move {
            for n in (stream..chunks).step_by(streams) {
                pages.send(chunk(&data, n)).await.unwrap();
            }
            pages.finish().await.unwrap();
            0
        }));
    }
    for _ in 0..streams {
        let mut pages = there.accept_pages().await.unwrap();
        tasks.push(tokio::spawn(async move {
            let mut got = 0;
            while let Some(chunk) = pages.recv().await.unwrap() {
                got += chunk.data.len();
            }
            got
        }));
    }
    let mut got = 0;
    for task in tasks {
        got += task.await.unwrap();
    }
    assert_eq!(got, chunks * MAX_CHUNK_PAGES * PAGE_SIZE);
    got as f64 / began.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mib = arguments.next().map_or(1024, |text| text.parse().expect("MIB is a number"));
    let mut connections: Vec<usize> = arguments.map(|text| text.parse().expect("a number")).collect();
    if connections.is_empty() {
        connections = vec![1, 2, 4];
    }
    let state = tempfile::tempdir().unwrap();
    let identity = Identity::load_or_create(state.path()).unwrap();
    let trust = Trust::open(state.path());
    let fingerprint = identity.fingerprint();
    trust.add(&Peer { name: "self".into(), fingerprint, role: Role::Both }).unwrap();
    let data: Bytes = rand::random_iter::<u8>().take(MAX_CHUNK_PAGES * PAGE_SIZE).collect::<Vec<_>>().into();

    println!("{mib} MiB of incompressible pages, {RUNS} runs each, median (lowest to highest), in Gbit/s");
    println!("connections  page path               bare QUIC stream        ratio");
    for connections in connections {
        let options = LinkOptions { connections, ..LinkOptions::default() };
        let any = ([127, 0, 0, 1], 0).into();
        let listener = QuicListener::bind(any, &identity, trust.clone(), options.clone()).unwrap();
        let to = listener.local_address().unwrap();
        let connector = QuicConnector::new(to, identity.clone(), trust.clone(), options.clone());
        let (here, there) = tokio::join!(connector.connect(), listener.accept());
        let (here, there) = (here.unwrap(), there.unwrap());
        let bare = bare::Pair::new(&identity, trust.clone(), &options).await.unwrap();
        let (mut framed, mut plain) = (Vec::new(), Vec::new());
        // One of each to warm up (MTU discovery, congestion window), then in turn.
        for run in 0..=RUNS {
            let a = page_path(&*here, &*there, &data, mib, connections).await;
            let b = bare.send(&data, mib).await.unwrap();
            if run > 0 {
                framed.push(a * 8.0 / 1e9);
                plain.push(b * 8.0 / 1e9);
            }
        }
        let show = |values: &[f64]| {
            let lowest = values.iter().copied().fold(f64::MAX, f64::min);
            let highest = values.iter().copied().fold(0.0, f64::max);
            format!("{:5.2} ({lowest:5.2} to {highest:5.2})", median(values.to_vec()))
        };
        let ratio = median(framed.clone()) / median(plain.clone());
        println!("{connections:11}  {}  {}  {ratio:5.2}", show(&framed), show(&plain));
        here.close("measured").await;
    }
}
