//! The source's side of the network identity: the moving address and the hooks.

use crate::net::address::{AddressHolder, Place};
use crate::net::announce::Announcer;
use crate::net::hooks::{HookFacts, Hooks, Stage};
use ferry_transport::wire::control::AddressMove;

/// What leaves the source's network at the freeze and comes back on an abort.
pub struct SourceNetwork {
    moving: Option<Moving>,
    hooks: Hooks,
    /// What they are told.
    pub(super) facts: HookFacts,
}

struct Moving {
    address: AddressHolder,
    /// The destination calls for the clients when the freeze begins.
    call_back: Option<Announcer>,
}

impl SourceNetwork {
    /// Looks up what moves before anything is changed.
    pub fn prepare(
        moved: Option<&AddressMove>,
        hooks: Hooks,
        facts: HookFacts,
    ) -> Result<SourceNetwork, String> {
        let prepare = |moved| {
            let address = AddressHolder::at_source(moved).map_err(|error| error.to_string())?;
            let announcer = Announcer::prepare(address.interface(), moved.address)
                .map_err(|error| format!("the address cannot be announced: {error}"))?;
            Ok::<_, String>(Moving { address, call_back: Some(announcer) })
        };
        Ok(SourceNetwork { moving: moved.map(prepare).transpose()?, hooks, facts })
    }

    /// The moving address, as this host has it.
    pub(super) fn place(&self) -> Option<&Place> {
        self.moving.as_ref().map(|moving| moving.address.place())
    }

    /// Runs the hooks of a stage. On error the stage must not go on.
    pub(super) fn hook(&self, stage: Stage) -> Result<(), String> {
        self.hooks.run(stage, &self.facts).map_err(|error| error.to_string())
    }

    /// Takes the address off this host.
    pub(super) fn release(&mut self) -> Result<(), String> {
        let Some(moving) = &mut self.moving else { return Ok(()) };
        moving.address.take_off().map_err(|error| error.to_string())
    }

    /// Gives the address back to this host, and tells the clients, which the
    /// destination may have called; harmless when it never left.
    pub(super) fn take_back(&mut self) -> Result<(), String> {
        let Some(moving) = &mut self.moving else { return Ok(()) };
        moving.address.give().map_err(|error| error.to_string())?;
        let Some(announcer) = moving.call_back.take() else { return Ok(()) };
        announcer.announce_repeatedly().map(drop).map_err(|error| format!("it was not announced: {error}"))
    }
}
