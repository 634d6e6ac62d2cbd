//! Docker containers that move between two hosts, each with an engine of its own, and
//! that go back to what they were: the scenes of docs/containers.md.

mod support;

use ferry_lab::docker::{Daemon, Image};
use ferry_lab::hosts::{Exit, Program};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};
use support::dock::{self, Dock};
use support::rig::{FERRY, PATIENCE, PORT, STATE, start_receiver};
use support::trial::receiver_of;

/// The walk-through's container, ten times as quick.
const COUNT: &str = "i=0; while true; do echo $i; i=$(expr $i + 1); sleep 0.1; done";

fn run_counter(daemon: &Daemon<'_>, name: &str, extra: &[&str]) {
    let run = ["run", "--detach", "--name", name, "--security-opt", "seccomp:unconfined"];
    let program = ["busybox", "/bin/sh", "-c", COUNT];
    daemon.expect(run.into_iter().chain(extra.iter().copied()).chain(program)).unwrap();
}

fn inspected(daemon: &Daemon<'_>, name: &str, what: &str) -> String {
    daemon.expect(["inspect", "--format", what, name]).unwrap()
}

fn containers(daemon: &Daemon<'_>) -> String {
    daemon.expect(["ps", "--all", "--format", "{{.Names}} {{.Status}}"]).unwrap()
}

#[test]
fn a_counting_container_goes_there_and_back_and_is_dockers_own_everywhere() {
    let Some(rig) = dock::rig("docker-count") else { return };
    let dock = Dock::new(&rig);
    dock.image(&Image::busybox(), "busybox");
    // What one engine has of its output goes with the container: the hosts share a file.
    let shared = rig.here().path("/srv/count");
    fs::create_dir(&shared).unwrap();
    let run = "run --detach --name looper2 --restart always --label team=x --volume /srv/count:/count busybox sh -c";
    let both = "i=0; while :; do echo $i >>/count/all; echo $i; i=$(expr $i + 1); sleep 0.1; done";
    dock.here().expect(run.split(' ').chain([both])).unwrap();
    let mut last = *dock.counts_beyond(dock.here(), "looper2", 3).last().unwrap();
    for _ in 0..4 {
        dock.move_on("looper2", &[]);
        let numbers = dock.counts_beyond(dock.here(), "looper2", last + 3);
        assert!(numbers[0] > last, "{} was printed here, {last} was printed there", numbers[0]);
        last = *numbers.last().unwrap();
        let all = fs::read_to_string(shared.join("all")).unwrap();
        for (number, line) in all.lines().enumerate() {
            assert_eq!(line, number.to_string(), "a gap or a repeat");
        }
        assert_eq!(containers(dock.there()), "", "it is gone there");
        assert_eq!(inspected(dock.here(), "looper2", "{{.HostConfig.RestartPolicy.Name}}"), "always");
    }
    // Docker deals with it as with any.
    let here = dock.here();
    assert_eq!(here.expect(["exec", "looper2", "sh", "-c", "echo inside; exit 0"]).unwrap(), "inside");
    assert!(containers(here).starts_with("looper2 Up"), "{}", containers(here));
    assert_eq!(inspected(here, "looper2", "{{.Config.Labels.team}} {{.State.Running}}"), "x true");
    here.expect(["restart", "--time", "1", "looper2"]).unwrap();
    here.expect(["stop", "--time", "1", "looper2"]).unwrap();
    assert!(containers(here).contains("Exited"), "{}", containers(here));
    dock.stop();
}

#[test]
fn a_container_in_a_network_keeps_its_address_under_dockers_usual_seccomp() {
    let Some(rig) = dock::rig("docker-net") else { return };
    let dock = Dock::new(&rig);
    dock.image(&Image::busybox().script("/www/index.html", "hello"), "web");
    for daemon in [dock.here(), dock.there()] {
        daemon.expect(["network", "create", "--subnet", "10.88.0.0/24", "front"]).unwrap();
    }
    let run = "run --detach --name web --network front --ip 10.88.0.5 --publish 8080:80 --user 65534:65534 \
        --read-only --cap-drop ALL --memory 64m web httpd -f -p 8081 -h /www";
    dock.here().expect(run.split_whitespace()).unwrap();
    for _ in 0..2 {
        fetch(dock.here());
        dock.move_on("web", &[]);
    }
    fetch(dock.here());
    assert_eq!(
        inspected(dock.here(), "web", "{{.HostConfig.Memory}} {{.HostConfig.ReadonlyRootfs}}"),
        "67108864 true"
    );
    dock.stop();
}

