//! The helpers that ferry starts from its own file, under verbs that no person types.

use clap::Parser;
use ferry_engine::source::keeper;
use ferry_engine::target::oci::relay;
use std::process::ExitCode;

/// Runs a helper's verb, if this process was started with one.
pub fn run() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let (verb, first) = (arguments.next()?, arguments.next());
    match (verb.as_str(), first) {
        (ferry_engine::sys::inject::HELPER_VERB, Some(pid)) => ferry_engine::sys::inject::helper_main(&pid),
        (ferry_lab::hosts::INIT_VERB, Some(setup)) => Some(ferry_lab::hosts::init_main(&setup)),
        (keeper::KEEPER_VERB, Some(state)) => {
            Some(keeper::keeper_main(std::iter::once(state).chain(arguments)))
        }
        (relay::RELAY_VERB, Some(criu)) => Some(relay::relay_main(&criu, arguments)),
        ("__pager", _) => Some(ferry_engine::lazy::pager_main()),
        ("__probe", _) => Some(probe()),
        _ => None,
    }
}

#[derive(Parser)]
struct Probe {
    #[command(flatten)]
    options: ferry_lab::probe::Options,
}

fn probe() -> ExitCode {
    let options = Probe::parse_from(std::env::args().skip(1)).options;
    match ferry_lab::probe::main(&options) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ferry: {error:#}");
            ExitCode::FAILURE
        }
    }
}
