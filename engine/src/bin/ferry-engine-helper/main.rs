//! What the engine's tests start beside themselves: the injection helper, and
//! workloads to be followed. Not installed; `ferry` is its own helper.

mod sys;
mod workload;

use ferry_engine::target::oci::relay;
use std::env;

fn main() -> std::process::ExitCode {
    let mut arguments = env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some(ferry_engine::sys::inject::HELPER_VERB), Some(pid)) => {
            ferry_engine::sys::inject::helper_main(&pid)
        }
        (Some(relay::RELAY_VERB), Some(criu)) => return relay::relay_main(&criu, arguments),
        (Some("workload"), None) => {
            sys::end_with_parent(None);
            workload::serve()
        }
        (Some("sleeper"), Some(call)) => {
            sys::end_with_parent(None);
            workload::sleep_in(&call)
        }
        (Some("spinner"), Some(threads)) => {
            sys::end_with_parent(None);
            workload::spin(threads.parse().unwrap_or(1))
        }
        _ => {
            eprintln!("ferry-engine-helper is started by the engine's tests");
            std::process::exit(2);
        }
    }
    std::process::ExitCode::SUCCESS
}
