//! The control messages, in the order in which a migration says them.
//!
//! ```text
//! source                                destination
//!   Hello  ------------------------------->
//!          <-------------------------------  Hello
//!   Offer  ------------------------------->
//!          <-------------------------------  Accepted | Refused
//!   (pages of round n on page streams)
//!   Along{blobs} ------------------------->  (where something comes along)
//!   RoundEnd{n} -------------------------->
//!          <-------------------------------  RoundAcked{n}          … per round
//!   Freezing ----------------------------->  takes the address over, holds what comes
//!          <-------------------------------  TakenOver
//!   (final pages)  Image*  Along{blobs} -->
//!   FinalState --------------------------->  assembles, restores, holds
//!          <-------------------------------  Ready | Failed
//!   Commit ------------------------------->  journals Commit: THE COMMIT POINT
//!          <-------------------------------  Resumed | NotResumed
//!          <-------------------------------  Drained               (brownout over)
//!
//!   Abort  ------------------------------->  at any time before Commit
//!   AskOutcome{id} ----------------------->  after a reconnect
//!          <-------------------------------  Outcome{id, …}
//!
//!   Check  ------------------------------->  in place of Offer: a question only
//!          <-------------------------------  Findings
//! ```

use super::finding::{Findings, Forced};
use crate::page::{PageRange, Round, SpaceId};
use crate::units::{Bytes, PageCount};
use serde::{Deserialize, Serialize};

/// The protocol's version, apart from the product's: raised when a message or
/// frame changes meaning. Both sides must speak the same one.
pub const PROTOCOL_VERSION: u32 = 5;

/// A migration's identity, random, chosen by the source. Printed as 32 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MigrationId(pub u128);

impl std::fmt::Display for MigrationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for MigrationId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(MigrationId)
    }
}

/// What either side says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the speaker.
    pub protocol: u32,
    /// The product's version and revision, for people.
    pub revision: String,
    /// `uname -m`.
    pub machine: String,
    /// Page size in bytes.
    pub page_size: u32,
    /// `uname -r`.
    pub kernel: String,
    /// CRIU's version, for example `4.2.1`.
    pub criu: String,
    /// CPU feature flags as the kernel names them (x86: `flags` of /proc/cpuinfo).
    pub cpu_features: Vec<String>,
}

/// How TCP connections are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcpMode {
    /// They move along and live on.
    Established,
    /// They are closed in the restored copy.
    Close,
    /// A workload with connections is refused.
    Skip,
}

/// How memory comes back at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreMode {
    /// The tasks run at once; pages follow from the local store.
    Lazy,
    /// All pages are in place before the tasks run.
    Eager,
}

/// An address that moves with the workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressMove {
    /// The address.
    pub address: std::net::IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// The interface that gets it at the destination.
    pub interface: String,
}

/// A file that the workload has open or mapped and that must be the same there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileClaim {
    /// Absolute path in the workload's mount namespace.
    pub path: String,
    /// Size in bytes where it must match (mapped files), else absent.
    pub size: Option<u64>,
    /// Permission bits and type, as `st_mode`.
    pub mode: u32,
    /// ELF build id, hex, where there is one.
    pub build_id: Option<String>,
}

/// A hard limit that the workload has and that a restore sets again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitClaim {
    /// Which, as `/proc/PID/limits` names it: `Max open files`.
    pub name: String,
    /// The highest of all processes; `u64::MAX` for unlimited.
    pub hard: u64,
}

/// Which protocol a port is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PortProtocol {
    /// TCP, listening.
    Tcp,
    /// UDP, bound.
    Udp,
}

/// A port that the workload serves on and that must be free there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortClaim {
    /// Of which protocol.
    pub protocol: PortProtocol,
    /// Where it is bound.
    pub address: std::net::IpAddr,
    /// The port.
    pub port: u16,
}

/// Who is to build the copy, and what only that one understands. Engine and
/// protocol carry it unread.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorerRequest {
    /// Which restorer: `process`.
    pub kind: String,
    /// What it must know beside images and pages, in a form of its own; at most
    /// [`MAX_SETUP`] bytes.
    #[serde(with = "super::byte_array")]
    pub setup: Vec<u8>,
}

/// The most bytes that a restorer's own description may have.
pub const MAX_SETUP: usize = 1 << 20;

impl RestorerRequest {
    /// For a tree of processes, which is in the images whole.
    pub fn process() -> RestorerRequest {
        RestorerRequest { kind: "process".into(), setup: Vec::new() }
    }
}

impl std::fmt::Debug for RestorerRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RestorerRequest({} with {} bytes)", self.kind, self.setup.len())
    }
}

/// What the source wants to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The migration.
    pub id: MigrationId,
    /// What it is, for people: `pid:4711 (redis-server)`.
    pub target: String,
    /// Who builds the copy.
    pub restorer: RestorerRequest,
    /// Resident memory of all processes.
    pub memory: Bytes,
    /// Every PID, TGID, SID and PGID that must be free at the destination;
    /// empty where the workload has a PID namespace of its own.
    pub pids: Vec<u32>,
    /// How memory is to come back.
    pub restore: RestoreMode,
    /// How connections are treated.
    pub tcp: TcpMode,
    /// The address that comes along.
    pub move_address: Option<AddressMove>,
    /// Files that must be there.
    pub files: Vec<FileClaim>,
    /// Hard limits that a restore sets again.
    pub limits: Vec<LimitClaim>,
    /// Ports that must be free; empty where the workload has a network namespace of its own.
    pub ports: Vec<PortClaim>,
    /// Whether findings that may be overridden are.
    pub forced: Forced,
    /// What comes along beside memory, in a form of its own; empty: nothing. At most
    /// [`MAX_SETUP`] bytes.
    #[serde(with = "super::byte_array")]
    pub along: Vec<u8>,
}

