//! CRIU image files: parsing with limits, and assembling a directory that restores.

mod assemble;
pub mod file;
pub mod proto;
pub mod tree;
pub mod vma;

pub use assemble::{Assembly, LazySpace, assemble};
pub use tree::ImageError;
