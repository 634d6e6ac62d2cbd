//! Directories that come along with a workload: what `--sync-dir` names, a container's
//! writable layer, its volumes. docs/files.md tells the whole of it.
//!
//! ```text
//!  source                                       destination
//!  scan ─► plan ─► content ─► record ═ blobs ═► record ─► model ─► sink ─► place
//!  (what may have changed)  (what has)                    (may it?) (disk)  (one step)
//! ```
//!
//! The scan and the disk are at the ends; [`plan`] and [`model`] between them are pure.

mod content;
mod entry;
mod mapped;
mod model;
mod path;
mod place;
mod plan;
mod record;
mod scan;
mod settle;
mod setup;
mod sink;
mod source;
mod xattr;

pub use mapped::mapped_by;
pub use settle::{Lives, settle};
pub use setup::{Existing, Setup, TreeSetup};
pub use sink::{SyncSink, obstacles};
pub use source::{MappedFiles, SourceTree, SyncSource};
