//! Answers clients: one thread per connection, blocking sockets.

use super::board::{Board, Counter};
use super::wire::{Reply, Request};
use nix::time::{ClockId, clock_gettime};
use std::io::{self, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Accepts clients for ever.
pub fn serve(listener: &TcpListener, board: Board) -> ! {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                // A client that is refused for want of a thread sees its
                // connection close; the workload goes on.
                let _ = std::thread::Builder::new()
                    .stack_size(128 * 1024)
                    .spawn(move || drop(serve_client(stream, board)));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn serve_client(stream: TcpStream, board: Board) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::with_capacity(4096, &stream);
    let mut served = 0;
    loop {
        let request = Request::read(&mut requests)?;
        served += 1;
        let (sequence, checked, gap) = match request {
            Request::Count { sequence } => (sequence, 0, Duration::ZERO),
            Request::Check { sequence } => (sequence, check_all(board), Duration::ZERO),
            Request::Pulse { sequence } => (sequence, 0, board.take_longest_gap()),
        };
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap_or(nix::sys::time::TimeSpec::new(0, 0));
        let reply = Reply {
            sequence,
            served,
            steps: board.total(Counter::Steps),
            errors: board.total(Counter::Errors),
            verified: board.total(Counter::Verified),
            monotonic: Duration::from(now).as_nanos() as u64,
            checked,
            processes: board.processes() as u64,
            filled: board.total(Counter::Filled),
            gap: gap.as_nanos() as u64,
        };
        reply.write(&mut &stream)?;
    }
}

/// Has every process check all its memory; returns the pages checked.
fn check_all(board: Board) -> u64 {
    let number = board.request_check();
    while !board.all_reached(Counter::CheckDone, number) {
        std::thread::sleep(Duration::from_millis(1));
    }
    (0..board.processes()).map(|p| board.counter(p, Counter::CheckPages).load(Ordering::Relaxed)).sum()
}
