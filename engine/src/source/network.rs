//! The source's side of the network identity: the moving address and the hooks.

use crate::net::address::AddressHolder;
use crate::net::hooks::{HookFacts, Hooks, Stage};

/// What leaves the source's network at the freeze and comes back on an abort.
pub struct SourceNetwork {
    /// The address that moves.
    pub address: Option<AddressHolder>,
    /// The user's programs.
    pub hooks: Hooks,
    /// What they are told.
    pub facts: HookFacts,
}

impl SourceNetwork {
    /// Runs the hooks of a stage. On error the stage must not go on.
    pub fn hook(&self, stage: Stage) -> Result<(), String> {
        self.hooks.run(stage, &self.facts).map_err(|error| error.to_string())
    }

    /// Takes the address off this host.
    pub fn release(&mut self) -> Result<(), String> {
        let Some(address) = &mut self.address else { return Ok(()) };
        address.take_off().map_err(|error| error.to_string())
    }

    /// Gives the address back to this host; harmless when it is there.
    pub fn take_back(&mut self) -> Result<(), String> {
        let Some(address) = &mut self.address else { return Ok(()) };
        address.give().map_err(|error| error.to_string())
    }
}
