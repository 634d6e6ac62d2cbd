//! What the exit code says.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | it could not be done; the message says why |
//! | 2 | the command line is wrong |
//! | 3 | refused: something blocks it, here or at the destination; nothing was changed |
//! | 4 | the migration was aborted: the workload runs at the source |
//! | 5 | in doubt: the workload stands still at the source, `ferry resolve` decides |

use std::process::ExitCode;

/// How a verb ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Done.
    Done,
    /// Something blocks it; nothing was changed.
    Refused,
    /// Aborted: the workload runs at the source.
    Aborted,
    /// In doubt.
    InDoubt,
}

/// Prints an error with its causes; the code for the shell.
pub fn report(result: anyhow::Result<End>) -> ExitCode {
    match result {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Refused) => ExitCode::from(3),
        Ok(End::Aborted) => ExitCode::from(4),
        Ok(End::InDoubt) => ExitCode::from(5),
        Err(error) => {
            // A closed pipe is its reader's choice.
            let broken = error.chain().any(|cause| {
                cause
                    .downcast_ref::<std::io::Error>()
                    .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
            });
            if broken {
                return ExitCode::SUCCESS;
            }
            eprintln!("ferry: {error:#}");
            ExitCode::FAILURE
        }
    }
}
