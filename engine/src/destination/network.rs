//! The destination's side of the network identity.
//!
//! From the freeze on a table of ours drops everything to and from the moving
//! address; the address comes before the restore, which binds to it; the table
//! goes when the restored sockets are there to answer.

use crate::net::address::AddressHolder;
use crate::net::announce::Announcer;
use crate::net::hooks::{HookFacts, Hooks, Stage};
use crate::net::nft::DropTable;
use ferry_transport::wire::control::{AddressMove, MigrationId};

pub(super) struct DestinationNetwork {
    moving: Option<Moving>,
    hooks: Hooks,
    pub(super) facts: HookFacts,
}

struct Moving {
    address: AddressHolder,
    drop: DropTable,
    announcer: Option<Announcer>,
}

impl DestinationNetwork {
    /// Opens whatever is needed before anything is changed.
    pub(super) fn prepare(
        id: MigrationId,
        moved: Option<&AddressMove>,
        hooks: Hooks,
        facts: HookFacts,
    ) -> Result<DestinationNetwork, String> {
        let moving = match moved {
            None => None,
            Some(moved) => {
                let address = AddressHolder::at_destination(moved).map_err(|error| error.to_string())?;
                let drop = DropTable::prepare(id, moved.address)
                    .map_err(|error| format!("nftables cannot be used here: {error}"))?;
                let announcer = Announcer::prepare(address.interface(), moved.address)
                    .map_err(|error| format!("the address cannot be announced: {error}"))?;
                Some(Moving { address, drop, announcer: Some(announcer) })
            }
        };
        Ok(DestinationNetwork { moving, hooks, facts })
    }

    /// Silences the address, before it is here.
    pub(super) fn silence(&mut self) -> Result<(), String> {
        let Some(moving) = &mut self.moving else { return Ok(()) };
        moving.drop.install().map_err(|error| format!("the drop table: {error}"))
    }

    /// Gives the address to this host.
    pub(super) fn take(&mut self) -> Result<(), String> {
        let Some(moving) = &mut self.moving else { return Ok(()) };
        moving.address.give().map_err(|error| error.to_string())
    }

    /// Lets the address be heard again and says where it is now.
    pub(super) fn open(&mut self) -> Result<(), String> {
        let Some(moving) = &mut self.moving else { return Ok(()) };
        moving.drop.remove().map_err(|error| format!("the drop table: {error}"))?;
        if let Some(announcer) = moving.announcer.take() {
            announcer
                .announce()
                .and_then(|()| announcer.announce_repeatedly().map(drop))
                .map_err(|error| format!("the address was not announced: {error}"))?;
        }
        Ok(())
    }

    /// Everything as it was.
    pub(super) fn undo(&mut self) -> Result<(), String> {
        let Some(moving) = &mut self.moving else { return Ok(()) };
        let off = moving.address.take_off().map_err(|error| error.to_string());
        let removed = moving.drop.remove().map_err(|error| format!("the drop table: {error}"));
        off.and(removed)
    }

    pub(super) fn hook(&self, stage: Stage) -> Result<(), String> {
        self.hooks.run(stage, &self.facts).map_err(|error| error.to_string())
    }
}
