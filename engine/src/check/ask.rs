//! Asks a destination what it would say to an offer.

use super::finding::Findings;
use ferry_transport::link::{Connector, LinkError};
use ferry_transport::wire::control::{Hello, Message, Offer, PROTOCOL_VERSION};
use std::time::Duration;

/// How long the whole conversation may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer. Nothing was changed on either host.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The link could not be made, or ended.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The other side is of another version.
    #[error(
        "the destination speaks protocol {theirs} and this side {PROTOCOL_VERSION}: use the same version of ferry on both hosts"
    )]
    Version {
        /// What it said.
        theirs: u32,
    },
    /// It did not answer in time.
    #[error("the destination did not answer within {PATIENCE:?}")]
    Silence,
}

/// Asks over a link of its own. The destination reserves and makes nothing.
pub async fn ask_destination(
    connector: &dyn Connector,
    hello: Hello,
    offer: Offer,
) -> Result<Findings, AskError> {
    let conversation = async {
        let link = connector.connect().await?;
        let (mut sender, mut receiver) = link.control().await?;
        sender.send(&Message::Hello(hello)).await?;
        let out_of_turn = |said: Message| LinkError::Protocol(format!("{} out of turn", said.name()));
        match receiver.recv().await? {
            Message::Hello(theirs) if theirs.protocol == PROTOCOL_VERSION => {}
            Message::Hello(theirs) => return Err(AskError::Version { theirs: theirs.protocol }),
            other => return Err(out_of_turn(other).into()),
        }
        sender.send(&Message::Check(Box::new(offer))).await?;
        loop {
            match receiver.recv().await? {
                Message::KeepAlive => {}
                Message::Findings(findings) => {
                    link.close("answered").await;
                    return Ok(findings);
                }
                other => return Err(out_of_turn(other).into()),
            }
        }
    };
    tokio::time::timeout(PATIENCE, conversation).await.unwrap_or(Err(AskError::Silence))
}
