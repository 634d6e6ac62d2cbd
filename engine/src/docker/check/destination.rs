//! The destination's side.

use super::Report;
use crate::check::destination::ports;
use crate::check::{Finding, Force};
use crate::docker::checkpoint::is_half_made;
use crate::docker::facts::{Checkpoints, EngineFacts};
use crate::docker::relay::{self, RelayPlace};
use crate::docker::{Api, ApiError, Container, ContainerConfig, ImagePlan};
use ferry_transport::wire::control::{PortClaim, PortProtocol};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// What would stop this container from being built here. Changes nothing.
pub fn check_destination(api: &Api, config: &ContainerConfig, theirs: &EngineFacts) -> Vec<Finding> {
    let mut report = Report::default();
    match EngineFacts::read(api) {
        Ok(facts) => {
            engine(api, &facts, theirs, &mut report);
            if let Err(error) = look_for(api, config, &mut report) {
                report.blocks(Force::Final, error.to_string(), "");
            }
        }
        Err(error) => {
            report.blocks(Force::Final, error.to_string(), "start Docker, or name its socket (--docker)")
        }
    }
    report.sorted()
}

fn engine(api: &Api, here: &EngineFacts, theirs: &EngineFacts, report: &mut Report) {
    report.notes(here.describe(), "");
    if here.checkpoints == Checkpoints::Refused {
        let advice = "put \"experimental\": true into /etc/docker/daemon.json and restart Docker";
        report.blocks(Force::Final, "Docker restores containers in experimental mode only", advice);
    }
    match relay::find(api) {
        RelayPlace::There => {}
        RelayPlace::Elsewhere(path) => {
            let what = format!("the engine starts {} as CRIU, which does not lead to ferry", path.display());
            report.blocks(Force::Final, what, "ferry setup --engine");
        }
        RelayPlace::Missing => {
            report.blocks(Force::Final, "the engine finds no CRIU", "ferry setup --engine");
        }
        RelayPlace::Unknown(why) => {
            report.risks(format!("which CRIU the engine starts is not known: {why}"), "ferry setup --engine");
        }
    }
    if here.cgroup_version != theirs.cgroup_version {
        let what =
            format!("cgroups are v{} at the source and v{} here", theirs.cgroup_version, here.cgroup_version);
        report.risks(what, "what the container keeps open below /sys/fs/cgroup is not there");
    }
    if here.version != theirs.version {
        let what = format!("Docker is {} at the source and {} here", theirs.version, here.version);
        report.notes(what, "");
    }
    if here.storage != theirs.storage {
        let what = format!("files are kept by {} at the source and by {} here", theirs.storage, here.storage);
        report.notes(what, "");
    }
}

fn look_for(api: &Api, config: &ContainerConfig, report: &mut Report) -> Result<(), ApiError> {
    match Container::inspect(api, &config.name) {
        // It is removed when this one comes.
        Ok(taken) if is_half_made(api, &taken) => {}
        Ok(taken) => {
            let status = taken.text("/State/Status");
            let what = format!("there is a container {} here already ({status})", config.name);
            report.blocks(Force::Final, what, format!("docker rename it, or docker rm {}", config.name));
        }
        Err(error) if error.is_missing() => {}
        Err(error) => return Err(error),
    }
    match config.image.plan(api)? {
        ImagePlan::Nothing => {}
        ImagePlan::Above(there) => {
            let image = &config.image;
            let layers = image.layers.len();
            let what = format!(
                "the image {} is not here ({} of its {layers} layers are missing)",
                image.name,
                layers - there
            );
            let advice = format!("bring it: docker save {} | ssh HOST docker load", image.name);
            report.blocks(Force::Final, what, advice);
        }
    }
    let runtime = config.host_config.get("Runtime").and_then(Value::as_str).unwrap_or_default();
    if !runtime.is_empty() && !EngineFacts::read(api)?.runtimes.iter().any(|name| name == runtime) {
        report.blocks(Force::Final, format!("there is no runtime {runtime:?} here"), "");
    }
    networks(api, config, report)?;
    published(config, report);
    binds(config, report);
    Ok(())
}

fn networks(api: &Api, config: &ContainerConfig, report: &mut Report) -> Result<(), ApiError> {
    for (name, end) in &config.endpoints {
        let network = match api.get(&format!("/networks/{}", crate::docker::api::escaped(name))) {
            Ok(network) => network,
            Err(error) if error.is_missing() => {
                let advice = format!("docker network create it, with the same subnet: {name}");
                report.blocks(Force::Final, format!("there is no network {name} here"), advice);
                continue;
            }
            Err(error) => return Err(error),
        };
        let wanted = end.get("IPAMConfig").and_then(|ipam| ipam.get("IPv4Address")?.as_str());
        let others = network.get("Containers").and_then(Value::as_object).into_iter().flatten();
        let holder = others
            .filter(|(_, other)| {
                let address = other.get("IPv4Address").and_then(Value::as_str).unwrap_or_default();
                wanted.is_some() && address.split('/').next() == wanted
            })
            .find_map(|(_, other)| other.get("Name")?.as_str());
        if let (Some(holder), Some(address)) = (holder, wanted) {
            let what = format!("its address {address} in {name} has {holder} here");
            report.blocks(Force::Final, what, "disconnect that container from the network");
        }
    }
    Ok(())
}

/// Ports of the host that lead to it.
fn published(config: &ContainerConfig, report: &mut Report) {
    let bindings = config.host_config.get("PortBindings").and_then(Value::as_object);
    let mut claims = BTreeSet::new();
    for (inside, bound) in bindings.into_iter().flatten() {
        let protocol = if inside.ends_with("/udp") { PortProtocol::Udp } else { PortProtocol::Tcp };
        for binding in bound.as_array().into_iter().flatten() {
            let text = |key: &str| binding.get(key).and_then(Value::as_str).unwrap_or_default();
            let address = text("HostIp").parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            if let Ok(port) = text("HostPort").parse() {
                claims.insert(PortClaim { protocol, address, port });
            }
        }
    }
    ports(&claims.into_iter().collect::<Vec<_>>(), &mut report.0);
}

/// What of the host is mounted into it. Docker would make a missing one, empty.
fn binds(config: &ContainerConfig, report: &mut Report) {
    let list = |key: &str| config.host_config.get(key).and_then(Value::as_array).into_iter().flatten();
    let short = list("Binds").filter_map(|bind| bind.as_str()?.split(':').next());
    let long = list("Mounts")
        .filter(|mount| mount.get("Type").and_then(Value::as_str) == Some("bind"))
        .filter_map(|mount| mount.get("Source")?.as_str());
    // A volume's name has no slash.
    for path in short.chain(long).filter(|path| path.starts_with('/') && !Path::new(path).exists()) {
        report.blocks(
            Force::Overridable,
            format!("{path}, which is mounted into it, is not here"),
            "copy it",
        );
    }
}
