//! PostgreSQL with open connections in a transaction, and pgbench, there and
//! back three times.

mod support;

use ferry_lab::hosts::{Host, Program};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::Rig;
use support::rig::{Mover, PATIENCE, SERVICE};

const BINARIES: &str = "/usr/lib/postgresql/15/bin";

/// `psql` with an open connection, fed line by line.
struct Session {
    input: File,
    output: PathBuf,
    asked: u32,
}

impl Session {
    fn open(client: &Host, name: &str) -> Session {
        let (fifo, output) = (format!("/srv/{name}.in"), format!("/srv/{name}.out"));
        assert!(client.run(Program::new("/usr/bin/mkfifo").arg(&fifo)).unwrap().exit.success());
        // The shell opens the FIFO: the host's first process must not wait for it.
        let psql = format!("exec psql -X -A -t -q -h {SERVICE} -U postgres postgres <{fifo}");
        client.spawn(Program::shell(psql).stdout(&output).stderr(&output)).unwrap();
        let input = File::options().write(true).open(client.path(&fifo)).unwrap();
        Session { input, output: client.path(&output), asked: 0 }
    }

    /// Sends SQL and returns what it printed.
    fn ask(&mut self, sql: &str) -> String {
        self.asked += 1;
        let (begin, end) = (format!("begin-{}", self.asked), format!("end-{}", self.asked));
        writeln!(self.input, "\\echo {begin}\n{sql}\n\\echo {end}").unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&self.output).unwrap_or_default();
            if let Some((before, _)) = text.split_once(&format!("{end}\n")) {
                return before
                    .rsplit_once(&format!("{begin}\n"))
                    .map(|(_, after)| after.trim().to_string())
                    .unwrap();
            }
            assert!(Instant::now() < deadline, "no answer to {sql}: {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn postgresql_with_open_transactions_and_pgbench() {
    let postgres = format!("{BINARIES}/postgres");
    let Some(rig) = Rig::new("postgresql", &[&postgres]) else { return };
    if rig.mover == Mover::Criu {
        return println!("skipped: plain CRIU cannot dump another user's processes without CAP_SYS_RESOURCE");
    }
    let ids = rig.here().run(Program::shell("id -u postgres; id -g postgres")).unwrap().stdout;
    let ids: Vec<u32> = ids.lines().map(|id| id.parse().unwrap()).collect();
    let initialise = format!(
        "mkdir /srv/pg && chown postgres:postgres /srv/pg && \
         setpriv --reuid {} --regid {} --clear-groups {BINARIES}/initdb -D /srv/pg/data -A trust --no-sync",
        ids[0], ids[1]
    );
    let out = rig.here().run(Program::shell(initialise)).unwrap();
    assert!(out.exit.success(), "{out:?}");
    let access = rig.here().path("/srv/pg/data/pg_hba.conf");
    File::options()
        .append(true)
        .open(access)
        .unwrap()
        .write_all(b"host all all 10.231.0.0/24 trust\n")
        .unwrap();
    // System V shared memory can only be carried with an IPC namespace of its
    // own, so the server gets one inside the host.
    let server = rig.start(
        Program::new("/usr/bin/unshare")
            .args([
                "--ipc",
                "/usr/bin/setpriv",
                "--reuid",
                &ids[0].to_string(),
                "--regid",
                &ids[1].to_string(),
            ])
            .args([
                "--clear-groups",
                &postgres,
                "-D",
                "/srv/pg/data",
                "-h",
                &SERVICE.to_string(),
                "-k",
                "/srv/pg",
            ])
            .args(["-c", "fsync=off", "-c", "shared_buffers=128MB"])
            .stderr("/srv/pg/log"),
    );
    let ready = format!("until {BINARIES}/pg_isready -q -h {SERVICE}; do sleep 0.1; done");
    assert!(rig.lab.client().run(Program::shell(ready)).unwrap().exit.success());

    let bench = format!("{BINARIES}/pgbench -h {SERVICE} -U postgres");
    let out = rig.lab.client().run(Program::shell(format!("{bench} -i -q -s 2 postgres"))).unwrap();
    assert!(out.exit.success(), "{out:?}");
    let bench = format!("exec {bench} -c 4 -j 2 -n -T 100000 postgres");
    let bench = rig
        .lab
        .client()
        .spawn(Program::shell(bench).stdout("/srv/bench.out").stderr("/srv/bench.out"))
        .unwrap();

    let mut sessions: Vec<Session> =
        (0..2).map(|n| Session::open(rig.lab.client(), &format!("psql{n}"))).collect();
    sessions[0].ask("CREATE TABLE kept (session int, step int);");
    for session in &mut sessions {
        session.ask("BEGIN;");
    }
    let mut step = 0;
    rig.there_and_back(server.pid, || {
        step += 1;
        std::thread::sleep(Duration::from_millis(500));
        for (number, session) in sessions.iter_mut().enumerate() {
            session.ask(&format!("INSERT INTO kept VALUES ({number}, {step});"));
            let own = session.ask(&format!("SELECT count(*) FROM kept WHERE session = {number};"));
            assert_eq!(own, step.to_string(), "a transaction lost its own rows");
        }
    });
    for session in &mut sessions {
        session.ask("COMMIT;");
    }
    assert_eq!(sessions[0].ask("SELECT count(*) FROM kept;"), (2 * step).to_string());
    // pgbench's own consistency: the sums of the deltas agree everywhere.
    bench.kill(ferry_lab::hosts::Signal::SIGINT).unwrap();
    bench.wait().unwrap();
    let text = fs::read_to_string(rig.lab.client().path("/srv/bench.out")).unwrap();
    assert!(!text.contains("error") && !text.contains("abort"), "{text}");
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history) \
                AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history) \
                AND (SELECT count(*) FROM pgbench_history) > 0;";
    assert_eq!(sessions[1].ask(sums), "t");
    // Ended in order it takes its shared memory away, which the host's /dev/shm would keep.
    rig.here().kill(server.pid, ferry_lab::hosts::Signal::SIGINT).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while rig.here().outer_pid(server.pid).is_ok() {
        assert!(Instant::now() < deadline, "the server does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}
