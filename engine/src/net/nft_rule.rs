//! The expressions of one nftables rule, as the kernel's virtual machine takes
//! them: load, compare, decide. Attribute numbers from
//! `linux/netfilter/nf_tables.h`.

use super::netlink::Messages;
use std::net::IpAddr;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const REGISTER_1: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const META_L4PROTO: u32 = 16;
const NF_DROP: u32 = 0;

/// Which end of a packet a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes to.
    Destination,
}

/// How a loaded value is compared.
#[derive(Clone, Copy)]
enum Comparison {
    Equal = 0,
    NotEqual = 1,
}

/// "Packets whose `end` is `address` are dropped", into a rule's expression list.
///
/// For IPv6 ICMPv6 is let through: neighbour discovery is ICMPv6, and a
/// destination that cannot answer a solicitation for its new address is not
/// found by the clients.
pub(super) fn drop_packets(list: &mut Messages, end: End, address: IpAddr) {
    if address.is_ipv6() {
        expression(list, "meta", |data| {
            data.number_be(1, REGISTER_1).number_be(2, META_L4PROTO);
        });
        compare(list, Comparison::NotEqual, &[libc::IPPROTO_ICMPV6 as u8]);
    }
    // Where the address stands in the header: RFC 791 §3.1, RFC 8200 §3.
    let (offset, bytes) = match (address, end) {
        (IpAddr::V4(address), End::Source) => (12, address.octets().to_vec()),
        (IpAddr::V4(address), End::Destination) => (16, address.octets().to_vec()),
        (IpAddr::V6(address), End::Source) => (8, address.octets().to_vec()),
        (IpAddr::V6(address), End::Destination) => (24, address.octets().to_vec()),
    };
    expression(list, "payload", |data| {
        data.number_be(1, REGISTER_1)
            .number_be(2, NETWORK_HEADER)
            .number_be(3, offset)
            .number_be(4, bytes.len() as u32);
    });
    compare(list, Comparison::Equal, &bytes);
    expression(list, "immediate", |data| {
        data.number_be(1, REGISTER_VERDICT).nest(2, |value| {
            value.nest(2, |verdict| {
                verdict.number_be(1, NF_DROP);
            });
        });
    });
}

fn compare(list: &mut Messages, comparison: Comparison, with: &[u8]) {
    expression(list, "cmp", |data| {
        data.number_be(1, REGISTER_1).number_be(2, comparison as u32).nest(3, |value| {
            value.attribute(1, with);
        });
    });
}

fn expression(list: &mut Messages, name: &str, data: impl FnOnce(&mut Messages)) {
    list.nest(NFTA_LIST_ELEM, |element| {
        element.text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, data);
    });
}
