//! `ferry status`: what the journals here say.

use super::{Common, print_json};
use crate::exit::End;
use anyhow::Result;
use ferry_engine::destination::recovery::{self as destination, DestinationStanding};
use ferry_engine::journal::{self, Side};
use ferry_engine::source::recovery::{self as source, SourceStanding};
use serde::Serialize;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Only migrations that are not over.
    #[arg(long)]
    open: bool,
}

/// One migration on one side.
#[derive(Serialize)]
struct Line {
    id: String,
    side: Side,
    standing: &'static str,
    detail: String,
    over: bool,
}

pub fn run(options: Options) -> Result<End> {
    let state = &options.common.state;
    let mut lines = Vec::new();
    for id in journal::list(state, Side::Source)? {
        let (standing, detail, over) = match source::standing(state, id)? {
            SourceStanding::Unknown => continue,
            SourceStanding::UnderWay => ("under way", String::new(), false),
            SourceStanding::Interrupted => (
                "interrupted",
                format!("its engine died; the workload runs here: `ferry resolve {id}`"),
                false,
            ),
            SourceStanding::InDoubt { tasks } => (
                "in doubt",
                format!("{} processes stand still here: `ferry resolve {id}`", tasks.len()),
                false,
            ),
            SourceStanding::Completed => ("completed", "runs at the destination".into(), true),
            SourceStanding::Aborted { cause } => ("aborted", format!("runs here: {cause}"), true),
            SourceStanding::Resolved(side) => {
                ("resolved", format!("runs at the {side:?}").to_lowercase(), true)
            }
        };
        lines.push(Line { id: id.to_string(), side: Side::Source, standing, detail, over });
    }
    for id in journal::list(state, Side::Destination)? {
        let (standing, detail, over) = match destination::standing(state, id)? {
            DestinationStanding::Unknown => continue,
            DestinationStanding::UnderWay => ("under way", String::new(), false),
            DestinationStanding::Interrupted { .. } | DestinationStanding::NeverReleased { .. } => (
                "interrupted",
                "its receiver died before the copy ran: the next `ferry receive` cleans up".into(),
                false,
            ),
            DestinationStanding::ReleaseUnknown { .. } => (
                "in doubt",
                format!(
                    "its receiver died while letting the copy run: `ferry resolve {id} --runs here|there`"
                ),
                false,
            ),
            DestinationStanding::Resumed => ("completed", "runs here".into(), true),
            DestinationStanding::Discarded { cause } => ("discarded", cause, true),
            DestinationStanding::Resolved(side) => {
                ("resolved", format!("runs at the {side:?}").to_lowercase(), true)
            }
        };
        lines.push(Line { id: id.to_string(), side: Side::Destination, standing, detail, over });
    }
    lines.retain(|line| !(options.open && line.over));
    if options.common.json {
        print_json(&lines)?;
    } else if lines.is_empty() {
        println!("no migrations");
    } else {
        for line in lines {
            println!(
                "{}  {:<11}  {:<11}  {}",
                line.id,
                format!("{:?}", line.side).to_lowercase(),
                line.standing,
                line.detail
            );
        }
    }
    Ok(End::Done)
}
