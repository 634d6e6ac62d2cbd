//! Bare QUIC streams with this crate's sockets and tuning, nothing on top: what
//! the page path is measured against.

use super::endpoint::{bind, local};
use super::identity::Identity;
use super::link::lost;
use super::tls::{self, Pin, SERVER_NAME};
use super::trust::Trust;
use super::tuning::{self, LinkOptions};
use crate::link::LinkError;
use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

const ALPN: &[u8] = b"ferry-bare/1";

/// The accepting end.
pub struct Server(Endpoint);

impl Server {
    /// Binds an address in the calling thread's network.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        trust: Trust,
        options: &LinkOptions,
    ) -> Result<Server, LinkError> {
        let tls = tls::server(identity, Pin::Senders(trust), ALPN).map_err(local)?;
        let mut config =
            quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).map_err(local)?));
        config.transport_config(Arc::new(tuning::transport(options)));
        Ok(Server(bind(address, Some(config))?))
    }
}

/// Connections of this process to itself.
pub struct Pair {
    connections: Vec<(Connection, Connection)>,
    _endpoints: Vec<Endpoint>,
}

impl Pair {
    /// From the calling thread's network, as many connections as the options say,
    /// laid out as a link's are: one socket at the accepting side, one per
    /// connection at the other.
    pub async fn connect(
        server: &Server,
        identity: &Identity,
        trust: Trust,
        options: &LinkOptions,
    ) -> Result<Pair, LinkError> {
        let Server(server) = server;
        let to = server.local_addr().map_err(local)?;
        let any = (Ipv4Addr::UNSPECIFIED, 0).into();
        let transport = Arc::new(tuning::transport(options));
        let (mut connections, mut endpoints) = (Vec::new(), vec![server.clone()]);
        for _ in 0..options.connections {
            let tls = tls::client(identity, Pin::Receivers(trust.clone()), ALPN).map_err(local)?;
            let mut config =
                quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(local)?));
            config.transport_config(Arc::clone(&transport));
            let client = bind(any, None)?;
            let connecting = client.connect_with(config, to, SERVER_NAME).map_err(local)?;
            let accepting = async {
                let incoming = server.accept().await.ok_or_else(|| local("the endpoint was closed"))?;
                incoming.await.map_err(lost)
            };
            let (here, there) = tokio::join!(connecting, accepting);
            connections.push((here.map_err(lost)?, there?));
            endpoints.push(client);
        }
        Ok(Pair { connections, _endpoints: endpoints })
    }

    /// Sends `data` `count` times, one stream a connection, and reads it into
    /// buffers of that size; bytes per second.
    pub async fn send(&self, data: &Bytes, count: usize) -> Result<f64, LinkError> {
        let began = Instant::now();
        let streams = self.connections.len();
        let mut tasks = Vec::new();
        for (nth, (here, there)) in self.connections.iter().enumerate() {
            let (here, there, data, size) = (here.clone(), there.clone(), data.clone(), data.len());
            tasks.push(tokio::spawn(async move {
                let mut stream = here.open_uni().await.map_err(lost)?;
                for _ in (nth..count).step_by(streams) {
                    stream.write_chunk(data.clone()).await.map_err(local)?;
                }
                stream.finish().map_err(local)
            }));
            tasks.push(tokio::spawn(async move {
                let mut stream = there.accept_uni().await.map_err(lost)?;
                for _ in (nth..count).step_by(streams) {
                    let mut buffer = vec![0; size];
                    stream.read_exact(&mut buffer).await.map_err(local)?;
                }
                Ok(())
            }));
        }
        for task in tasks {
            task.await.map_err(local)??;
        }
        Ok((count * data.len()) as f64 / began.elapsed().as_secs_f64())
    }
}
