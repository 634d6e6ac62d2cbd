//! nftables from within: the table that keeps the kernel silent about a moved
//! address until its sockets are there, and the removal of what a crash left.
//!
//! Between the address's arrival and the restored sockets the destination's
//! kernel knows no connection and would answer every segment with a reset. So a
//! table of our own drops what comes for the address, before connection tracking
//! sees it, and what would go out from it. Nothing else is touched: ferry's own
//! QUIC traffic runs between other addresses.
//!
//! Speaks nfnetlink directly; no `nft` program is needed. A batch is atomic:
//! all of it or nothing.

use super::netlink::{ACK, APPEND, Attributes, CREATE, DUMP, EXCLUSIVE, Messages, Netlink};
use super::nft_rule::{End, drop_packets};
use ferry_transport::wire::control::MigrationId;
use std::io;
use std::net::IpAddr;

const NETLINK_NETFILTER: isize = 12;
const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const PRE_ROUTING: u32 = 0;
const LOCAL_OUT: u32 = 3;
/// `NF_IP_PRI_RAW`: before connection tracking.
const PRIORITY_RAW: i32 = -300;
/// `NF_ACCEPT` as a chain's policy.
const ACCEPT: u32 = 1;
/// Every table of ours begins with this.
const PREFIX: &str = "ferry_";

/// An nftables family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6 together.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// IPv6.
    Ip6 = 10,
}

impl Family {
    fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::Ip } else { Family::Ip6 }
    }

    fn from_number(number: u8) -> Option<Family> {
        [Family::Inet, Family::Ip, Family::Ip6].into_iter().find(|family| *family as u8 == number)
    }
}

/// A table's name with its family.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
}

/// The nftables of one network namespace.
pub struct Nft(Netlink);

impl Nft {
    /// Opens the nftables of this thread's network namespace.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT`: this kernel has no nfnetlink.
    pub fn open() -> io::Result<Nft> {
        Netlink::open(NETLINK_NETFILTER).map(Nft)
    }

    /// Every table whose name begins with `prefix`.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_ADMIN, `EINVAL` or `EOPNOTSUPP` from a kernel without nf_tables.
    pub fn tables(&mut self, prefix: &str) -> io::Result<Vec<Table>> {
        let mut request = Messages::new();
        request.message(GET_TABLE, DUMP).raw(&header(0, 0));
        let mut found = Vec::new();
        self.0.dump(&mut request, |answer| {
            let name = Attributes::after(answer.payload, 4).text(1).unwrap_or_default();
            let family = answer.payload.first().and_then(|family| Family::from_number(*family));
            if let Some(family) = family.filter(|_| name.starts_with(prefix)) {
                found.push(Table { family, name: name.to_owned() });
            }
        })?;
        Ok(found)
    }

    /// Removes a table with everything in it; one that is not there is no error.
    pub fn delete_table(&mut self, table: &Table) -> io::Result<()> {
        let mut batch = Messages::new();
        begin(&mut batch);
        delete(&mut batch, table);
        end(&mut batch);
        self.0.request(&mut batch, &[libc::ENOENT])
    }

    /// Removes the tables that CRIU's network lock left behind: after a dump that
    /// ended in the tree's removal nobody unlocks. CRIU ≥ 4.2 names them
    /// `inet CRIU-<run id>` (the run id is in `inventory.img`), older ones
    /// `inet CRIU-<pid of the root task>`; `identity` is either.
    pub fn remove_criu_tables(&mut self, identity: &str) -> io::Result<()> {
        self.delete_table(&Table { family: Family::Inet, name: format!("CRIU-{identity}") })
    }

    /// The tables of CRIU that stand now: what is there after a dump and was not
    /// before it belongs to that dump.
    pub fn criu_tables(&mut self) -> io::Result<Vec<Table>> {
        self.tables("CRIU-")
    }

