//! Asking a destination: over a link in memory, to a real receiver, which must not
//! reserve or make anything for a question.

use ferry_engine::check::{AskError, Findings, Forced, Severity, ask_destination};
use ferry_engine::destination::{PagerHandover, Receiver, ReceiverEvent, ReceiverPlan};
use ferry_engine::net::hooks::Hooks;
use ferry_engine::target::process::{Criu, ProcessRestorer};
use ferry_transport::link::Connector;
use ferry_transport::link::memory::{MemoryConnector, network};
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{
    FileClaim, Hello, MAX_SETUP, Message, MigrationId, Offer, PROTOCOL_VERSION, RestoreMode, RestorerRequest,
    TcpMode,
};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        revision: "test".into(),
        machine: "x86_64".into(),
        page_size: 4096,
        kernel: "6.18".into(),
        criu: "4.2.1".into(),
        cpu_features: vec![],
    }
}

fn offer() -> Offer {
    Offer {
        id: MigrationId(7),
        target: "pid:1 (test)".into(),
        restorer: RestorerRequest::process(),
        memory: Bytes::MIB,
        pids: vec![],
        restore: RestoreMode::Eager,
        tcp: TcpMode::Established,
        move_address: None,
        files: vec![],
        limits: vec![],
        ports: vec![],
        forced: Forced::No,
        along: Vec::new(),
    }
}

/// An offer of a file that is nowhere.
fn impossible() -> Offer {
    let file = FileClaim { path: "/nowhere/at all".into(), size: None, mode: 0o100_644, build_id: None };
    Offer { files: vec![file], ..offer() }
}

struct Destination {
    receiver: Arc<Receiver>,
    connector: MemoryConnector,
    events: Arc<Mutex<Vec<ReceiverEvent>>>,
    place: tempfile::TempDir,
}

impl Destination {
    fn start() -> Destination {
        let place = tempfile::tempdir().unwrap();
        for directory in ["state", "work"] {
            std::fs::create_dir(place.path().join(directory)).unwrap();
        }
        let plan = ReceiverPlan {
            hello: hello(),
            state: place.path().join("state"),
            work: place.path().join("work"),
            memory_limit: Some(Bytes::GIB),
            commit_patience: Duration::from_secs(1),
            round_patience: Duration::from_secs(1),
            restore_cost: Duration::ZERO,
            hooks: Hooks::none(),
            // There is no such CRIU: an offer that is taken fails early.
            restorer: Box::new(|request| match request.kind.as_str() {
                "process" => {
                    let criu = Criu { program: "/nowhere/criu".into(), shim: None };
                    Ok(Box::new(ProcessRestorer::new(criu)))
                }
                other => Err(format!("this host cannot build a copy of kind {other:?}")),
            }),
            companion: Box::new(|_| Err("nothing comes along here".into())),
            obstacles: |_| vec!["nothing comes along here".into()],
            handover: Box::new(|| Box::new(PagerHandover::new("/nowhere/ferry".into()))),
        };
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&events);
        let receiver = Receiver::new(plan, Box::new(move |event| told.lock().unwrap().push(event))).unwrap();
        let receiver = Arc::new(receiver);
        let (connector, listener) = network();
        let serving = Arc::clone(&receiver);
        tokio::spawn(async move {
            while let Some(link) = listener.accept().await {
                tokio::spawn(Arc::clone(&serving).serve(link));
            }
        });
        Destination { receiver, connector, events, place }
    }

    fn files(&self) -> Vec<String> {
        let list = |directory: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(directory).unwrap();
            entries.map(|entry| entry.unwrap().path().display().to_string()).collect()
        };
        [list(&self.place.path().join("state")), list(&self.place.path().join("work"))].concat()
    }
}

fn blocking(findings: &Findings) -> Vec<String> {
    findings.stopping(Forced::No).map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_and_leaves_nothing() {
    let there = Destination::start();
    let fine = ask_destination(&there.connector, hello(), offer()).await.unwrap();
    assert_eq!(blocking(&fine), Vec::<String>::new());

    let mut peer = hello();
    peer.cpu_features = vec!["avx512f".into()];
    let found = ask_destination(&there.connector, peer, impossible()).await.unwrap();
    let all = blocking(&found).join("\n");
    assert!(all.contains("/nowhere/at all") && all.contains("avx512f"), "{all}");
    assert_eq!(found.all()[0].severity, Severity::Blocks);

    assert_eq!(there.receiver.active(), 0);
    assert_eq!(there.files(), Vec::<String>::new());
    let events = there.events.lock().unwrap();
    assert!(events.iter().all(|event| matches!(event, ReceiverEvent::Checked { .. })), "{events:?}");
    assert_eq!(events.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_is_refused_with_the_same_findings_unless_it_is_forced() {
    let there = Destination::start();
    let asked = ask_destination(&there.connector, hello(), impossible()).await.unwrap();
    let refused = match said_to(&there.connector, impossible()).await {
        Message::Refused(findings) => findings,
        other => panic!("{other:?}"),
    };
    assert_eq!(blocking(&refused), blocking(&asked));
    assert_eq!(there.receiver.active(), 0);

    // Taken, so that the next thing that fails is the CRIU that is not there.
    match said_to(&there.connector, Offer { forced: Forced::Yes, ..impossible() }).await {
        Message::Failed(why) => assert!(why.contains("/nowhere"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_memory_than_is_allowed_is_refused() {
    let there = Destination::start();
    let most = Offer { memory: Bytes(1 << 40), ..offer() };
    let found = ask_destination(&there.connector, hello(), most).await.unwrap();
    assert!(blocking(&found).iter().any(|text| text.contains("are available here")), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_nobody_here_can_build_is_refused() {
    let there = Destination::start();
    let asks = |kind: &str, length| {
        let restorer = RestorerRequest { kind: kind.into(), setup: vec![0; length] };
        ask_destination(&there.connector, hello(), Offer { restorer, ..offer() })
    };
    let unknown = blocking(&asks("spaceship", 0).await.unwrap()).join("\n");
    assert!(unknown.contains("\"spaceship\""), "{unknown}");
    let too_long = blocking(&asks("process", MAX_SETUP + 1).await.unwrap()).join("\n");
    assert!(too_long.contains("too many"), "{too_long}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_named() {
    let (connector, listener) = network();
    tokio::spawn(async move {
        let link = listener.accept().await.unwrap();
        let (mut sender, mut receiver) = link.control().await.unwrap();
        let _ = receiver.recv().await;
        let _ = sender.send(&Message::Hello(Hello { protocol: 99, ..hello() })).await;
        let _ = receiver.recv().await;
    });
    let error = ask_destination(&connector, hello(), offer()).await.unwrap_err();
    assert!(matches!(error, AskError::Version { theirs: 99 }), "{error}");
}

/// What the destination says to an offer.
async fn said_to(connector: &MemoryConnector, offer: Offer) -> Message {
    let link = connector.connect().await.unwrap();
    let (mut sender, mut receiver) = link.control().await.unwrap();
    sender.send(&Message::Hello(hello())).await.unwrap();
    assert!(matches!(receiver.recv().await.unwrap(), Message::Hello(_)));
    sender.send(&Message::Offer(Box::new(offer))).await.unwrap();
    receiver.recv().await.unwrap()
}
