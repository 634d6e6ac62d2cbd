//! `ferry receive`: takes links, one migration or one question on each.

use super::conversation::Conversation;
use super::driver::{Destination, Finished};
use super::handover::HandoverMaker;
use super::recovery;
use super::requests;
use crate::check::{Finding, Findings, Force, LocalFacts, Severity, check_destination};
use crate::companion::CompanionSink;
use crate::journal::{self, Side};
use crate::net::hooks::Hooks;
use crate::target::Restorer;
use ferry_transport::link::{ControlSender, Link, LinkError};
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{
    Hello, MAX_SETUP, Message, MigrationId, Offer, Outcome, RestorerRequest,
};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Makes the restorer that an offer asks for, or says why it cannot be had. Starts nothing.
pub type RestorerMaker = Box<dyn Fn(&RestorerRequest) -> Result<Box<dyn Restorer>, String> + Send + Sync>;

/// Makes the sink for what an offer says comes along, or says why it cannot be taken.
pub type CompanionMaker = Box<dyn Fn(&Offer) -> Result<Box<dyn CompanionSink>, String> + Send + Sync>;

/// How this destination works.
pub struct ReceiverPlan {
    /// What this side says first.
    pub hello: Hello,
    /// Where journals are kept.
    pub state: PathBuf,
    /// Where images are assembled: on a tmpfs where there is one.
    pub work: PathBuf,
    /// The most memory that the page stores may take together; `None`: what is available.
    pub memory_limit: Option<Bytes>,
    /// How long a held copy waits for Commit.
    pub commit_patience: Duration,
    /// How long a source may be silent between messages of the rounds.
    pub round_patience: Duration,
    /// What a restore costs here, measured.
    pub restore_cost: Duration,
    /// The user's programs.
    pub hooks: Hooks,
    /// Makes restorers.
    pub restorer: RestorerMaker,
    /// Makes what takes directories that come along.
    pub companion: CompanionMaker,
    /// What stands in their way here, before anything is made.
    pub obstacles: fn(&[u8]) -> Vec<String>,
    /// Makes page handovers.
    pub handover: HandoverMaker,
}

/// What a person watching a receiver is told.
#[derive(Clone, Debug)]
pub enum ReceiverEvent {
    /// A migration begins.
    Begins {
        /// Which.
        id: MigrationId,
        /// What.
        target: String,
        /// From whom.
        peer: String,
    },
    /// An offer was refused.
    Refused {
        /// What.
        target: String,
        /// From whom.
        peer: String,
        /// Why, and what else was found.
        findings: Findings,
    },
    /// It was asked what it would say to an offer.
    Checked {
        /// What.
        target: String,
        /// By whom.
        peer: String,
        /// The answer.
        findings: Findings,
    },
    /// A state was entered.
    State {
        /// Which migration.
        id: MigrationId,
        /// The state's name.
        state: &'static str,
    },
    /// Something to know.
    Note {
        /// Which migration.
        id: MigrationId,
        /// What.
        note: String,
    },
    /// A migration ended here.
    Ended {
        /// Which.
        id: MigrationId,
        /// Whether it runs here.
        runs_here: bool,
        /// The last state, and its cause.
        end: String,
    },
}

/// Takes migrations.
pub struct Receiver {
    pub(super) plan: ReceiverPlan,
    active: Mutex<HashMap<MigrationId, Active>>,
    events: Box<dyn Fn(ReceiverEvent) + Send + Sync>,
}

struct Active {
    abort: watch::Sender<Option<String>>,
    reserved: Bytes,
}

