//! The lab's network: one bridge, and a virtual cable from it to each host.
//!
//! Everything goes through rtnetlink on a thread that has entered the network
//! namespace in question, so no program such as `ip` has to be installed and
//! the machine's own network is never touched. A namespace lives as long as a
//! descriptor of it is open or a process is in it; none has a name.

use super::tbf;
use anyhow::{Context, Result, anyhow};
use ferry_transport::units::ByteRate;
use futures::{StreamExt, TryStreamExt};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::tc::TcMessage;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};
use std::fs::File;
use std::future::Future;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The name of the interface in each host.
pub const HOST_LINK: &str = "eth0";
const BRIDGE: &str = "br0";

/// A network namespace, held open.
#[derive(Debug)]
pub struct NetworkNamespace(OwnedFd);

impl NetworkNamespace {
    /// A new namespace that no process is in.
    pub fn new() -> Result<Self> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
                    let file = File::open("/proc/thread-self/ns/net").context("/proc/thread-self/ns/net")?;
                    Ok(NetworkNamespace(file.into()))
                })
                .join()
                .map_err(|_| anyhow!("the thread that makes a network namespace panicked"))?
        })
    }

    /// The namespace of a running process.
    pub fn of_process(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        Ok(NetworkNamespace(File::open(&path).context(path)?.into()))
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets that
    /// it opens stay in the namespace wherever they are used afterwards.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)
                        .context("cannot enter a network namespace")?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("work inside a network namespace panicked"))?
        })
    }

    /// Moves the calling thread into the namespace for good.
    pub fn enter(&self) -> Result<()> {
        setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// Runs netlink requests inside the namespace.
    fn netlink<T, F>(&self, work: impl FnOnce(Handle) -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
    {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                let connection = tokio::spawn(connection);
                let result = work(handle).await;
                connection.abort();
                result
            })
        })?
    }
}

/// The lab's switch: a namespace with nothing but a bridge and one cable end
/// per host.
#[derive(Debug)]
pub struct Switch {
    namespace: NetworkNamespace,
}

impl Switch {
    /// A bridge without ports.
    pub fn new() -> Result<Self> {
        let namespace = NetworkNamespace::new()?;
        namespace
            .netlink(async |handle| {
                handle.link().add(LinkBridge::new(BRIDGE).up().build()).execute().await?;
                Ok(())
            })
            .context("cannot make the lab's bridge")?;
        Ok(Switch { namespace })
    }

    /// Connects `host` under `address`, limited to `limit` in each direction.
    pub fn connect(
        &self,
        name: &str,
        host: &NetworkNamespace,
        addresses: &[(IpAddr, u8)],
        limit: Option<ByteRate>,
    ) -> Result<()> {
        let port = port_of(name);
        let peer_namespace = host.0.as_raw_fd();
        self.namespace
            .netlink(async |handle| {
                let bridge = index_of(&handle, BRIDGE).await?;
                let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name(HOST_LINK).build();
                peer.attributes.push(LinkAttribute::NetNsFd(peer_namespace));
                let cable = LinkVeth::new(&port, HOST_LINK)
                    .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                    .controller(bridge)
                    .up()
                    .build();
                handle.link().add(cable).execute().await?;
                if let Some(rate) = limit {
                    let index = index_of(&handle, &port).await?;
                    set_qdisc(&handle, tbf::root_limit(index, rate)).await?;
                }
                Ok(())
            })
            .with_context(|| format!("cannot connect host {name} to the bridge"))?;
        host.netlink(async |handle| {
            let loopback = LinkMessageBuilder::<LinkUnspec>::new().name("lo").up().build();
            handle.link().set(loopback).execute().await?;
            let index = index_of(&handle, HOST_LINK).await?;
            handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
            for (address, length) in addresses {
                handle.address().add(index, *address, *length).execute().await?;
            }
            if let Some(rate) = limit {
                set_qdisc(&handle, tbf::root_limit(index, rate)).await?;
            }
            Ok(())
        })
        .with_context(|| format!("cannot set up the network of host {name}"))
    }
}

impl Switch {
    /// Cuts or mends the cable of a host, at the switch: the host's interface
    /// keeps its addresses and routes and merely hears nothing.
    pub fn set_cable(&self, name: &str, cable: Cable) -> Result<()> {
        let port = port_of(name);
        self.namespace
            .netlink(async |handle| {
                let link = LinkUnspec::new_with_index(index_of(&handle, &port).await?);
                let link = match cable {
                    Cable::Up => link.up(),
                    Cable::Down => link.down(),
                };
                handle.link().set(link.build()).execute().await?;
                Ok(())
            })
            .with_context(|| format!("cannot cut or mend the cable of host {name}"))
    }
}

/// The name of the switch's end of a host's cable; link names have 15 bytes.
fn port_of(name: &str) -> String {
    format!("p-{name}").chars().take(15).collect()
}

/// Adds an address to the host's interface.
pub fn add_address(host: &NetworkNamespace, address: IpAddr, length: u8) -> Result<()> {
    host.netlink(async |handle| {
        let index = index_of(&handle, HOST_LINK).await?;
        handle.address().add(index, address, length).execute().await?;
        Ok(())
    })
    .with_context(|| format!("cannot add the address {address}/{length}"))
}

/// Takes an address from the host's interface.
pub fn remove_address(host: &NetworkNamespace, address: IpAddr) -> Result<()> {
    use rtnetlink::packet_route::address::AddressAttribute;
    host.netlink(async |handle| {
        let index = index_of(&handle, HOST_LINK).await?;
        let filter = handle.address().get().set_link_index_filter(index).set_address_filter(address);
        let found: Vec<_> = filter.execute().try_collect().await?;
        let message = found
            .into_iter()
            .find(|message| message.attributes.contains(&AddressAttribute::Address(address)))
            .context("the address is not there")?;
        handle.address().del(message).execute().await?;
        Ok(())
    })
    .with_context(|| format!("cannot remove the address {address}"))
}

/// The addresses of the host's interface.
pub fn addresses(host: &NetworkNamespace) -> Result<Vec<IpAddr>> {
    use rtnetlink::packet_route::address::AddressAttribute;
    host.netlink(async |handle| {
        let index = index_of(&handle, HOST_LINK).await?;
        let found: Vec<_> =
            handle.address().get().set_link_index_filter(index).execute().try_collect().await?;
        let addresses = found.into_iter().flat_map(|message| message.attributes).filter_map(|attribute| {
            if let AddressAttribute::Address(address) = attribute { Some(address) } else { None }
        });
        Ok(addresses.collect())
    })
}

/// The state of a host's cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// Packets pass.
    Up,
    /// Nothing passes; open connections see silence, not a reset.
    Down,
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32> {
    let mut links = handle.link().get().match_name(name.to_string()).execute();
    let link = links.try_next().await.with_context(|| format!("no link {name}"))?;
    Ok(link.with_context(|| format!("no link {name}"))?.header.index)
}

/// Sends a queueing discipline that rtnetlink has no builder for.
async fn set_qdisc(handle: &Handle, message: TcMessage) -> Result<()> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let mut replies = handle.clone().request(request)?;
    while let Some(reply) = replies.next().await {
        if let NetlinkPayload::Error(error) = reply.payload
            && error.code.is_some()
        {
            return Err(error.to_io()).context("the kernel refused the link limit (token bucket filter)");
        }
    }
    Ok(())
}
