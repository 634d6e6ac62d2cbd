//! The pager: brings pages into a restored workload while it runs, in place of
//! `criu lazy-pages`.
//!
//! It is a process of its own, so that the engine may be killed while the restored
//! workload still lacks pages, and two once it is armed, so that it may be killed
//! itself (see `guardian.rs`): [`PagerHandle::spawn`] starts it before the freeze,
//! [`PagerHandle::arm`] hands it the arena and the plan, CRIU hands it a
//! userfaultfd per task, and it goes on until every page is in place.
//!
//! ```text
//! engine --(socket, fd 0: arena, plan, listener)--> pager <--(lazy-pages.socket: uffds)-- criu restore
//! ```

mod crew;
mod fill;
pub(crate) mod fuzzing;
mod guardian;
mod handle;
mod ledger;
mod pending;
mod plan;
mod protocol;
mod roll;
mod server;

pub use guardian::pager_main;
pub use handle::{PagerError, PagerHandle};
pub use plan::FillOptions;
pub use protocol::Drained;

/// The name of the socket that `criu restore --lazy-pages` connects to, in its
/// work directory.
pub const SOCKET_NAME: &str = "lazy-pages.socket";
