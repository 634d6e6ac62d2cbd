//! The conversation with the source: the messages on its link, and whatever may
//! interrupt a wait.

use super::intake::Intake;
use ferry_transport::link::{ControlReceiver, ControlSender, Link, LinkError};
use ferry_transport::wire::control::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a last message may take to arrive before the link ends.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long a source that has heard everything may take to hang up.
const FAREWELL: Duration = Duration::from_secs(2);

/// A destination's way to its source. Every wait ends when the link does, when the
/// source gives up, and when the user does.
pub(super) struct Conversation {
    link: Arc<dyn Link>,
    sender: Box<dyn ControlSender>,
    inbox: Box<dyn ControlReceiver>,
    abort: watch::Receiver<Option<String>>,
}

impl Conversation {
    pub(super) fn new(
        link: Arc<dyn Link>,
        (sender, inbox): (Box<dyn ControlSender>, Box<dyn ControlReceiver>),
        abort: watch::Receiver<Option<String>>,
    ) -> Conversation {
        Conversation { link, sender, inbox, abort }
    }

    /// The source, for people.
    pub(super) fn name(&self) -> String {
        self.link.peer()
    }

    /// The link, for page streams.
    pub(super) fn link(&self) -> Arc<dyn Link> {
        Arc::clone(&self.link)
    }

    pub(super) async fn say(&mut self, message: Message) -> Result<(), String> {
        self.sender.send(&message).await.map_err(gone)
    }

    /// The next message, unless the link ends, the user gives up, or pages cannot be
    /// stored. A source whose pages arrive is not silent.
    pub(super) async fn hear(
        &mut self,
        patience: Duration,
        intake: Option<&Intake>,
    ) -> Result<Message, String> {
        let mut abort = self.abort.clone();
        let refused = async {
            match intake {
                Some(intake) => intake.refusal().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(refused);
        let mut stored = 0;
        loop {
            let said = tokio::select! {
                message = self.inbox.recv() => message.map_err(gone)?,
                _ = abort.wait_for(Option::is_some) => {
                    let why = self.abort.borrow().clone();
                    return Err(why.unwrap_or_else(|| "given up here".into()));
                }
                why = &mut refused => return Err(why),
                () = tokio::time::sleep(patience) => {
                    let now = intake.map_or(0, Intake::stored);
                    if now > std::mem::replace(&mut stored, now) {
                        continue;
                    }
                    return Err(format!("the source was silent for {patience:?}"));
                }
            };
            match said {
                Message::KeepAlive => {}
                Message::Abort(why) => return Err(format!("the source gave up: {why}")),
                message => return Ok(message),
            }
        }
    }

    /// Waits until the source, which has heard all there is, hangs up.
    pub(super) async fn await_farewell(&mut self) {
        let _ = tokio::time::timeout(FAREWELL, self.inbox.recv()).await;
    }

    /// Gives the last message time to arrive, then ends the link.
    pub(super) async fn hang_up(&mut self, reason: &str) {
        let _ = tokio::time::timeout(LAST_WORD, self.inbox.recv()).await;
        self.link.close(reason).await;
    }
}

fn gone(error: LinkError) -> String {
    format!("the source is gone: {error}")
}
