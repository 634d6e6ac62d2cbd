//! Peers that are trusted and misbehave, peers that vanish, and what a close owes.

mod support;

use bytes::{Bytes, BytesMut};
use ferry_transport::link::{Connector, Link, LinkError};
use ferry_transport::page::{PAGE_SIZE, PageAddr, PageChunk, Round, Run, RunKind, SpaceId};
use ferry_transport::quic::{LinkOptions, QuicListener};
use ferry_transport::wire::compress::Encoding;
use ferry_transport::wire::control::Message;
use ferry_transport::wire::{codec, frame};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use support::{Host, connector, host, introduce, listen};

fn options() -> LinkOptions {
    LinkOptions { idle_timeout: Duration::from_secs(2), ..LinkOptions::default() }
}

/// Takes any server: the misbehaving one is the client.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}

/// A bare QUIC client with a host's certificate, or with none.
async fn raw_client(who: Option<&Host>, to: SocketAddr) -> Result<quinn::Connection, quinn::ConnectionError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut tls = match who {
        Some(host) => {
            let file = std::fs::read(host.state.path().join("identity/identity.bin")).unwrap();
            let length = u32::from_le_bytes(file[..4].try_into().unwrap()) as usize;
            let (certificate, key) = file[4..].split_at(length);
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
            builder.with_client_auth_cert(vec![certificate.to_vec().into()], key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"ferry/1".to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    endpoint.connect_with(config, to, "ferry").unwrap().await
}

/// A raw client that has introduced itself, and what the listener made of it.
async fn intruder() -> (quinn::Connection, quinn::SendStream, Box<dyn Link>, (QuicListener, Host, Host)) {
    let (source, destination) = (host(), host());
    introduce(&source, &destination);
    let (listener, to) = listen(&destination, &options());
    let connection = raw_client(Some(&source), to).await.unwrap();
    let (mut send, recv) = connection.open_bi().await.unwrap();
    send.write_all(&[0; 17]).await.unwrap();
    std::mem::forget(recv);
    let link = listener.accept().await.unwrap();
    (connection, send, link, (listener, source, destination))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_stream_of_nonsense_is_a_protocol_error() {
    let whole = codec::encode(&Message::Abort("x".repeat(100))).unwrap();
    let mut damaged = whole.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    let unknown = [&[5, 0, 0, 0, 99][..], &[0; 9]].concat();
    let oversized = [&u32::MAX.to_le_bytes()[..], &[9], &[0; 4]].concat();
    let oversized_for_its_kind = [&(65_537u32).to_le_bytes()[..], &[11], &[0; 4]].concat();
    let nonsense = vec![0xff; 5000];
    let cut_short = whole[..whole.len() - 1].to_vec();
    let cases = [damaged, unknown, oversized, oversized_for_its_kind, nonsense, cut_short];
    for bytes in cases {
        let (_connection, mut send, link, _hosts) = intruder().await;
        let (_say, mut hear) = link.control().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        send.finish().unwrap();
        let error = hear.recv().await.unwrap_err();
        assert!(matches!(error, LinkError::Protocol(_)), "{error:?}");
    }
}

fn chunk() -> PageChunk {
    let run = Run { start: PageAddr::from_index(16), count: 4, kind: RunKind::Data };
    let data = (0..4 * PAGE_SIZE).map(|i| (i / 64) as u8).collect::<Vec<_>>().into();
    PageChunk { space: SpaceId(1), round: Round(0), runs: vec![run], data }
}

/// What a page stream begins with.
const PAGES: [u8; 1] = [0];

#[tokio::test(flavor = "multi_thread")]
async fn a_page_stream_of_nonsense_is_a_protocol_error() {
    let (connection, _send, link, _hosts) = intruder().await;
    for encoding in [Encoding::Raw, Encoding::Lz4, Encoding::Zstd] {
        let good = frame::encode(&chunk(), encoding).unwrap();
        let good = [&good.head[..], &good.payload[..]].concat();
        let change = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 0x80;
            bytes
        };
        let mut cases = vec![vec![0xee; 3000], good[..10].to_vec(), good[..good.len() - 1].to_vec()];
        cases.extend((0..49).chain([good.len() - 1]).map(change));
        for bytes in cases {
            let mut pages = connection.open_uni().await.unwrap();
            pages.write_all(&[&PAGES[..], &good[..], &bytes[..]].concat()).await.unwrap();
            pages.finish().unwrap();
            let mut incoming = link.accept_pages().await.unwrap();
            assert_eq!(incoming.recv().await.unwrap().unwrap().data, chunk().data);
            match incoming.recv().await {
                Err(LinkError::Protocol(_)) => {}
                // A flip that changes nothing that is said, within a compressed payload.
                Ok(Some(same)) if same.data == chunk().data && same.runs == chunk().runs => {}
                other => panic!("{other:?}"),
            }
        }
    }
    let mut pages = connection.open_uni().await.unwrap();
    pages.write_all(b"\0FPG1").await.unwrap();
    let mut incoming = link.accept_pages().await.unwrap();
    pages.reset(7u32.into()).unwrap();
    assert!(matches!(incoming.recv().await, Err(LinkError::Lost(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_false_preambles_leave_the_listener_at_work() {
    let (source, destination, stranger) = (host(), host(), host());
    introduce(&source, &destination);
    let (listener, to) = listen(&destination, &options());
    for who in [None, Some(&stranger)] {
        // In TLS 1.3 the client may be done before it learns that it was refused.
        let refused = match raw_client(who, to).await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        };
        let code = match refused {
            quinn::ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
            quinn::ConnectionError::TransportError(error) => u64::from(error.code),
            other => panic!("{other:?}"),
        };
        assert!((0x100..0x200).contains(&code), "a TLS alert, not {code:#x}");
    }
    // An unknown kind of connection; a further connection of a link that does not exist is
    // closed too, but only after its first one could have come.
    let connection = raw_client(Some(&source), to).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&[9; 17]).await.unwrap();
    assert!(matches!(connection.closed().await, quinn::ConnectionError::ApplicationClosed(_)));

    let connector = connector(&source, to, &options());
    let (here, there) = tokio::join!(connector.connect(), listener.accept());
    let (mut say, _hear) = here.unwrap().control().await.unwrap();
    say.send(&Message::Freezing).await.unwrap();
    assert_eq!(there.unwrap().control().await.unwrap().1.recv().await.unwrap(), Message::Freezing);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_before_a_close_arrives() {
    let (source, destination) = (host(), host());
    introduce(&source, &destination);
    let (listener, to) = listen(&destination, &options());
    let connector = connector(&source, to, &options());
    for n in 0..10u32 {
        let (here, there) = tokio::join!(connector.connect(), listener.accept());
        let (here, there) = (here.unwrap(), there.unwrap());
        let (closing, other) = if n % 2 == 0 { (here, there) } else { (there, here) };
        // The stream is the initiator's to open: it speaks first.
        let (mut say, _hear) = closing.control().await.unwrap();
        let (_answer, mut listen) = other.control().await.unwrap();
        let said = async {
            for n in 0..100 {
                say.send(&Message::RoundAcked(Round(n))).await.unwrap();
            }
            say.send(&Message::Abort("x".repeat(50_000))).await.unwrap();
            closing.close("done").await;
            closing.close("done again").await;
        };
        let heard = async {
            for n in 0..100 {
                assert_eq!(listen.recv().await.unwrap(), Message::RoundAcked(Round(n)));
            }
            assert!(matches!(listen.recv().await.unwrap(), Message::Abort(_)));
            let end = listen.recv().await.unwrap_err();
            assert!(matches!(&end, LinkError::Closed(why) if why == "done"), "{end:?}");
        };
        tokio::join!(said, heard);
    }
}

/// A client that dies without a word: its runtime, and with it its network
/// driver, is gone.
#[test]
fn a_peer_that_vanishes_is_lost_on_every_stream() {
    let (source, destination) = (host(), host());
    introduce(&source, &destination);
    let here = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let there = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (listener, to) = there.block_on(async { listen(&destination, &options()) });
    let connector = connector(&source, to, &options());
    let alive = here.block_on(async {
        let link = connector.connect().await.unwrap();
        let (mut say, hear) = link.control().await.unwrap();
        say.send(&Message::Freezing).await.unwrap();
        let mut pages = link.open_pages().await.unwrap();
        pages.send(chunk()).await.unwrap();
        (link, say, hear, pages)
    });
    there.block_on(async {
        let link = listener.accept().await.unwrap();
        let (mut answer, mut listen) = link.control().await.unwrap();
        assert_eq!(listen.recv().await.unwrap(), Message::Freezing);
        let mut incoming = link.accept_pages().await.unwrap();
        assert!(incoming.recv().await.unwrap().is_some());
        here.shutdown_background();
        lost(listen.recv().await);
        lost(incoming.recv().await);
        lost(link.accept_pages().await.map(|_| ()));
        lost(answer.send(&Message::Commit).await);
    });
    drop(alive);
}

fn lost<T: std::fmt::Debug>(result: Result<T, LinkError>) {
    assert!(matches!(result, Err(LinkError::Lost(_))), "{result:?}");
}

/// The receiver's futures are dropped again and again between the bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_receive_loses_nothing() {
    let (_connection, mut send, link, _hosts) = intruder().await;
    let (_say, mut hear) = link.control().await.unwrap();
    let mut bytes = BytesMut::new();
    for n in 0..20 {
        bytes.extend_from_slice(&codec::encode(&Message::RoundAcked(Round(n))).unwrap());
    }
    let bytes: Bytes = bytes.freeze();
    let sending = async {
        for at in 0..bytes.len() {
            send.write_all(&bytes[at..=at]).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let receiving = async {
        let mut heard = 0;
        while heard < 20 {
            if let Ok(message) = tokio::time::timeout(Duration::from_micros(200), hear.recv()).await {
                assert_eq!(message.unwrap(), Message::RoundAcked(Round(heard)));
                heard += 1;
            }
        }
    };
    tokio::join!(sending, receiving);
}
