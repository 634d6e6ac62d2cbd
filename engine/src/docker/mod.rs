//! Docker: what its engine says of a container, and what it is asked to do.
//!
//! A container travels as Docker's own words (JSON) as far as possible, so that what
//! later versions add to them is not lost on the way.

pub mod aftercare;
pub mod api;
pub mod check;
pub mod checkpoint;
pub mod container;
pub mod facts;
pub mod image;
pub mod relay;
pub mod sending;

pub use api::{Api, ApiError, DEFAULT_SOCKET};
pub use container::{Container, ContainerConfig};
pub use image::{ImageClaim, ImagePlan};
