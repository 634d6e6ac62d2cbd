//! ferry moves a running process tree to another host while it runs.

mod cli;
mod exit;
mod host;
mod progress;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Helpers are this program under another name; they must not parse, log or
    // start a runtime first.
    if let Some(code) = cli::hidden::run() {
        return code;
    }
    let arguments = cli::Arguments::parse();
    host::log_to_stderr(arguments.verbose);
    exit::report(cli::run(arguments.verb))
}
