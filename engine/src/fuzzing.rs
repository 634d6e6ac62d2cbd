//! The one door for the fuzz targets in `fuzz/`: what takes foreign bytes and is
//! private to its module. No part of the engine's interface.

use crate::check::socket_tables;
use crate::destination::images::ImageIntake;
use crate::net::netlink::{Attributes, Walk};
use crate::net::{address, interface};
use ferry_transport::wire::control::ImageFile;
use std::path::Path;

pub use crate::lazy::fuzzing::{PagerEvent, lazy_pages_socket, pager, pager_message, plan};

/// A datagram as netlink sockets receive it, and each answer in it as every parser
/// of answers sees it.
pub fn netlink(datagram: &[u8]) {
    for answer in Walk(datagram).take(1000) {
        let _ = (address::parse(answer.payload), interface::parse(answer.payload));
        let _ = (socket_tables::parse_inet(answer.payload), socket_tables::parse_unix(answer.payload));
        let attributes = Attributes::after(answer.payload, 4);
        let _ = attributes.text(1);
        for (_, nested) in attributes {
            let _ = Attributes(nested).count();
        }
    }
}

/// A line of `/proc/net/netlink`.
pub fn netlink_table(line: &str) {
    let _ = socket_tables::netlink_line(line);
}

/// What a source may send as images, into an empty directory, at most `limit` bytes.
pub fn images_arrive(directory: &Path, limit: u64, parts: Vec<ImageFile>, files: u32) {
    let mut intake = ImageIntake::new(directory, limit);
    // The first refusal ends the migration.
    let _ = parts.into_iter().try_for_each(|part| intake.put(part)).and_then(|()| intake.finish(files));
}
