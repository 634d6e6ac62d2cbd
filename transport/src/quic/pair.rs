//! Pairing: two hosts come to know each other's certificates through a code that
//! a person carries from one terminal to the other.
//!
//! The code is 80 bits of the receiver's fingerprint and 80 random bits, in
//! base32. The sender accepts only a certificate whose fingerprint begins so,
//! which no one in between can have; over the channel that this makes it sends
//! the random part and its name. The receiver then pins the certificate that the
//! channel was made with. A code works once, and dies after five wrong tries.

use super::endpoint::{bind, fingerprint_of, local};
use super::identity::{Fingerprint, Identity};
use super::link::lost;
use super::tls::{self, ALPN_PAIR, Pin, SERVER_NAME};
use super::trust::{Peer, Role, Trust};
use super::tuning::{self, LinkOptions};
use crate::link::LinkError;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const PREFIX: usize = 10;
const SECRET: usize = 10;
const TRIES: u32 = 5;
/// What a peer may say: the secret and a name.
const MAX_WORDS: usize = SECRET + 64;

/// A one-time code, as it is shown: `XXXX-XXXX-…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    prefix: [u8; PREFIX],
    secret: [u8; SECRET],
}

impl Code {
    fn new(fingerprint: Fingerprint) -> Code {
        let mut prefix = [0; PREFIX];
        prefix.copy_from_slice(&fingerprint.0[..PREFIX]);
        Code { prefix, secret: rand::random() }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = [self.prefix.as_slice(), &self.secret].concat();
        let text = data_encoding::BASE32_NOPAD.encode(&bytes);
        let groups: Vec<&str> =
            text.as_bytes().chunks(4).filter_map(|group| std::str::from_utf8(group).ok()).collect();
        f.write_str(&groups.join("-"))
    }
}

/// A text that is not a pairing code.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pairing code has 32 letters and digits in groups of four, as `ferry pair --listen` shows it")]
pub struct NotACode;

impl std::str::FromStr for Code {
    type Err = NotACode;
    fn from_str(text: &str) -> Result<Code, NotACode> {
        let text: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
        let bytes =
            data_encoding::BASE32_NOPAD.decode(text.to_uppercase().as_bytes()).map_err(|_| NotACode)?;
        let (prefix, secret) = bytes.split_first_chunk().ok_or(NotACode)?;
        Ok(Code { prefix: *prefix, secret: secret.try_into().map_err(|_| NotACode)? })
    }
}

/// The receiver's end: shows a code and waits for the one who knows it.
pub struct Pairing {
    endpoint: quinn::Endpoint,
    trust: Trust,
    code: Code,
}

impl Pairing {
    /// Opens the address for pairing, with a fresh code.
    pub fn listen(address: SocketAddr, identity: &Identity, trust: Trust) -> Result<Pairing, LinkError> {
        let tls = tls::server(identity, Pin::Anyone, ALPN_PAIR).map_err(local)?;
        let mut config =
            quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).map_err(local)?));
        config.transport_config(Arc::new(tuning::transport(&LinkOptions::default())));
        let endpoint = bind(address, Some(config))?;
        Ok(Pairing { endpoint, trust, code: Code::new(identity.fingerprint()) })
    }

    /// What to show.
    pub fn code(&self) -> &Code {
        &self.code
    }

    /// The address that peers reach.
    pub fn local_address(&self) -> Result<SocketAddr, LinkError> {
        self.endpoint.local_addr().map_err(local)
    }

    /// Waits for the peer, pins it as a sender, and returns it.
    pub async fn wait(self) -> Result<Peer, LinkError> {
        for _ in 0..TRIES {
            let incoming = self.endpoint.accept().await.ok_or_else(|| local("the endpoint was closed"))?;
            let tried = tokio::time::timeout(Duration::from_secs(10), self.hear(incoming)).await;
            if let Ok(Ok(Some(peer))) = tried {
                let _ = tokio::time::timeout(Duration::from_millis(500), self.endpoint.wait_idle()).await;
                return Ok(peer);
            }
        }
        Err(LinkError::Untrusted("five wrong tries: the code is dead; make a new one".into()))
    }

    async fn hear(&self, incoming: quinn::Incoming) -> Result<Option<Peer>, LinkError> {
        let connection = incoming.await.map_err(lost)?;
        let (mut send, mut recv) = connection.accept_bi().await.map_err(lost)?;
        let words = recv.read_to_end(MAX_WORDS).await.map_err(local)?;
        let Some((secret, name)) = words.split_first_chunk::<SECRET>() else { return Ok(None) };
        let fingerprint = fingerprint_of(&connection).ok_or_else(|| local("no certificate"))?;
        if !equal(secret, &self.code.secret) {
            connection.close(1u32.into(), b"wrong code");
            return Ok(None);
        }
        let name = String::from_utf8_lossy(name).into_owned();
        let peer = Peer { name, fingerprint, role: Role::Sender };
        let peer = self.trust.add_paired(&peer).map_err(local)?;
        // From here on it is done, and the code used up, whether or not the peer
        // lives to hear it.
        if send.write_all(b"paired").await.is_ok() && send.finish().is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(3), connection.closed()).await;
        }
        Ok(Some(peer))
    }
}

/// The sender's end: proves that it knows the code, and pins the receiver under
/// `peer_name`; the receiver pins this host under `own_name`.
pub async fn join(
    address: SocketAddr,
    code: &Code,
    own_name: &str,
    peer_name: &str,
    identity: &Identity,
    trust: &Trust,
) -> Result<Peer, LinkError> {
    let tls = tls::client(identity, Pin::Prefix(code.prefix.to_vec()), ALPN_PAIR).map_err(local)?;
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(local)?));
    config.transport_config(Arc::new(tuning::transport(&LinkOptions::default())));
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let endpoint = bind(any, None)?;
    let connection =
        endpoint.connect_with(config, address, SERVER_NAME).map_err(local)?.await.map_err(lost)?;
    let fingerprint = fingerprint_of(&connection).ok_or_else(|| local("no certificate"))?;
    let (mut send, mut recv) = connection.open_bi().await.map_err(lost)?;
    let words = [code.secret.as_slice(), own_name.as_bytes()].concat();
    send.write_all(&words).await.map_err(local)?;
    send.finish().map_err(local)?;
    let answer = recv.read_to_end(16).await.map_err(|_| {
        LinkError::Untrusted("the receiver did not accept the code: it works once; make a new one".into())
    })?;
    if answer != b"paired" {
        return Err(LinkError::Untrusted("the receiver did not accept the code".into()));
    }
    let peer = Peer { name: peer_name.to_owned(), fingerprint, role: Role::Receiver };
    let peer = trust.add_paired(&peer).map_err(local)?;
    connection.close(0u32.into(), b"paired");
    let _ = tokio::time::timeout(Duration::from_millis(500), endpoint.wait_idle()).await;
    Ok(peer)
}

/// Compares without telling by its time where the first difference is.
fn equal(a: &[u8; SECRET], b: &[u8; SECRET]) -> bool {
    a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
