//! The lab's parts as a program of their own: for the lab's tests, and for
//! trying them by hand. `ferry` has the same verbs.

use clap::{Parser, Subcommand};
use ferry_lab::{hosts, probe, workload};
use std::process::ExitCode;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// A self-checking process tree that serves a TCP counter.
    Workload(workload::Options),
    /// A client that measures how long it waits for each reply.
    #[command(name = "__probe")]
    Probe(probe::Options),
    /// The first process of a host.
    #[command(name = hosts::INIT_VERB, hide = true)]
    HostInit { setup: String },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::HostInit { setup } => return hosts::init_main(&setup),
        Verb::Workload(options) => workload::run(&options).map(|_| ()),
        Verb::Probe(options) => probe::main(&options).map(|_| ()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ferry-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