/// The page that it serves, as its host gets it.
fn fetch(daemon: &Daemon<'_>) {
    let deadline = Instant::now() + PATIENCE;
    let address = SocketAddr::from(([10, 88, 0, 5], 8081));
    let get = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    };
    loop {
        match daemon.host().enter(get).unwrap() {
            Ok(page) => return assert!(page.ends_with("hello"), "{page}"),
            Err(error) => assert!(Instant::now() < deadline, "{address} does not serve: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn several_processes_go_on_without_a_gap_or_a_repeat() {
    let Some(rig) = dock::rig("docker-several") else { return };
    let dock = Dock::new(&rig);
    let source =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/forker.c")).unwrap();
    let image = Image::busybox()
        .program("/root.bin/forker", source)
        .script("/root.bin/count", "#!/bin/sh\n/root.bin/forker &\ni=0\nwhile :; do echo $i >>/root/2; i=$(expr $i + 1); sleep 0.1; done\n")
        .script("/etc/rc.local", "#!/bin/sh\n/root.bin/count &\nexec /bin/sh\n");
    dock.image(&image, "several");
    let files = rig.here().path("/srv/several");
    fs::create_dir(&files).unwrap();
    // The hosts share the directory that the counters are in.
    let run = "run --interactive --detach --name several --security-opt=seccomp:unconfined \
        --volume /srv/several:/root several /etc/rc.local";
    dock.here().expect(run.split_whitespace()).unwrap();
    let mut seen = progress(&files, 3, &dock);
    for _ in 0..2 {
        dock.move_on("several", &[]);
        seen = progress(&files, seen + 3, &dock);
    }
    // The same at one host: docker checkpoint and docker start, in two commands.
    let host = rig.here();
    let done = |arguments: &[&str]| {
        let out = dock::ferry(host, arguments).unwrap();
        assert!(out.exit.success(), "{out:#?}\n{}", dock.logs());
    };
    done(&["checkpoint", "docker:several", "one"]);
    assert!(containers(dock.here()).contains("Exited"), "{}", containers(dock.here()));
    done(&["restore", "docker:several", "one"]);
    progress(&files, seen + 3, &dock);
    dock.stop();
}

/// Waits until each of the three counters is beyond `beyond`; each number follows the one
/// before. The least of them.
fn progress(files: &Path, beyond: u64, dock: &Dock<'_>) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lines = |file: &str| fs::read_to_string(files.join(file)).unwrap_or_default();
        let (first, second) = (lines("1"), lines("2"));
        let counter =
            |who: &str| first.lines().filter_map(|line| line.strip_prefix(who)?.parse().ok()).collect();
        let counters: [Vec<u64>; 3] = [
            counter("parent "),
            counter("child "),
            second.lines().filter_map(|line| line.parse().ok()).collect(),
        ];
        for numbers in &counters {
            let expected: Vec<u64> = (0..numbers.len() as u64).collect();
            assert_eq!(*numbers, expected, "a gap or a repeat");
        }
        let least = counters.iter().map(|numbers| numbers.len() as u64).min().unwrap_or(0);
        if least > beyond {
            return least;
        }
        assert!(Instant::now() < deadline, "a counter stands still at {least}\n{}", dock.logs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_container_goes_back_to_a_checkpoint_and_is_cloned_from_it() {
    let Some(rig) = dock::rig("docker-back") else { return };
    let dock = Dock::new(&rig);
    dock.image(&Image::busybox(), "busybox");
    let (here, host) = (dock.here(), rig.here());
    let ferry = |arguments: &[&str]| {
        let out = dock::ferry(host, arguments).unwrap();
        assert!(out.exit.success(), "{out:#?}\n{}", dock.logs());
        print!("  {}", out.stdout);
        out.stdout
    };
    run_counter(here, "looper2", &["--restart", "on-failure:5"]);
    dock.counts_beyond(here, "looper2", 5);

    // 1. Onto itself.
    ferry(&["checkpoint", "docker:looper2", "checkpoint1"]);
    assert!(containers(here).contains("Exited"), "{}", containers(here));
    let at = *dock.numbers(here, "looper2").last().unwrap();
    ferry(&["restore", "docker:looper2", "checkpoint1"]);
    dock.counts_beyond(here, "looper2", at + 5);
    let policy = "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    assert_eq!(inspected(here, "looper2", policy), "on-failure 5");

    // 2. Into another one, while the first runs on.
    ferry(&["clone", "docker:looper2", "checkpoint1", "looper2-clone"]);
    let clone = dock.counts_beyond(here, "looper2-clone", at + 5);
    assert!(clone[0] == at + 1 || clone[0] == at, "it was at {at}, the clone begins with {}", clone[0]);
    let far = *dock.counts_beyond(here, "looper2", at + 10).last().unwrap();

    // 4. Back, after it has run on for a while: what it printed stays printed.
    let refused = dock::ferry(host, &["restore", "docker:looper2", "checkpoint1"]).unwrap();
    assert!(refused.exit == Exit::Code(1) && refused.stderr.contains("rollback"), "{refused:#?}");
    ferry(&["rollback", "docker:looper2", "checkpoint1"]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let logs = here.logs("looper2").unwrap();
        let numbers: Vec<u64> = logs.lines().map(|line| line.parse().unwrap()).collect();
        let back = numbers.windows(2).position(|pair| pair[1] < pair[0]);
        if let Some(back) = back.filter(|back| numbers.len() > back + 4) {
            assert!(numbers[back] >= far && numbers[back + 1] <= at + 1, "{numbers:?}");
            assert!(numbers[back + 1..].windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
            break;
        }
        assert!(Instant::now() < deadline, "it does not go back: {numbers:?}");
        std::thread::sleep(Duration::from_millis(20));
    }

    // A checkpoint that does not stop it; the history of both.
    ferry(&["checkpoint", "docker:looper2", "second", "--leave-running"]);
    assert_eq!(inspected(here, "looper2", "{{.State.Running}}"), "true");
    let history = ferry(&["history", "docker:looper2"]);
    assert!(history.lines().count() == 2 && history.contains("checkpoint1"), "{history}");
    let left = ferry(&["history", "docker:looper2", "--remove", "checkpoint1"]);
    assert!(left.contains("second") && !left.contains("checkpoint1"), "{left}");
    dock.stop();
}

#[test]
fn what_fails_leaves_the_container_running_here_and_nothing_there() {
    let Some(rig) = dock::rig("docker-fails") else { return };
    let dock = Dock::new(&rig);
    dock.image(&Image::busybox(), "busybox");
    run_counter(dock.here(), "looper2", &["--restart", "always"]);
    let last = *dock.counts_beyond(dock.here(), "looper2", 3).last().unwrap();
    let policy = || inspected(dock.here(), "looper2", "{{.HostConfig.RestartPolicy.Name}}");
    // It went on, rather than died and was started again by Docker.
    let first = inspected(dock.here(), "looper2", "{{.State.StartedAt}}");
    let never_died = |when: &str| {
        let started = inspected(dock.here(), "looper2", "{{.State.StartedAt}}");
        let died = "events --since 1h --until 0s --filter event=die --format {{.Time}}/exit={{.Actor.Attributes.exitCode}}";
        let died = || dock.here().expect(died.split(' ')).unwrap_or_default();
        let journals = || {
            rig.here()
                .run(Program::shell(format!("cat {STATE}/journal/*; cat /run/migrate.err")))
                .unwrap()
                .stdout
        };
        assert_eq!(started, first, "{when}: {}\n{}\n{}", died(), journals(), dock.logs());
    };

    // Given up in the freeze, at several moments of it.
    let mut last = last;
    for patience in ["1ms", "10ms", "20ms", "40ms", "60ms", "80ms"] {
        let error = dock.try_move("looper2", &["--freeze-deadline", patience]).unwrap_err().to_string();
        assert!(error.contains("aborted"), "{error}");
        last = *dock.counts_beyond(dock.here(), "looper2", last).last().unwrap();
        last = *dock.counts_beyond(dock.here(), "looper2", last + 3).last().unwrap();
        never_died(&format!("given up {patience} into the freeze: {error}"));
    }
    assert_eq!((policy().as_str(), containers(dock.there()).as_str()), ("always", ""));

    let there = rig.there();
    let to = SocketAddr::from((there.address(), PORT)).to_string();
    let arguments = ["migrate", "docker:looper2", "--to", &to, "--strategy", "fixed-rounds:rounds=10000"];
    let parked = || {
        let migration = Program::new(FERRY).args(arguments).env("FERRY_STATE", STATE);
        let migration = migration.env("FERRY_DOCKER", ferry_lab::docker::SOCKET).stderr("/run/migrate.err");
        let migration = rig.here().spawn(migration).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !containers(dock.there()).contains("looper2 Created") || policy() != "no" {
            assert!(Instant::now() < deadline, "nothing is parked\n{}", dock.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
        migration
    };
    // The engine at the source is killed: its keeper puts right what it changed.
    parked().kill(Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !containers(dock.there()).is_empty() || policy() != "always" {
        assert!(Instant::now() < deadline, "{} there, {} here", containers(dock.there()), policy());
        std::thread::sleep(Duration::from_millis(20));
    }
    never_died("its engine was killed");
    let last = *dock.counts_beyond(dock.here(), "looper2", last + 3).last().unwrap();

    // The receiver is killed while Docker waits for it.
    let migration = parked();
    let receiver = receiver_of(there).expect("a receiver");
    there.kill(receiver, Signal::SIGKILL).unwrap();
    let exit = migration.wait_for(PATIENCE).unwrap().expect("it gives up");
    assert_eq!(exit, Exit::Code(4), "{}", fs::read_to_string(rig.here().path("/run/migrate.err")).unwrap());
    dock.counts_beyond(dock.here(), "looper2", last + 3);
    assert_eq!(policy(), "always");

    // What that one left is not in the way of the next.
    start_receiver(there, None).unwrap();
    dock.move_on("looper2", &[]);
    dock.counts_beyond(dock.here(), "looper2", last + 6);
    dock.stop();
}

#[test]
fn what_would_stop_a_container_is_found_on_both_hosts() {
    let Some(rig) = dock::rig("docker-check") else { return };
    let dock = Dock::new(&rig);
    dock.image(&Image::busybox(), "busybox");
    run_counter(dock.here(), "plain", &[]);
    let clear = dock.check("plain");
    assert!(clear["verdict"] != "blocked" && clear["no_answer"].is_null(), "{clear:#}");

    // An image and changed files that only this host has.
    dock.here().expect(["exec", "plain", "sh", "-c", "echo >/root/mine"]).unwrap();
    dock.here().expect(["commit", "--pause=false", "plain", "local"]).unwrap();
    dock.here().expect("run --detach --name local local sleep 1000".split(' ')).unwrap();
    blocks(&dock.check("local"), "image local is not here (1 of its 2 layers");
    let risk = dock.check("plain").to_string();
    assert!(risk.contains("/root/mine"), "{risk}");

    dock.here().expect(["network", "create", "mine"]).unwrap();
    run_counter(
        dock.here(),
        "taken",
        &["--network", "mine", "--publish", "4444:80", "--volume", "/srv/x:/x"],
    );
    fs::remove_dir_all(rig.there().path("/srv/x")).unwrap();
    dock.there().expect(["create", "--name", "taken", "busybox", "true"]).unwrap();
    let relay = rig.there().path("/run/docker/bin/criu");
    let aside = relay.with_file_name("aside");
    fs::rename(&relay, &aside).unwrap();
    let found = dock.check("taken");
    for word in ["container taken here already", "no network mine", "ferry setup --engine", "/srv/x"] {
        blocks(&found, word);
    }
    fs::rename(&aside, &relay).unwrap();

    let terminal = ["run", "--detach", "--tty", "--name", "terminal", "busybox", "sleep", "1000"];
    dock.here().expect(terminal).unwrap();
    blocks(&dock.check("terminal"), "terminal (-t)");
    let session = Program::shell(format!(
        "/usr/bin/docker --host unix://{} exec plain sleep 1000",
        ferry_lab::docker::SOCKET
    ));
    rig.here().spawn(session).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while inspected(dock.here(), "plain", "{{len .ExecIDs}}") != "1" {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    blocks(&dock.check("plain"), "exec sessions");
    dock.stop();
}

fn blocks(found: &Value, word: &str) {
    let all = found["findings"].as_array().expect("findings");
    let has = |finding: &&Value| finding["severity"] == "blocks" && finding.to_string().contains(word);
    assert!(all.iter().any(|finding| has(&finding)), "{word} is not told: {found:#}");
}