    /// Removes the table of one migration, if it stands: of one whose engine died.
    pub fn remove_table_of(&mut self, id: MigrationId) -> io::Result<()> {
        let name = format!("{PREFIX}{id}");
        let standing = self.tables(PREFIX)?;
        standing.iter().filter(|table| table.name == name).try_for_each(|table| self.delete_table(table))
    }

    /// Removes what an engine that crashed left behind: every table of ours but
    /// those of migrations that are still alive. Says which.
    pub fn remove_leftovers(&mut self, alive: &[MigrationId]) -> io::Result<Vec<Table>> {
        let alive: Vec<String> = alive.iter().map(|id| format!("{PREFIX}{id}")).collect();
        let mut removed = self.tables(PREFIX)?;
        removed.retain(|table| !alive.contains(&table.name));
        for table in &removed {
            self.delete_table(table)?;
        }
        Ok(removed)
    }
}

/// The table that drops everything from and to a moved address, for one
/// migration. Not installed until [`DropTable::install`]; dropping this object
/// does not remove the table, since a kernel that answers resets is worse than
/// one that is silent until the next start cleans up.
pub struct DropTable {
    nft: Nft,
    table: Table,
    address: IpAddr,
}

impl DropTable {
    /// Opens what is needed; nothing is installed yet.
    pub fn prepare(id: MigrationId, address: IpAddr) -> io::Result<DropTable> {
        let table = Table { family: Family::of(address), name: format!("{PREFIX}{id}") };
        Ok(DropTable { nft: Nft::open()?, table, address })
    }

    /// Installs the table: one message, atomic. A table of this migration that
    /// already stands is replaced.
    pub fn install(&mut self) -> io::Result<()> {
        let (family, name) = (self.table.family as u8, self.table.name.clone());
        let mut batch = Messages::new();
        begin(&mut batch);
        // Create, delete, create: whatever stood there, what stands afterwards is ours.
        let create = |batch: &mut Messages| {
            batch.message(NEW_TABLE, CREATE | ACK).raw(&header(family, 0)).text(1, &name);
        };
        create(&mut batch);
        delete(&mut batch, &self.table);
        create(&mut batch);
        for (chain, hook, end) in
            [("prerouting", PRE_ROUTING, End::Destination), ("output", LOCAL_OUT, End::Source)]
        {
            batch
                .message(NEW_CHAIN, CREATE | EXCLUSIVE | ACK)
                .raw(&header(family, 0))
                .text(1, &name)
                .text(3, chain)
                .nest(4, |place| {
                    place.number_be(1, hook).number_be(2, PRIORITY_RAW as u32);
                })
                .number_be(5, ACCEPT)
                .text(7, "filter");
            batch
                .message(NEW_RULE, CREATE | APPEND | ACK)
                .raw(&header(family, 0))
                .text(1, &name)
                .text(2, chain)
                .nest(4, |list| drop_packets(list, end, self.address));
        }
        super::nft::end(&mut batch);
        self.nft.0.request(&mut batch, &[])
    }

    /// Removes the table: one message. Removing what is not there is no error.
    pub fn remove(&mut self) -> io::Result<()> {
        self.nft.delete_table(&self.table)
    }

    /// Its name and family.
    pub fn table(&self) -> &Table {
        &self.table
    }
}

/// `struct nfgenmsg`: family, version 0, resource in network order.
fn header(family: u8, resource: u16) -> [u8; 4] {
    let resource = resource.to_be_bytes();
    [family, 0, resource[0], resource[1]]
}

fn begin(batch: &mut Messages) {
    batch.message(BATCH_BEGIN, 0).raw(&header(0, SUBSYSTEM >> 8));
}

fn end(batch: &mut Messages) {
    batch.message(BATCH_END, 0).raw(&header(0, SUBSYSTEM >> 8));
}

fn delete(batch: &mut Messages, table: &Table) {
    batch.message(DELETE_TABLE, ACK).raw(&header(table.family as u8, 0)).text(1, &table.name);
}