impl Receiver {
    /// Brings what an earlier receiver left to its end; then ready to serve.
    pub fn new(
        plan: ReceiverPlan,
        events: Box<dyn Fn(ReceiverEvent) + Send + Sync>,
    ) -> std::io::Result<Receiver> {
        std::fs::create_dir_all(&plan.work)?;
        for (id, standing) in recovery::settle_all(&plan.state, &plan.work)? {
            events(ReceiverEvent::Note { id, note: format!("left by an earlier receiver: {standing:?}") });
        }
        if let Ok(mut nft) = crate::net::nft::Nft::open() {
            // Another receiver with this state may be at work.
            let mut alive = journal::list(&plan.state, Side::Destination)?;
            alive.retain(|id| journal::is_open(&plan.state, *id, Side::Destination));
            let _ = nft.remove_leftovers(&alive);
        }
        Ok(Receiver { plan, active: Mutex::default(), events })
    }

    pub(super) fn tell(&self, event: ReceiverEvent) {
        (self.events)(event);
    }

    /// Serves one link to its end.
    pub async fn serve(self: Arc<Self>, link: Box<dyn Link>) {
        let peer = link.peer();
        if let Err(error) = self.converse(Arc::from(link)).await {
            tracing::info!(%peer, %error, "the conversation ended");
        }
    }

    async fn converse(self: &Arc<Self>, link: Arc<dyn Link>) -> Result<(), LinkError> {
        let (mut sender, mut receiver) = link.control().await?;
        let Message::Hello(theirs) = receiver.recv().await? else {
            return Err(LinkError::Protocol("the source did not greet".into()));
        };
        sender.send(&Message::Hello(self.plan.hello.clone())).await?;
        match receiver.recv().await? {
            Message::AskOutcome(id) => {
                sender.send(&Message::Outcome(id, self.outcome(id))).await?;
                // The asker closes.
                let _ = tokio::time::timeout(Duration::from_secs(5), receiver.recv()).await;
                Ok(())
            }
            Message::Check(offer) => {
                let target = offer.target.clone();
                let findings = tokio::task::block_in_place(|| self.examine(&offer, &theirs, self.reserved()));
                self.tell(ReceiverEvent::Checked { target, peer: link.peer(), findings: findings.clone() });
                sender.send(&Message::Findings(findings)).await?;
                // The asker closes.
                let _ = tokio::time::timeout(Duration::from_secs(5), receiver.recv()).await;
                Ok(())
            }
            Message::Offer(offer) => match tokio::task::block_in_place(|| self.admit(&offer, &theirs)) {
                Ok((abort, findings)) => {
                    let id = offer.id;
                    let target = offer.target.clone();
                    self.tell(ReceiverEvent::Begins { id, target, peer: link.peer() });
                    let peer = Conversation::new(link, (sender, receiver), abort);
                    let destination = Destination::new(Arc::clone(self), *offer, peer, findings);
                    let Finished { runs_here, end } = destination.run().await;
                    self.lock().remove(&id);
                    self.tell(ReceiverEvent::Ended { id, runs_here, end });
                    Ok(())
                }
                Err(findings) => {
                    let target = offer.target.clone();
                    self.tell(ReceiverEvent::Refused {
                        target,
                        peer: link.peer(),
                        findings: findings.clone(),
                    });
                    refuse(&mut *sender, &link, findings).await
                }
            },
            other => Err(LinkError::Protocol(format!("{} instead of an offer", other.name()))),
        }
    }

    /// Everything that this host would say to an offer. Changes nothing.
    fn examine(&self, offer: &Offer, theirs: &Hello, reserved: Bytes) -> Findings {
        let plan = &self.plan;
        let places = vec![plan.state.clone(), plan.work.clone()];
        let mut here = LocalFacts::read(plan.hello.clone(), places, Some(plan.work.clone()));
        let most = plan.memory_limit.unwrap_or(here.memory_available);
        here.memory_available = Bytes(most.0.saturating_sub(reserved.0));
        let mut found = check_destination(offer, theirs, &here);
        match self.restorer(&offer.restorer) {
            Ok(restorer) => found.extend(restorer.examine(offer)),
            Err(what) => found.push(Finding::host(Severity::Blocks, Force::Final, what, "")),
        }
        if offer.along.len() > MAX_SETUP {
            let what = format!("what comes along is described in {} bytes: too many", offer.along.len());
            found.push(Finding::host(Severity::Blocks, Force::Final, what, ""));
        } else if !offer.along.is_empty() {
            let obstacles = (plan.obstacles)(&offer.along).into_iter();
            found.extend(obstacles.map(|what| Finding::host(Severity::Blocks, Force::Final, what, "")));
        }
        found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Findings::new(found)
    }

