//! The destination's side of the network identity.
//!
//! When the source begins to freeze, the address comes here and says so: what
//! clients send from then on arrives here, where a table of ours keeps the kernel
//! from answering it, and a hold keeps it for later. When the restored sockets are
//! there the table goes, and what was held comes in.

use crate::net::address::AddressHolder;
use crate::net::announce::Announcer;
use crate::net::connections;
use crate::net::hold::Hold;
use crate::net::hooks::{HookFacts, Hooks, Stage};
use crate::net::nft::DropTable;
use ferry_transport::wire::control::Offer;

pub(super) struct DestinationNetwork {
    moving: Option<Moving>,
    hooks: Hooks,
    /// What is not as good as it could be.
    notes: Vec<String>,
    pub(super) facts: HookFacts,
}

struct Moving {
    address: AddressHolder,
    drop: DropTable,
    hold: Option<Hold>,
    announcer: Option<Announcer>,
}

impl DestinationNetwork {
    /// Opens whatever is needed before anything is changed.
    pub(super) fn prepare(offer: &Offer, peer: String, hooks: Hooks) -> Result<DestinationNetwork, String> {
        let mut notes = Vec::new();
        let moved = offer.move_address.as_ref();
        let facts = HookFacts {
            id: offer.id.to_string(),
            target: offer.target.clone(),
            peer,
            address: moved.map(|moved| moved.address.to_string()),
            interface: moved.map(|moved| moved.interface.clone()),
            ..HookFacts::default()
        };
        let moving = match moved {
            None => None,
            Some(moved) => {
                let address = AddressHolder::at_destination(moved).map_err(|error| error.to_string())?;
                let drop = DropTable::prepare(offer.id, moved.address)
                    .map_err(|error| format!("nftables cannot be used here: {error}"))?;
                let announcer = Announcer::prepare(address.interface(), moved.address)
                    .map_err(|error| format!("the address cannot be announced: {error}"))?;
                // Without it clients retransmit: slower, not wrong.
                let hold = Hold::prepare(address.interface(), moved.address)
                    .inspect_err(|error| notes.push(unheld(error)))
                    .ok();
                Some(Moving { address, drop, hold, announcer: Some(announcer) })
            }
        };
        Ok(DestinationNetwork { moving, hooks, notes, facts })
    }

    /// The source is about to freeze: takes the address, silent, and has the clients
    /// send here from now on. Both hosts have it until the source lets go.
    pub(super) fn take_over(&mut self) -> Result<(), String> {
        let Some(moving) = &mut self.moving else { return Ok(()) };
        moving.drop.install().map_err(|error| format!("the drop table: {error}"))?;
        // Of an earlier stay of the workload here that was not ended in order.
        if let Err(error) = connections::destroy_orphans(moving.address.address()) {
            tracing::debug!(%error, "closing connections were left as they are");
        }
        if let Some(Err(error)) = moving.hold.as_mut().map(Hold::begin) {
            self.notes.push(unheld(&error));
            moving.hold = None;
        }
        moving.address.give().map_err(|error| error.to_string())?;
        if let Some(announcer) = &moving.announcer {
            announcer.announce().map_err(|error| format!("the address was not announced: {error}"))?;
        }
        Ok(())
    }

    /// The sockets are there, and the copy is about to run: lets the address be heard and
    /// speak again, and what was held come in.
    pub(super) fn open(&mut self) -> Result<(), String> {
        let Some(moving) = &mut self.moving else { return Ok(()) };
        moving.drop.remove().map_err(|error| format!("the drop table: {error}"))?;
        let released = moving.hold.as_mut().map_or(Ok(0), Hold::release);
        if let Some(announcer) = moving.announcer.take() {
            announcer
                .announce_repeatedly()
                .map(drop)
                .map_err(|error| format!("the address was not announced: {error}"))?;
        }
        match released {
            Ok(packets) => tracing::debug!(packets, "held packets came in"),
            Err(error) => return Err(format!("held packets were lost, clients will send again: {error}")),
        }
        Ok(())
    }

    /// Whether the copy runs is not known: silent again, until somebody knows.
    pub(super) fn shut(&mut self) -> Result<(), String> {
        let Some(moving) = &mut self.moving else { return Ok(()) };
        moving.drop.install().map_err(|error| format!("the drop table: {error}"))
    }

    /// Everything as it was.
    pub(super) fn undo(&mut self) -> Result<(), String> {
        let Some(moving) = &mut self.moving else { return Ok(()) };
        moving.hold = None;
        let off = moving.address.take_off().map_err(|error| error.to_string());
        let removed = moving.drop.remove().map_err(|error| format!("the drop table: {error}"));
        off.and(removed)
    }

    /// What was not said yet.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    pub(super) fn hook(&self, stage: Stage) -> Result<(), String> {
        self.hooks.run(stage, &self.facts).map_err(|error| error.to_string())
    }
}

fn unheld(error: &std::io::Error) -> String {
    format!("what clients send during the switch-over is not held here, they will send it again: {error}")
}
