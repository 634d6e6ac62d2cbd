//! What the destination says to what a process needs.

use crate::scenario::{blocks, plain, root};
use ferry_engine::check::{Forced, LazyRestore, LocalFacts, check_destination, describe_needs};
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::{
    Hello, MigrationId, Offer, PROTOCOL_VERSION, PortClaim, PortProtocol, RestoreMode, RestorerRequest,
    TcpMode,
};

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        revision: String::new(),
        machine: "x86_64".into(),
        page_size: 4096,
        kernel: "6.1.0".into(),
        criu: "4.2.1".into(),
        cpu_features: vec!["avx2".into(), "sse4_2".into()],
    }
}

#[test]
fn ports_in_use_at_the_destination_block() {
    if !root() {
        return;
    }
    let subjected = plain("kinds");
    let needs = describe_needs(subjected.pid());
    assert_eq!(needs.ports.len(), 1, "{:?}", needs.ports);
    let claim = needs.ports[0];
    assert_eq!((claim.protocol, claim.address), (PortProtocol::Tcp, [127, 0, 0, 1].into()));
    let found = |ports| {
        let offer = Offer {
            id: MigrationId(1),
            target: String::new(),
            restorer: RestorerRequest::process(),
            memory: Bytes(0),
            pids: vec![],
            restore: RestoreMode::Eager,
            tcp: TcpMode::Established,
            move_address: None,
            files: vec![],
            limits: vec![],
            ports,
            forced: Forced::No,
            along: Vec::new(),
        };
        let here = LocalFacts::read(hello(), vec![], None);
        let found = check_destination(&offer, &hello(), &here);
        found.into_iter().filter(|finding| finding.what.contains("port")).map(|f| f.what).collect::<Vec<_>>()
    };
    // This host is its own destination: the workload itself has the port.
    let taken = found(vec![claim]);
    assert!(matches!(&taken[..], [what] if what.contains(&claim.port.to_string())), "{taken:?}");
    let everywhere = PortClaim { address: [0, 0, 0, 0].into(), ..claim };
    assert_eq!(found(vec![everywhere]).len(), 1);
    let elsewhere = PortClaim { address: [127, 0, 0, 2].into(), ..claim };
    let other = PortClaim { protocol: PortProtocol::Udp, ..claim };
    assert_eq!(found(vec![elsewhere, other]), Vec::<String>::new());
}

#[test]
fn the_destination_compares_and_names_everything_that_differs() {
    if !root() {
        return;
    }
    let subjected = plain("clean");
    let needs = describe_needs(subjected.pid());
    assert!(needs.memory.0 > 0 && needs.pids.contains(&(subjected.pid() as u32)));
    let executable = std::env::current_exe().unwrap().display().to_string();
    let own = needs.files.iter().find(|file| file.path == executable).expect("the executable is claimed");
    assert!(own.size.is_some());
    let offer = |pids, files| Offer {
        id: MigrationId(1),
        target: String::new(),
        restorer: RestorerRequest::process(),
        memory: needs.memory,
        pids,
        restore: RestoreMode::Lazy,
        tcp: TcpMode::Established,
        move_address: None,
        files,
        limits: needs.limits.clone(),
        ports: Vec::new(),
        forced: Forced::No,
        along: Vec::new(),
    };
    let mut here = LocalFacts::read(hello(), vec![std::env::temp_dir()], Some(std::env::temp_dir()));
    let working = std::env::current_dir().unwrap().display().to_string();
    assert!(needs.files.iter().any(|file| file.path == working && file.size.is_none()), "its directory");
    let same = check_destination(&offer(vec![], needs.files.clone()), &hello(), &here);
    assert!(blocks(&same).is_empty(), "{same:#?}");

    // Lazily little is written, eagerly everything.
    let large = |restore| {
        let offer = Offer { memory: Bytes(1 << 60), restore, ..offer(vec![], vec![]) };
        let found = check_destination(&offer, &hello(), &here);
        found.into_iter().any(|finding| finding.what.contains("of images to"))
    };
    assert!(large(RestoreMode::Eager) && !large(RestoreMode::Lazy));

    let mut files = needs.files.clone();
    files[0].path = "/nowhere/at all".into();
    files[1].size = Some(1);
    files[2].build_id = Some("00".into());
    let mut peer = hello();
    peer.cpu_features.push("avx512f".into());
    peer.page_size = 65536;
    peer.criu = "4.10".into();
    peer.protocol += 1;
    let limits = &mut here.limits.get_or_insert_with(Default::default).0;
    limits.insert("Max open files".into(), 16);
    here.lazy = LazyRestore::Impossible;
    let findings = check_destination(&offer(vec![subjected.pid() as u32], files), &peer, &here);
    let all: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    for expected in [
        "is not here",
        "its size is",
        "another build",
        "avx512f",
        "pages are 65536",
        "is taken here by",
        "4.10",
        "speaks protocol",
        "\"Max open files\"",
        "userfaultfd cannot be used",
    ] {
        assert!(all.contains(expected), "{expected}:\n{all}");
    }
}
