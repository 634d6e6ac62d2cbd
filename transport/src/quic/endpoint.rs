//! Sockets and connections: how links are made and taken.
//!
//! A link's first connection opens a bidirectional stream with a 17-byte
//! preamble, `0` and a random token; that stream is the control stream. Further
//! connections of the link open one with `1` and the same token, and carry page
//! streams only. They must come from the same peer.

use super::identity::{Fingerprint, Identity};
use super::link::{QuicLink, lost};
use super::streams::{Found, gather};
use super::tls::{self, ALPN_FERRY, Pin, SERVER_NAME};
use super::trust::Trust;
use super::tuning::{self, LinkOptions};
use crate::link::{Connector, Link, LinkError};
use async_trait::async_trait;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, EndpointConfig, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

const FIRST: u8 = 0;
const FURTHER: u8 = 1;
type Token = [u8; 16];

/// The most connections that one link may have.
const MAX_CONNECTIONS: usize = 16;
/// How long a peer may take from its first packet to the preamble.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Takes links from peers that are trusted to send.
pub struct QuicListener {
    endpoint: Endpoint,
    links: tokio::sync::Mutex<mpsc::Receiver<Box<dyn Link>>>,
}

/// Makes links to one peer.
pub struct QuicConnector {
    address: SocketAddr,
    identity: Identity,
    trust: Trust,
    options: LinkOptions,
}

/// Links that wait for further connections.
type Waiting = Arc<Mutex<HashMap<Token, (Fingerprint, mpsc::Sender<Connection>)>>>;

impl QuicListener {
    /// Binds the address and begins to accept.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        trust: Trust,
        options: LinkOptions,
    ) -> Result<QuicListener, LinkError> {
        let tls = tls::server(identity, Pin::Senders(trust.clone()), ALPN_FERRY).map_err(local)?;
        let mut config =
            quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).map_err(local)?));
        config.transport_config(Arc::new(tuning::transport(&options)));
        let endpoint = bind(address, Some(config))?;
        let (found, links) = mpsc::channel::<Box<dyn Link>>(16);
        let waiting = Waiting::default();
        let accepting = endpoint.clone();
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let (found, waiting, trust) = (found.clone(), Arc::clone(&waiting), trust.clone());
                let (options, endpoint) = (options.clone(), accepting.clone());
                tokio::spawn(async move {
                    let shaken = tokio::time::timeout(HANDSHAKE, shake(incoming)).await;
                    let Ok(Some((connection, send, recv, kind, token))) = shaken else { return };
                    let Some(fingerprint) = fingerprint_of(&connection) else { return };
                    match kind {
                        FIRST => {
                            let Some(peer) = trust.find(fingerprint) else { return };
                            let name = format!("{} ({})", peer.name, connection.remote_address());
                            let (further, more) = mpsc::channel(MAX_CONNECTIONS);
                            remember(&waiting, token, fingerprint, further);
                            let gone = connection.clone();
                            let forget = Arc::clone(&waiting);
                            tokio::spawn(async move {
                                gone.closed().await;
                                lock(&forget).remove(&token);
                            });
                            let link =
                                link(name, vec![connection], (send, recv), more, &options, vec![endpoint]);
                            let _ = found.send(Box::new(link)).await;
                        }
                        FURTHER => match link_of(&waiting, token, fingerprint).await {
                            Some(sender) => drop(sender.send(connection).await),
                            None => connection.close(1u32.into(), b"no such link"),
                        },
                        _ => connection.close(1u32.into(), b"unknown preamble"),
                    }
                });
            }
        });
        Ok(QuicListener { endpoint, links: tokio::sync::Mutex::new(links) })
    }

    /// The address that peers reach.
    pub fn local_address(&self) -> Result<SocketAddr, LinkError> {
        self.endpoint.local_addr().map_err(local)
    }

    /// The next link; `None` when the listener was closed.
    pub async fn accept(&self) -> Option<Box<dyn Link>> {
        self.links.lock().await.recv().await
    }

    /// Accepts no more, and ends what is open.
    pub fn close(&self) {
        self.endpoint.close(0u32.into(), b"the receiver is shutting down");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn remember(waiting: &Waiting, token: Token, fingerprint: Fingerprint, further: mpsc::Sender<Connection>) {
    lock(waiting).insert(token, (fingerprint, further));
}

/// The link that this token names, if it is this peer's. The link's own first
/// packets may come later than those of its further connections.
async fn link_of(waiting: &Waiting, token: Token, peer: Fingerprint) -> Option<mpsc::Sender<Connection>> {
    for _ in 0..50 {
        let known = lock(waiting).get(&token).cloned();
        if let Some((owner, link)) = known {
            return (owner == peer).then_some(link);
        }
        tokio::time::sleep(HANDSHAKE / 100).await;
    }
    None
}

/// Completes the handshake and reads the preamble.
async fn shake(incoming: quinn::Incoming) -> Option<(Connection, SendStream, RecvStream, u8, Token)> {
    let connection = incoming.await.ok()?;
    let (send, mut recv) = connection.accept_bi().await.ok()?;
    let mut preamble = [0; 17];
    recv.read_exact(&mut preamble).await.ok()?;
    let token = preamble[1..].try_into().ok()?;
    Some((connection, send, recv, preamble[0], token))
}

impl QuicConnector {
    /// To this address, as this identity, to a peer that is trusted to receive.
    pub fn new(address: SocketAddr, identity: Identity, trust: Trust, options: LinkOptions) -> QuicConnector {
        QuicConnector { address, identity, trust, options }
    }

    async fn open(
        &self,
        kind: u8,
        token: Token,
    ) -> Result<(Endpoint, Connection, SendStream, RecvStream), LinkError> {
        let tls =
            tls::client(&self.identity, Pin::Receivers(self.trust.clone()), ALPN_FERRY).map_err(local)?;
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(local)?));
        config.transport_config(Arc::new(tuning::transport(&self.options)));
        let any: SocketAddr = match self.address {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let endpoint = bind(any, None)?;
        let connecting = endpoint.connect_with(config, self.address, SERVER_NAME).map_err(local)?;
        let connection = connecting.await.map_err(lost)?;
        let (mut send, recv) = connection.open_bi().await.map_err(lost)?;
        // Above every page stream.
        let _ = send.set_priority(1);
        let mut preamble = vec![kind];
        preamble.extend_from_slice(&token);
        send.write_all(&preamble).await.map_err(|error| LinkError::Lost(error.to_string()))?;
        Ok((endpoint, connection, send, recv))
    }
}

