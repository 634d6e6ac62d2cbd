//! Links over real QUIC on loopback.

mod support;

use bytes::Bytes;
use ferry_transport::link::{Connector, Link, LinkError};
use ferry_transport::page::{PAGE_SIZE, PageAddr, PageChunk, Round, Run, RunKind, SpaceId};
use ferry_transport::quic::pair::{Code, Pairing, join};
use ferry_transport::quic::trust::Role;
use ferry_transport::quic::{LinkOptions, QuicListener};
use ferry_transport::wire::compress::Compression;
use ferry_transport::wire::control::Message;
use std::time::Duration;
use support::{Host, connector, host, introduce, know, listen, loopback};

fn options(connections: usize, compression: Compression) -> LinkOptions {
    LinkOptions { connections, compression, idle_timeout: Duration::from_secs(2), limiter: None }
}

async fn linked(options: LinkOptions) -> (Box<dyn Link>, Box<dyn Link>, QuicListener, Host, Host) {
    let (source, destination) = (host(), host());
    introduce(&source, &destination);
    let (listener, to) = listen(&destination, &options);
    let connector = connector(&source, to, &options);
    let (here, there) = tokio::join!(connector.connect(), listener.accept());
    (here.unwrap(), there.unwrap(), listener, source, destination)
}

fn chunk(n: u32) -> PageChunk {
    let data: Vec<u8> = (0..4 * PAGE_SIZE).map(|i| (i / 64) as u8 ^ n as u8).collect();
    let run = |start, count, kind| Run { start: PageAddr::from_index(start), count, kind };
    PageChunk {
        space: SpaceId(n),
        round: Round(1),
        runs: vec![run(16, 4, RunKind::Data), run(100, 1000, RunKind::Zero)],
        data: Bytes::from(data),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_pages_arrive_over_every_stream_and_connection() {
    for (connections, compression) in
        [(1, Compression::Off), (3, Compression::Lz4), (2, Compression::Zstd), (1, Compression::Auto)]
    {
        let (here, there, _listener, _source, _destination) = linked(options(connections, compression)).await;
        let (mut say, mut hear) = here.control().await.unwrap();
        let (mut answer, mut listen) = there.control().await.unwrap();
        say.send(&Message::Freezing).await.unwrap();
        assert_eq!(listen.recv().await.unwrap(), Message::Freezing);
        answer.send(&Message::RoundAcked(Round(3))).await.unwrap();
        assert_eq!(hear.recv().await.unwrap(), Message::RoundAcked(Round(3)));

        let sending = async {
            for stream in 0..4 {
                let mut pages = here.open_pages().await.unwrap();
                for n in 0..50 {
                    assert!(pages.send(chunk(stream * 50 + n)).await.unwrap().0 > 0);
                }
                pages.finish().await.unwrap();
            }
        };
        let receiving = async {
            let mut seen = Vec::new();
            for _ in 0..4 {
                let mut pages = there.accept_pages().await.unwrap();
                while let Some(got) = pages.recv().await.unwrap() {
                    let want = chunk(got.space.0);
                    assert_eq!((got.runs, got.data), (want.runs, want.data));
                    seen.push(got.space.0);
                }
            }
            seen.sort();
            assert_eq!(seen, (0..200).collect::<Vec<_>>());
        };
        tokio::join!(sending, receiving);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_on_either_side() {
    for (source_knows, destination_knows) in [(true, false), (false, true)] {
        let (source, destination) = (host(), host());
        if source_knows {
            know(&source, &destination, Role::Receiver);
        }
        if destination_knows {
            know(&destination, &source, Role::Sender);
        }
        let options = options(1, Compression::Off);
        let (listener, to) = listen(&destination, &options);
        let connector = connector(&source, to, &options);
        // In TLS 1.3 the client may be done before it learns that it was refused.
        let refused = match connector.connect().await {
            Err(error) => error,
            Ok(link) => {
                let (_, mut hear) = link.control().await.unwrap();
                hear.recv().await.unwrap_err()
            }
        };
        assert!(matches!(refused, LinkError::Untrusted(_)), "{refused:?}");
        assert!(refused.to_string().contains("ferry pair"), "{refused}");
        let accepted = tokio::time::timeout(Duration::from_millis(200), listener.accept()).await;
        assert!(accepted.is_err(), "nothing of a stranger reaches the engine");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_a_limit() {
    let (source, destination) = (host(), host());
    know(&source, &destination, Role::Receiver);
    know(&destination, &source, Role::Receiver);
    let options = options(1, Compression::Off);
    let (_listener, to) = listen(&destination, &options);
    let connector = connector(&source, to, &options);
    let refused = match connector.connect().await {
        Err(error) => error,
        Ok(link) => link.control().await.unwrap().1.recv().await.unwrap_err(),
    };
    assert!(matches!(refused, LinkError::Untrusted(_)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_carries_its_reason_and_a_death_is_a_loss() {
    let (here, there, _listener, _source, _destination) = linked(options(1, Compression::Off)).await;
    let (_say, mut hear) = here.control().await.unwrap();
    let (mut answer, _listen) = there.control().await.unwrap();
    answer.send(&Message::KeepAlive).await.unwrap();
    assert_eq!(hear.recv().await.unwrap(), Message::KeepAlive);
    there.close("because").await;
    let ended = hear.recv().await.unwrap_err();
    assert!(matches!(&ended, LinkError::Closed(why) if why == "because"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_pairs_once_and_only_the_right_one() {
    let (source, destination) = (host(), host());
    let pairing = Pairing::listen(loopback(), &destination.identity, destination.trust.clone()).unwrap();
    let (to, code) = (pairing.local_address().unwrap(), pairing.code().to_string());
    let waiting = tokio::spawn(pairing.wait());

    let mut wrong = code.clone().into_bytes();
    let last = wrong.last_mut().unwrap();
    *last = if *last == b'A' { b'B' } else { b'A' };
    let wrong: Code = String::from_utf8(wrong).unwrap().parse().unwrap();
    let refused = join(to, &wrong, "source", "destination", &source.identity, &source.trust).await;
    assert!(matches!(refused, Err(LinkError::Untrusted(_))), "{refused:?}");
    assert!(source.trust.list().unwrap().is_empty());

    let code: Code = code.to_lowercase().replace('-', " ").parse().unwrap();
    let peer = join(to, &code, "source", "destination", &source.identity, &source.trust).await.unwrap();
    assert_eq!(peer.fingerprint, destination.identity.fingerprint());
    let known = waiting.await.unwrap().unwrap();
    assert_eq!((known.name.as_str(), known.fingerprint), ("source", source.identity.fingerprint()));
    assert!(known.may_send() && !known.may_receive());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_for_another_receiver_is_refused_before_the_secret_is_sent() {
    let (source, destination, imposter) = (host(), host(), host());
    let real = Pairing::listen(loopback(), &destination.identity, destination.trust.clone()).unwrap();
    let fake = Pairing::listen(loopback(), &imposter.identity, imposter.trust.clone()).unwrap();
    let code = real.code().clone();
    let to = fake.local_address().unwrap();
    let _waiting = tokio::spawn(fake.wait());
    let refused = join(to, &code, "source", "destination", &source.identity, &source.trust).await;
    assert!(matches!(refused, Err(LinkError::Untrusted(_))), "{refused:?}");
}
