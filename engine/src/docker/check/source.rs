//! The source's side.

use super::Report;
use crate::check::{Finding, Force};
use crate::docker::aftercare;
use crate::docker::container::PREDEFINED;
use crate::docker::facts::{EngineFacts, Users};
use crate::docker::{Api, Container};
use serde_json::Value;

/// The most changed files that are named.
const MAX_NAMED: usize = 5;
/// Runtimes whose containers are runc's.
const RUNC: [&str; 4] = ["", "runc", "io.containerd.runc.v1", "io.containerd.runc.v2"];

/// What Docker tells of a container that matters for its move. Changes nothing.
pub fn check_source(api: &Api, name: &str) -> Vec<Finding> {
    let mut report = Report::default();
    let found = EngineFacts::read(api).and_then(|facts| Ok((facts, Container::inspect(api, name)?)));
    match found {
        Ok((facts, container)) => {
            engine(&facts, &mut report);
            look_at(&container, &mut report);
            changed_files(api, &container, &mut report);
        }
        Err(error) if error.is_missing() => {
            report.blocks(
                Force::Final,
                format!("there is no container {name}"),
                "docker ps shows those that run",
            );
        }
        Err(error) => {
            report.blocks(Force::Final, error.to_string(), "start Docker, or name its socket (--docker)")
        }
    }
    report.sorted()
}

fn engine(facts: &EngineFacts, report: &mut Report) {
    report.notes(facts.describe(), "");
    if facts.users == Users::Mapped {
        let what = "Docker maps users (userns-remap or rootless): CRIU may not rebuild such a container";
        report.blocks(Force::Overridable, what, "run the container with --userns=host");
    }
}

fn look_at(container: &Container, report: &mut Report) {
    state(container, report);
    sessions(container, report);
    namespaces(container, report);
    devices(container, report);
    mounts(container, report);
    confinement(container, report);
    networks(container, report);
    policies(container, report);
}

fn state(container: &Container, report: &mut Report) {
    let advice = match container.text("/State/Status") {
        "running" => return,
        "paused" => "docker unpause it",
        "restarting" => "see why it fails: docker logs",
        _ => "docker start it; a stopped one has no memory to move",
    };
    let what = format!("the container is {}, not running", container.text("/State/Status"));
    report.blocks(Force::Final, what, advice);
}

fn sessions(container: &Container, report: &mut Report) {
    if container.is("/Config/Tty") {
        let what = "the container has a terminal (-t), whose other end is Docker's at this host";
        report.blocks(Force::Final, what, "run it without -t; -i alone is no hindrance");
    }
    let sessions = container.field("/ExecIDs").as_array().map_or(0, Vec::len);
    if sessions > 0 {
        let what = format!("{sessions} exec sessions run in it, which cannot be moved");
        report.blocks(Force::Overridable, what, "let them end; a health check ends by itself");
    }
}

fn namespaces(container: &Container, report: &mut Report) {
    let shared = [
        ("/HostConfig/PidMode", "the processes' numbers (--pid)"),
        ("/HostConfig/NetworkMode", "the network (--network)"),
        ("/HostConfig/IpcMode", "IPC (--ipc)"),
        ("/HostConfig/UTSMode", "the host name (--uts)"),
    ];
    for (field, what) in shared {
        let mode = container.text(field);
        if mode.starts_with("container:") {
            let what = format!("it shares {what} with another container: {mode}");
            report.blocks(Force::Final, what, "move containers that have their own");
        } else if mode == "host" && field != "/HostConfig/NetworkMode" {
            report.blocks(Force::Final, format!("it shares {what} with the host"), "run it without");
        }
    }
    let runtime = container.text("/HostConfig/Runtime");
    if !RUNC.contains(&runtime) {
        let what = format!("its runtime is {runtime:?}, whose containers CRIU does not know");
        report.blocks(Force::Overridable, what, "run it with --runtime runc");
    }
    if let Some(Value::Array(from)) =
        Some(container.field("/HostConfig/VolumesFrom")).filter(|from| !from.is_null())
    {
        let names: Vec<&str> = from.iter().filter_map(Value::as_str).collect();
        let what = format!("it has the volumes of other containers: {}", names.join(", "));
        report.blocks(Force::Overridable, what, "containers of these names must be there");
    }
}

fn devices(container: &Container, report: &mut Report) {
    if container.is("/HostConfig/Privileged") {
        let what = "it is privileged: what it did to the host stays behind";
        report.risks(what, "");
    }
    let names = container.field("/HostConfig/Devices").as_array().into_iter().flatten();
    let names: Vec<&str> = names.filter_map(|device| device.get("PathOnHost")?.as_str()).collect();
    if !names.is_empty() {
        let what = format!("it was given devices: {}", names.join(", "));
        report.risks(what, "they must be there, and must hold nothing of it");
    }
    if container.field("/HostConfig/DeviceRequests").as_array().is_some_and(|all| !all.is_empty()) {
        report.blocks(Force::Final, "it was given a GPU (--gpus), whose state stays behind", "");
    }
}