#[async_trait]
impl Connector for QuicConnector {
    async fn connect(&self) -> Result<Box<dyn Link>, LinkError> {
        let token: Token = rand::random();
        let (endpoint, connection, send, recv) = self.open(FIRST, token).await?;
        let name = fingerprint_of(&connection).and_then(|fingerprint| self.trust.find(fingerprint));
        let name =
            name.map_or_else(|| self.address.to_string(), |peer| format!("{} ({})", peer.name, self.address));
        let (mut connections, mut endpoints) = (vec![connection], vec![endpoint]);
        for _ in 1..self.options.connections.clamp(1, MAX_CONNECTIONS) {
            let (endpoint, connection, ..) = self.open(FURTHER, token).await?;
            connections.push(connection);
            endpoints.push(endpoint);
        }
        let (_, none) = mpsc::channel(1);
        Ok(Box::new(link(name, connections, (send, recv), none, &self.options, endpoints)))
    }
}

/// Makes a link, and gathers the streams of all its connections.
fn link(
    peer: String,
    connections: Vec<Connection>,
    control: (SendStream, RecvStream),
    mut further: mpsc::Receiver<Connection>,
    options: &LinkOptions,
    endpoints: Vec<Endpoint>,
) -> QuicLink {
    let (send, recv) = control;
    let said = Arc::new(tokio::sync::Mutex::new(send));
    let (pages, incoming) = mpsc::channel(64);
    let (blobs, incoming_blobs) = mpsc::channel(64);
    let found = Found { pages, blobs };
    for connection in connections.clone() {
        tokio::spawn(gather(connection, found.clone()));
    }
    tokio::spawn(async move {
        let mut taken = 1;
        while let Some(connection) = further.recv().await {
            taken += 1;
            if taken > MAX_CONNECTIONS {
                connection.close(1u32.into(), b"too many connections");
                continue;
            }
            tokio::spawn(gather(connection, found.clone()));
        }
    });
    QuicLink {
        peer,
        connections,
        control: tokio::sync::Mutex::new(Some((Arc::clone(&said), recv))),
        said,
        incoming: tokio::sync::Mutex::new(incoming),
        blobs: tokio::sync::Mutex::new(incoming_blobs),
        compression: options.compression,
        limiter: options.limiter.clone(),
        next: AtomicUsize::new(0),
        _endpoints: endpoints,
    }
}

pub(super) fn fingerprint_of(connection: &Connection) -> Option<Fingerprint> {
    let identity = connection.peer_identity()?;
    let certificates = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    certificates.first().map(Fingerprint::of)
}

/// A UDP socket with large buffers, and quinn on it.
pub(super) fn bind(address: SocketAddr, server: Option<quinn::ServerConfig>) -> Result<Endpoint, LinkError> {
    let bound = || -> std::io::Result<Endpoint> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        for (name, set) in [
            ("receive", socket.set_recv_buffer_size(tuning::SOCKET_BUFFER)),
            ("send", socket.set_send_buffer_size(tuning::SOCKET_BUFFER)),
        ] {
            if let Err(error) = set {
                tracing::debug!(%error, "the {name} buffer keeps its size");
            }
        }
        socket.bind(&address.into())?;
        let runtime = quinn::default_runtime().ok_or_else(|| std::io::Error::other("no runtime"))?;
        let mut config = EndpointConfig::default();
        // The default of 1472 would cap what the peer may send, whatever it discovers.
        config.max_udp_payload_size(tuning::MAX_MTU).map_err(std::io::Error::other)?;
        Endpoint::new(config, server, socket.into(), runtime)
    };
    bound().map_err(|error| LinkError::Local(format!("cannot use {address}: {error}")))
}

pub(super) fn local(error: impl std::fmt::Display) -> LinkError {
    LinkError::Local(error.to_string())
}