/// The destination's consent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// What a restore of a minimal process costs here, measured by `ferry setup`,
    /// in microseconds: part of the predicted downtime.
    pub restore_cost_us: u64,
    /// What was found nevertheless: notes, risks, and what was overridden.
    pub findings: Findings,
}

/// Totals of one round, which the destination compares with what it stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTotals {
    /// The round.
    pub round: Round,
    /// Chunks sent on all page streams together.
    pub chunks: u64,
    /// Pages with content.
    pub data_pages: PageCount,
    /// Zero pages.
    pub zero_pages: PageCount,
}

/// One address space as it stands at the freeze.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalSpace {
    /// Which.
    pub space: SpaceId,
    /// The PID under which the images name it (`pagemap-<pid>.img`).
    pub image_pid: u32,
    /// Every private page that exists, ascending and disjoint. Pages in the
    /// store that are not listed are gone and are dropped.
    pub present: Vec<PageRange>,
}

/// One file of the CRIU image directory.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// Its plain name, no directory.
    pub name: String,
    /// CRC32 of the whole file.
    pub crc: u32,
    /// Total size in bytes.
    pub size: u64,
    /// Where this part goes.
    pub offset: u64,
    /// This part's content; at most [`MAX_IMAGE_PART`] bytes.
    #[serde(with = "super::byte_array")]
    pub data: Vec<u8>,
}

impl std::fmt::Debug for ImageFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ImageFile({} {}+{} of {})", self.name, self.offset, self.data.len(), self.size)
    }
}

/// The most bytes of an image file in one message.
pub const MAX_IMAGE_PART: usize = 1 << 20;

/// Everything but pages and images that the restore needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalState {
    /// The frozen round's totals.
    pub totals: RoundTotals,
    /// Every address space of the tree.
    pub spaces: Vec<FinalSpace>,
    /// How many image files were sent.
    pub images: u32,
    /// The PID of the tree's root, as the images name it.
    pub root_pid: u32,
}

/// Microseconds that the destination spent inside the freeze.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreTimes {
    /// Assembling the image directory.
    pub assemble_us: u64,
    /// CRIU's restore until held.
    pub restore_us: u64,
}

/// What became of a migration, as the destination's journal knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The copy runs, or ran, here.
    Resumed,
    /// It provably never ran here and never will.
    NotResumed,
    /// Still being decided.
    Undecided,
    /// The commit was journaled, but whether anything ran cannot be proved.
    InDoubt(String),
    /// No such migration in the journal: it never got as far as a commit.
    Unknown,
}

/// Everything that is said on the control stream, in either direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// First words.
    Hello(Hello),
    /// Source: what is to be moved.
    Offer(Box<Offer>),
    /// Destination: go on.
    Accepted(Accepted),
    /// Destination: no, and everything that was found.
    Refused(Findings),
    /// Source: all chunks of this round are on their streams.
    RoundEnd(RoundTotals),
    /// Destination: all of them are in the store.
    RoundAcked(Round),
    /// Source: the freeze is being requested now; take the address over.
    Freezing,
    /// Destination: what clients send is held here from now on. Before it the source
    /// dumps nothing.
    TakenOver,
    /// Source: a part of an image file.
    Image(ImageFile),
    /// Source: nothing more follows.
    FinalState(Box<FinalState>),
    /// Destination: restored, complete, held.
    Ready(RestoreTimes),
    /// Source: let it run.
    Commit,
    /// Destination: it runs. Microseconds from Commit's arrival to running.
    Resumed(u64),
    /// Destination: provably nothing ran, and nothing will.
    NotResumed(String),
    /// Destination: every page has been handed over; the brownout is over.
    Drained,
    /// Source: stop, the workload goes on at the source.
    Abort(String),
    /// Destination: it cannot be done; the workload stays at the source.
    Failed(String),
    /// Source, after a reconnect: what became of it?
    AskOutcome(MigrationId),
    /// Destination: this.
    Outcome(MigrationId, Outcome),
    /// Either side: still here. Sent when nothing else was for a while.
    KeepAlive,
    /// Source: what would you say to this offer? Nothing is reserved or made for it.
    Check(Box<Offer>),
    /// Destination: this.
    Findings(Findings),
    /// Source: so many blobs of what comes along are on their stream, all rounds together.
    /// What the source says next counts them in.
    Along(u64),
}

impl Message {
    /// The message's name, for errors and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "Hello",
            Message::Offer(_) => "Offer",
            Message::Accepted(_) => "Accepted",
            Message::Refused(_) => "Refused",
            Message::RoundEnd(_) => "RoundEnd",
            Message::RoundAcked(_) => "RoundAcked",
            Message::Freezing => "Freezing",
            Message::TakenOver => "TakenOver",
            Message::Image(_) => "Image",
            Message::FinalState(_) => "FinalState",
            Message::Ready(_) => "Ready",
            Message::Commit => "Commit",
            Message::Resumed(_) => "Resumed",
            Message::NotResumed(_) => "NotResumed",
            Message::Drained => "Drained",
            Message::Abort(_) => "Abort",
            Message::Failed(_) => "Failed",
            Message::AskOutcome(_) => "AskOutcome",
            Message::Outcome(..) => "Outcome",
            Message::KeepAlive => "KeepAlive",
            Message::Check(_) => "Check",
            Message::Findings(_) => "Findings",
            Message::Along(_) => "Along",
        }
    }
}