    /// The restorer that an offer asks for.
    pub(super) fn restorer(&self, request: &RestorerRequest) -> Result<Box<dyn Restorer>, String> {
        if request.setup.len() > MAX_SETUP {
            return Err(format!(
                "what the restorer is to know takes {} bytes: too many",
                request.setup.len()
            ));
        }
        (self.plan.restorer)(request)
    }

    /// Refuses early what cannot succeed; else reserves the memory, and says what was
    /// found nevertheless.
    fn admit(
        &self,
        offer: &Offer,
        theirs: &Hello,
    ) -> Result<(watch::Receiver<Option<String>>, Findings), Findings> {
        let (abort, watch) = watch::channel(None);
        // Reserved before it is looked at: of two offers at a time each sees the other's.
        let reserved = {
            let mut active = self.lock();
            let known = if active.contains_key(&offer.id) {
                Some("this migration is under way already")
            } else {
                // A second Accepted in its journal would deny what the first ones came to.
                let standing = recovery::standing(&self.plan.state, offer.id).ok();
                (standing != Some(recovery::DestinationStanding::Unknown))
                    .then_some("a migration of this number was here before: start a new one")
            };
            if let Some(what) = known {
                return Err(Findings::new(vec![Finding::host(Severity::Blocks, Force::Final, what, "")]));
            }
            let reserved = reserved_by(&active);
            active.insert(offer.id, Active { abort, reserved: offer.memory });
            reserved
        };
        let findings = self.examine(offer, theirs, reserved);
        if findings.stop(offer.forced) {
            self.lock().remove(&offer.id);
            return Err(findings);
        }
        Ok((watch, findings))
    }

    /// Memory that migrations under way will still take.
    fn reserved(&self) -> Bytes {
        reserved_by(&self.lock())
    }

    /// What became of a migration.
    fn outcome(&self, id: MigrationId) -> Outcome {
        if self.lock().contains_key(&id) {
            // Its driver decides: Resumed is in the journal as soon as it is true.
            return match recovery::standing(&self.plan.state, id) {
                Ok(recovery::DestinationStanding::Resumed) => Outcome::Resumed,
                _ => Outcome::Undecided,
            };
        }
        recovery::outcome(&self.plan.state, &self.plan.work, id)
    }

    /// Does what operators have asked for since it was last called: gives up
    /// migrations, unless they are committed.
    pub fn heed_requests(&self) {
        for (id, active) in self.lock().iter() {
            if requests::take(&self.plan.state, *id) {
                let _ = active.abort.send(Some("given up at the destination (`ferry abort`)".into()));
            }
        }
    }

    /// Gives up everything that is not committed.
    pub fn abort_all(&self, reason: &str) {
        for active in self.lock().values() {
            let _ = active.abort.send(Some(reason.into()));
        }
    }

    /// Migrations under way.
    pub fn active(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<MigrationId, Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A peer says how much: no sum of it may wrap.
fn reserved_by(active: &HashMap<MigrationId, Active>) -> Bytes {
    Bytes(active.values().fold(0, |sum, active| active.reserved.0.saturating_add(sum)))
}

async fn refuse(
    sender: &mut dyn ControlSender,
    link: &Arc<dyn Link>,
    findings: Findings,
) -> Result<(), LinkError> {
    sender.send(&Message::Refused(findings)).await?;
    // Time for it to arrive before the connection goes.
    tokio::time::sleep(Duration::from_millis(200)).await;
    link.close("refused").await;
    Ok(())
}
