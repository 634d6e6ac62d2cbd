use super::*;
use crate::link::memory;
use crate::page::{Round, SpaceId};

/// Says `count` messages from each side in turn; how many the other side got, and
/// how the speaker and the listener ended.
async fn talk(fault: Fault, count: u32) -> (u32, u32) {
    let (here, there) = memory::pair();
    let (here, there) = pair(here, there, fault);
    let (mut say, mut hear) = here.control().await.unwrap();
    let (mut answer, mut listen) = there.control().await.unwrap();
    let speaking = async {
        for n in 0..count {
            if say.send(&Message::RoundAcked(Round(n))).await.is_err() {
                return n;
            }
            match hear.recv().await {
                Ok(message) => assert_eq!(message, Message::RoundAcked(Round(n))),
                Err(error) => {
                    assert!(matches!(error, LinkError::Lost(_)), "{error}");
                    return n;
                }
            }
        }
        count
    };
    let answering = async {
        for n in 0..count {
            match listen.recv().await {
                Ok(message) => assert_eq!(message, Message::RoundAcked(Round(n))),
                Err(error) => {
                    assert!(matches!(error, LinkError::Lost(_)), "{error}");
                    return n;
                }
            }
            if answer.send(&Message::RoundAcked(Round(n))).await.is_err() {
                return n + 1;
            }
        }
        count
    };
    tokio::join!(speaking, answering)
}

#[tokio::test]
async fn a_cut_at_every_message_ends_both_sides_with_the_right_count() {
    const COUNT: u32 = 6;
    for n in 0..COUNT {
        let at = u64::from(n);
        // (what the speaker saw answered, what the listener heard)
        let cases = [
            (Cut::Swallowing(Side::Initiator, at), (n, n)),
            (Cut::After(Side::Initiator, at), (n, n + 1)),
            (Cut::Swallowing(Side::Acceptor, at), (n, n + 1)),
            (Cut::After(Side::Acceptor, at), (n + 1, n + 1)),
        ];
        for (cut, (answered, heard)) in cases {
            let got = talk(Fault::cut(cut), COUNT).await;
            assert_eq!(got, (answered, heard), "{cut:?}");
        }
    }
    assert_eq!(talk(Fault::cut(Cut::Never), COUNT).await, (COUNT, COUNT));
    let slow = Fault { cut: Cut::Never, delay: Duration::from_millis(1) };
    assert_eq!(talk(slow, COUNT).await, (COUNT, COUNT));
}

#[tokio::test]
async fn a_cut_after_some_chunks_is_never_an_orderly_end() {
    let chunk = |n| PageChunk { space: SpaceId(n), round: Round(0), runs: vec![], data: Default::default() };
    for allowed in 0..5u64 {
        let (here, there) = memory::pair();
        let (here, there) = pair(here, there, Fault::cut(Cut::AfterChunks(allowed)));
        let mut out = here.open_pages().await.unwrap();
        let mut pages = there.accept_pages().await.unwrap();
        let mut sent = 0;
        while out.send(chunk(sent)).await.is_ok() {
            sent += 1;
        }
        assert_eq!(u64::from(sent), allowed);
        assert!(out.finish().await.is_err());
        drop(out);
        for n in 0..sent {
            assert_eq!(pages.recv().await.unwrap().unwrap().space, SpaceId(n));
        }
        assert!(matches!(pages.recv().await, Err(LinkError::Lost(_))));
        assert!(matches!(here.open_pages().await, Err(LinkError::Lost(_))));
    }
}

#[tokio::test]
async fn after_a_cut_a_fresh_link_can_be_made() {
    let (connector, listener) = network(vec![Fault::cut(Cut::Swallowing(Side::Initiator, 0))]);
    let here = connector.connect().await.unwrap();
    let there = listener.accept().await.unwrap();
    here.control().await.unwrap().0.send(&Message::Commit).await.unwrap();
    let lost = there.control().await.unwrap().1.recv().await;
    assert!(matches!(lost, Err(LinkError::Lost(_))), "{lost:?}");
    let here = connector.connect().await.unwrap();
    let there = listener.accept().await.unwrap();
    let (mut say, _hear) = here.control().await.unwrap();
    say.send(&Message::Commit).await.unwrap();
    assert_eq!(there.control().await.unwrap().1.recv().await.unwrap(), Message::Commit);
}
