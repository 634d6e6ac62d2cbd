//! The processes of a workload and what each does.

use super::board::{Board, Counter};
use super::memory::Memory;
use super::page::{Content, PAGE_BYTES};
use super::pulse::{Pulse, Watching};
use super::{EXIT_MEMORY_WRONG, server};
use crate::quantity::{parse_byte_rate, parse_bytes};
use crate::sys::{self, fork_single_threaded};
use anyhow::{Context, Result, bail};
use ferry_transport::units::{ByteRate, Bytes};
use nix::unistd::{ForkResult, getppid};
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// How long a workload that found its memory wrong goes on, so that clients
/// can still read the number of errors.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often a process looks after the others.
const WATCH: Duration = Duration::from_millis(100);

/// `ferry workload`: a self-checking process tree that serves a TCP counter.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Memory of all processes together.
    #[arg(long, default_value = "256M", value_parser = parse_bytes)]
    pub memory: Bytes,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take a comment for the program's description")]
    pub quantities: Quantities,
    /// The address to serve clients on.
    #[arg(long, default_value = "127.0.0.1:7000")]
    pub listen: SocketAddr,
}

/// What a workload does with its memory.
#[derive(Clone, Debug, clap::Args)]
pub struct Quantities {
    /// Unique bytes dirtied per second, by all processes together.
    #[arg(long, default_value = "50M", value_parser = parse_byte_rate)]
    pub dirty_rate: ByteRate,
    /// The part of the memory that is dirtied; at most all of it.
    #[arg(long, default_value = "256M", value_parser = parse_bytes)]
    pub working_set: Bytes,
    /// Processes in the tree.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub processes: u32,
    /// Writer threads in each process.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub threads: u32,
    /// Bytes per second that the background check reads, all processes together.
    #[arg(long, default_value = "256M", value_parser = parse_byte_rate)]
    pub check_rate: ByteRate,
    /// How well the memory's content compresses.
    #[arg(long, value_enum, default_value_t = Content::Incompressible)]
    pub content: Content,
    /// Whether it notes how long it was kept from running.
    #[arg(long, value_enum, default_value_t = Watching::Off)]
    pub watching: Watching,
}

/// One process's share.
#[derive(Clone, Copy, Debug)]
struct Share {
    pages: u64,
    working_set: u64,
    dirty_rate: u64,
    check_rate: u64,
}

/// Runs a workload until it is killed or finds its memory wrong, which ends
/// all its processes with [`EXIT_MEMORY_WRONG`]. Must be called while the
/// process still has one thread.
///
/// # Errors
/// When it cannot start.
pub fn run(options: &Options) -> Result<Infallible> {
    let quantities = &options.quantities;
    let processes = u64::from(quantities.processes);
    let pages = options.memory.0 / PAGE_BYTES / processes;
    if pages == 0 {
        bail!("--memory is less than a page per process");
    }
    let share = Share {
        pages,
        working_set: (quantities.working_set.0 / PAGE_BYTES / processes).clamp(1, pages),
        dirty_rate: quantities.dirty_rate.0 / processes,
        check_rate: quantities.check_rate.0 / processes,
    };
    let listener =
        TcpListener::bind(options.listen).with_context(|| format!("cannot listen on {}", options.listen))?;
    let board = Board::new(quantities.processes as usize)?;
    let number = fork_tree(quantities.processes as usize)?;
    let listener = (number == 0).then_some(listener);

    if let Some(listener) = listener {
        std::thread::Builder::new().name("server".into()).spawn(move || server::serve(&listener, board))?;
    }
    let parent = getppid();
    let memory: &'static Memory = Box::leak(Box::new(
        Memory::new(share.pages, quantities.content, board, number).context("no memory")?,
    ));
    let threads = quantities.threads as usize;
    for thread in 0..threads {
        let rate = share.dirty_rate / threads as u64;
        std::thread::Builder::new()
            .name(format!("writer-{thread}"))
            .spawn(move || memory.write_for_ever(share.working_set as usize, thread, threads, rate))?;
    }
    std::thread::Builder::new()
        .name("checker".into())
        .spawn(move || memory.check_for_ever(share.check_rate))?;

    let mut pulse = match quantities.watching {
        Watching::Off => None,
        Watching::Pulse => Some(Pulse::start(board, number).context("cannot take the pulse")?),
    };
    loop {
        match &mut pulse {
            Some(pulse) => pulse.beat_for(WATCH),
            None => std::thread::sleep(WATCH),
        }
        if board.total(Counter::Errors) > 0 {
            std::thread::sleep(LAST_WORDS);
            sys::exit_now(EXIT_MEMORY_WRONG);
        }
        if number > 0 && getppid() != parent {
            sys::exit_now(1); // the parent is gone: a tree lives and dies as a whole
        }
        if let Some((pid, exit)) = sys::reap() {
            eprintln!("ferry workload: its process {pid} ended ({exit:?})");
            let wrong = exit == crate::hosts::Exit::Code(EXIT_MEMORY_WRONG);
            sys::exit_now(if wrong { EXIT_MEMORY_WRONG } else { 1 });
        }
    }
}

/// Forks a binary tree of processes (the parent of n is (n - 1) / 2) and
/// returns the number of this one.
fn fork_tree(processes: usize) -> Result<usize> {
    let mut number = 0;
    let mut side = 1;
    while side <= 2 {
        let child = 2 * number + side;
        if child >= processes {
            break;
        }
        match fork_single_threaded().context("fork")? {
            ForkResult::Child => (number, side) = (child, 1),
            ForkResult::Parent { .. } => side += 1,
        }
    }
    Ok(number)
}
