//! The keeper: a process that outlives a killed engine for as long as it takes to
//! put right what it left.
//!
//! An engine that dies while the dump is held leaves a tree that is pinned, and one
//! that dies after the freeze leaves a service without its address: neither would
//! come back by itself. The keeper holds the read end of a pipe whose write end only
//! the engine has. At its end the keeper reads the journal, and settles what the
//! engine left, if it left anything.

use super::recovery::{self, SourceStanding};
use ferry_transport::wire::control::MigrationId;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// How long an engine may take from the end of its pipe to its own.
const DYING: Duration = Duration::from_secs(10);

/// The verb that makes a program of ours the keeper.
pub const KEEPER_VERB: &str = "__keeper";

/// A keeper at work. Dropping this lets it go, once the journal has its end.
pub struct Keeper(Child);

impl Keeper {
    /// Starts it. `helper` is a program whose verb [`KEEPER_VERB`] is [`keeper_main`].
    pub fn start(helper: &Path, state: &Path, id: MigrationId) -> io::Result<Keeper> {
        // A group of its own: what Ctrl-C ends is the engine.
        let mut command = Command::new(helper);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.arg(KEEPER_VERB).arg(state).arg(id.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Keeper)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Waits for the engine's end; `arguments` are the state directory and the migration.
pub fn keeper_main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let (Some(state), Some(Ok(id))) = (arguments.next(), arguments.next().map(|id| id.parse())) else {
        return ExitCode::FAILURE;
    };
    let _ = io::stdin().read_to_end(&mut Vec::new());
    // Of a dying engine the pipe may be closed before its journal is.
    let deadline = Instant::now() + DYING;
    loop {
        match recovery::settle(Path::new(&state), id) {
            Ok(SourceStanding::UnderWay) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(_) => return ExitCode::SUCCESS,
            Err(_) => return ExitCode::FAILURE,
        }
    }
}
