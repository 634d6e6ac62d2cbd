//! All targets.

mod files;
mod images;
mod kernel;
mod own;
mod pages;
mod wire;

use crate::Target;

pub use files::blobs;
pub use images::{arriving_images, image_directory, image_files};
pub use kernel::{elf, netlink, procfs};
pub use own::{address_move, journal};
pub use pages::{page_store, pager, pager_sockets};
pub use wire::{control, frame};

/// Every target there is.
pub const ALL: [Target; 14] = [
    Target { name: "control", seeds: wire::control_seeds, run: control },
    Target { name: "frame", seeds: wire::frame_seeds, run: frame },
    Target { name: "blobs", seeds: files::blob_seeds, run: blobs },
    Target { name: "page_store", seeds: pages::store_seeds, run: page_store },
    Target { name: "arriving_images", seeds: images::arriving_seeds, run: arriving_images },
    Target { name: "image_files", seeds: images::file_seeds, run: image_files },
    Target { name: "image_directory", seeds: images::directory_seeds, run: image_directory },
    Target { name: "pager", seeds: pages::pager_seeds, run: pager },
    Target { name: "pager_sockets", seeds: pages::socket_seeds, run: pager_sockets },
    Target { name: "procfs", seeds: kernel::procfs_seeds, run: procfs },
    Target { name: "netlink", seeds: kernel::netlink_seeds, run: netlink },
    Target { name: "elf", seeds: kernel::elf_seeds, run: elf },
    Target { name: "journal", seeds: own::journal_seeds, run: journal },
    Target { name: "address_move", seeds: own::address_seeds, run: address_move },
];

/// The target of a name.
///
/// # Panics
/// When there is none.
pub fn target(name: &str) -> Target {
    ALL.into_iter().find(|target| target.name == name).expect("a target of this name")
}