fn mounts(container: &Container, report: &mut Report) {
    for mount in container.field("/Mounts").as_array().into_iter().flatten() {
        let text = |key: &str| mount.get(key).and_then(Value::as_str).unwrap_or_default();
        let place = text("Destination");
        match text("Type") {
            "bind" => {
                let what = format!("{place} is {} of this host", text("Source"));
                report.risks(what, "the same files must be there, at the same path");
            }
            "volume" if text("Driver") != "local" => {
                report.risks(
                    format!("{place} is a volume of {}", text("Driver")),
                    "it must be reachable there",
                );
            }
            "volume" => {
                let what = format!("{place} is the volume {}, whose files are not copied", text("Name"));
                report.risks(what, "bring them to a volume of that name there");
            }
            "tmpfs" => {}
            other => report.risks(format!("{place} is a mount of type {other:?}"), "it must be there"),
        }
    }
}

/// What it wrote beside its mounts.
fn changed_files(api: &Api, container: &Container, report: &mut Report) {
    let changed = aftercare::changed_files(api, container).unwrap_or_default();
    if changed.is_empty() {
        return;
    }
    let shown = changed.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(" ");
    let more = if changed.len() > MAX_NAMED { " …" } else { "" };
    let what =
        format!("it changed {} files of its image, which are not copied: {shown}{more}", changed.len());
    let advice = format!(
        "keep what must stay in a directory that both hosts have (--volume); docker diff shows all. The container \
         with these files is kept here as {}{}",
        container.name(),
        aftercare::kept_mark(container.id())
    );
    report.risks(what, advice);
}

fn confinement(container: &Container, report: &mut Report) {
    let profile = container.text("/AppArmorProfile");
    if !matches!(profile, "" | "unconfined") {
        let what = format!("AppArmor confines it as {profile:?}");
        report.notes(what, "the profile must be loaded there; Docker loads its own");
    }
    let label = container.text("/ProcessLabel");
    if !label.is_empty() {
        report.risks(format!("SELinux labels it {label:?}"), "the same policy must be loaded there");
    }
}

fn networks(container: &Container, report: &mut Report) {
    for (name, end) in container.networks() {
        let address = end.get("IPAddress").and_then(Value::as_str).unwrap_or_default();
        if PREDEFINED.contains(&name) && !address.is_empty() {
            let what = format!(
                "Docker chose its address {address} in the default network, and may choose another there"
            );
            let advice = "connections from other hosts end if it does; in a network of your own (docker network \
                          create --subnet) the address stays";
            report.risks(what, advice);
        }
    }
}

fn policies(container: &Container, report: &mut Report) {
    let policy = container.text("/HostConfig/RestartPolicy/Name");
    if !matches!(policy, "" | "no") {
        report.notes(format!("its restart policy {policy} is off while it moves, and goes with it"), "");
    }
    if container.is("/HostConfig/AutoRemove") {
        report.notes("Docker removes it when it ends (--rm): here once it runs there", "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;
    use serde_json::json;

    fn findings(said: Value) -> Vec<(Severity, String)> {
        let mut report = Report::default();
        look_at(&Container::from_json(said), &mut report);
        report.sorted().into_iter().map(|finding| (finding.severity, finding.what)).collect()
    }

    #[test]
    fn a_plain_container_has_nothing_to_tell() {
        let plain = json!({
            "State": { "Status": "running" }, "Config": { "Tty": false }, "ExecIDs": null,
            "HostConfig": {
                "PidMode": "", "IpcMode": "private", "NetworkMode": "front", "Runtime": "runc",
                "RestartPolicy": { "Name": "no" }, "VolumesFrom": null, "Devices": [], "DeviceRequests": null
            },
            "NetworkSettings": { "Networks": { "front": { "IPAddress": "10.1.0.2" } } }
        });
        assert_eq!(findings(plain), []);
    }

    #[test]
    fn what_stops_it_is_named() {
        let all = findings(json!({
            "State": { "Status": "paused" }, "Config": { "Tty": true }, "ExecIDs": ["a", "b"],
            "HostConfig": {
                "PidMode": "host", "IpcMode": "container:x", "Runtime": "kata", "VolumesFrom": ["data"],
                "Devices": [{ "PathOnHost": "/dev/fuse" }], "DeviceRequests": [{}], "Privileged": true,
                "RestartPolicy": { "Name": "always" }, "AutoRemove": true
            },
            "Mounts": [
                { "Type": "bind", "Source": "/srv/web", "Destination": "/www" },
                { "Type": "volume", "Name": "db", "Driver": "local", "Destination": "/data" },
                { "Type": "volume", "Name": "x", "Driver": "nfs", "Destination": "/far" }
            ],
            "NetworkSettings": { "Networks": { "bridge": { "IPAddress": "172.17.0.2" } } }
        }));
        let has = |severity: Severity, word: &str| {
            assert!(all.iter().any(|(of, what)| *of == severity && what.contains(word)), "{word}: {all:#?}");
        };
        for word in ["paused", "terminal", "2 exec", "--pid", "container:x", "kata", "data", "GPU"] {
            has(Severity::Blocks, word);
        }
        for word in ["/dev/fuse", "privileged", "/srv/web", "volume db", "nfs", "172.17.0.2"] {
            has(Severity::Risks, word);
        }
        for word in ["always", "--rm"] {
            has(Severity::Notes, word);
        }
    }
}
