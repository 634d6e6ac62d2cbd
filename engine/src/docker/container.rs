//! A container as Docker describes it, and as it is to be created elsewhere.

use super::aftercare::ContainerCare;
use super::api::{Api, ApiError, Waiting, escaped};
use super::image::ImageClaim;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// What Docker says of a container of this host.
#[derive(Clone, Debug)]
pub struct Container(Value);

impl Container {
    /// Asks for the container of this name or ID.
    pub fn inspect(api: &Api, name: &str) -> Result<Container, ApiError> {
        api.get(&format!("/containers/{}/json", escaped(name))).map(Container)
    }

    /// For tests: what Docker would have said.
    pub fn from_json(said: Value) -> Container {
        Container(said)
    }

    /// A field by its JSON pointer; null where there is none.
    pub fn field(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or(&Value::Null)
    }

    /// A field that is a text; empty where there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.field(pointer).as_str().unwrap_or_default()
    }

    /// Whether a field is `true`.
    pub fn is(&self, pointer: &str) -> bool {
        self.field(pointer) == &Value::Bool(true)
    }

    /// Its ID: 64 hex digits.
    pub fn id(&self) -> &str {
        self.text("/Id")
    }

    /// Its name, without Docker's slash.
    pub fn name(&self) -> &str {
        self.text("/Name").trim_start_matches('/')
    }

    /// The ID of its image: `sha256:…`.
    pub fn image(&self) -> &str {
        self.text("/Image")
    }

    /// The first process, as this host numbers it, while it runs.
    pub fn pid(&self) -> Option<i32> {
        let pid = self.field("/State/Pid").as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.filter(|pid| *pid > 0)
    }

    /// The networks that it is in, and its end of each.
    pub fn networks(&self) -> impl Iterator<Item = (&str, &Map<String, Value>)> {
        let all = self.field("/NetworkSettings/Networks").as_object().into_iter().flatten();
        all.filter_map(|(name, end)| Some((name.as_str(), end.as_object()?)))
    }
}

/// Everything that is needed to create the container on another host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// The name, there as here.
    pub name: String,
    /// The image.
    pub image: ImageClaim,
    /// Docker's `Config`: command, environment, user, labels, …
    pub config: Map<String, Value>,
    /// Docker's `HostConfig`: mounts, limits, capabilities, policies, …
    pub host_config: Map<String, Value>,
    /// Docker's `EndpointsConfig`: an end for each network, the first one first.
    pub endpoints: Vec<(String, Map<String, Value>)>,
}

/// What an endpoint has beside what a user may choose: the engine makes it anew.
const MADE_BY_ENGINE: [&str; 9] = [
    "NetworkID",
    "EndpointID",
    "Gateway",
    "IPAddress",
    "IPPrefixLen",
    "IPv6Gateway",
    "GlobalIPv6Address",
    "GlobalIPv6PrefixLen",
    "DNSNames",
];

/// Networks whose addresses a user cannot choose.
pub const PREDEFINED: [&str; 4] = ["bridge", "host", "none", "default"];

impl ContainerConfig {
    /// Reads it off a container and its image.
    pub fn of(container: &Container, image: ImageClaim) -> ContainerConfig {
        let object = |pointer| container.field(pointer).as_object().cloned().unwrap_or_default();
        let mut host_config = object("/HostConfig");
        keep_published_ports(container, &mut host_config);
        let mode = container.text("/HostConfig/NetworkMode");
        let mut endpoints: Vec<_> = container
            .networks()
            .map(|(name, end)| (name.to_owned(), endpoint(name, end, container.id())))
            .collect();
        // The network that it was created with comes first, as Docker wants it.
        endpoints.sort_by_key(|(name, _)| name != mode);
        ContainerConfig {
            name: container.name().to_owned(),
            image,
            config: object("/Config"),
            host_config,
            endpoints,
        }
    }

    /// Creates it, stopped; its ID. On failure nothing of it is left.
    ///
    /// `image` is what the image is called here.
    pub fn create(&self, api: &Api, image: &str) -> Result<String, ApiError> {
        let mut body = self.config.clone();
        body.insert("Image".into(), json!(image));
        body.insert("HostConfig".into(), json!(self.host_config));
        let (first, others) = match self.endpoints.split_first() {
            Some(((name, end), others)) => (json!({ name: end }), others),
            None => (json!({}), &[][..]),
        };
        body.insert("NetworkingConfig".into(), json!({ "EndpointsConfig": first }));
        let path = format!("/containers/create?name={}", escaped(&self.name));
        let made = api.post(&path, &Value::Object(body), Waiting::Briefly)?;
        let id = made.get("Id").and_then(Value::as_str).unwrap_or(&self.name).to_owned();
        // An engine before 25 takes one network at the creation.
        for (name, end) in others {
            let path = format!("/networks/{}/connect", escaped(name));
            let body = json!({ "Container": id, "EndpointConfig": end });
            if let Err(error) = api.post(&path, &body, Waiting::Briefly) {
                let _ = remove(api, &id, Volumes::Go);
                return Err(error);
            }
        }
        Ok(id)
    }
}

/// Stops a container at once, and keeps Docker from starting it again; one that does not
/// run is no error.
pub fn stop_now(api: &Api, container: &Container) -> Result<(), ApiError> {
    ContainerCare::of(api, container).suspend()?;
    let id = escaped(container.id());
    match api.post(&format!("/containers/{id}/kill"), &Value::Null, Waiting::Briefly) {
        Ok(_) => {}
        // It does not run.
        Err(ApiError::Refused { status: 409, .. }) => return Ok(()),
        Err(error) => return Err(error),
    }
    api.post(&format!("/containers/{id}/wait"), &Value::Null, Waiting::Briefly).map(drop)
}

/// What becomes of the anonymous volumes of a container that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volumes {
    /// They stay.
    Stay,
    /// They go too.
    Go,
}

/// Removes a container, running or not; one that is not there is no error.
pub fn remove(api: &Api, id: &str, volumes: Volumes) -> Result<(), ApiError> {
    let volumes = u8::from(volumes == Volumes::Go);
    match api.delete(&format!("/containers/{}?force=1&v={volumes}", escaped(id))) {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

/// What a user could have chosen, with the address it has.
fn endpoint(network: &str, end: &Map<String, Value>, id: &str) -> Map<String, Value> {
    let mut kept: Map<String, Value> =
        end.iter().filter(|(key, _)| !MADE_BY_ENGINE.contains(&key.as_str())).map(clone).collect();
    // Its own short ID is one of its names in the network; the copy has another.
    if let Some(Value::Array(aliases)) = kept.get_mut("Aliases") {
        aliases.retain(|alias| alias.as_str().is_none_or(|alias| !id.starts_with(alias)));
    }
    if PREDEFINED.contains(&network) {
        return kept;
    }
    let mut addresses = kept.get("IPAMConfig").and_then(Value::as_object).cloned().unwrap_or_default();
    for (key, from) in [("IPv4Address", "IPAddress"), ("IPv6Address", "GlobalIPv6Address")] {
        if let Some(address) = end.get(from).filter(|address| address.as_str().is_some_and(|a| !a.is_empty()))
        {
            addresses.insert(key.into(), address.clone());
        }
    }
    kept.insert("IPAMConfig".into(), Value::Object(addresses));
    kept
}

fn clone((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

/// A published port that Docker chose is asked for by its number: clients know it.
fn keep_published_ports(container: &Container, host_config: &mut Map<String, Value>) {
    let Some(Value::Object(bindings)) = host_config.get_mut("PortBindings") else { return };
    for (port, bound) in bindings {
        let actual = container.field("/NetworkSettings/Ports").get(port).and_then(Value::as_array);
        for (number, binding) in bound.as_array_mut().into_iter().flatten().enumerate() {
            let chosen = binding.get("HostPort").and_then(Value::as_str).is_some_and(|port| !port.is_empty());
            let port = actual.and_then(|all| all.get(number)?.get("HostPort"));
            if let (false, Some(port), Some(binding)) = (chosen, port, binding.as_object_mut()) {
                binding.insert("HostPort".into(), port.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> Container {
        Container::from_json(json!({
            "Id": "daf059d76e0cfef8d9eef4c806dcfd27f58edb48c557c5a6860582c09212152f",
            "Name": "/web", "Image": "sha256:aa", "State": { "Pid": 7 },
            "Config": { "Cmd": ["httpd"], "Hostname": "daf059d76e0c", "FieldOfTomorrow": { "x": 1 } },
            "HostConfig": {
                "NetworkMode": "front",
                "Memory": 1000,
                "PortBindings": {
                    "80/tcp": [{ "HostIp": "", "HostPort": "" }],
                    "81/tcp": [{ "HostIp": "", "HostPort": "8081" }]
                }
            },
            "NetworkSettings": {
                "Ports": { "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "49153" }] },
                "Networks": {
                    "back": { "IPAMConfig": null, "IPAddress": "10.2.0.3", "NetworkID": "n", "Aliases": null },
                    "front": {
                        "IPAMConfig": { "LinkLocalIPs": [] }, "IPAddress": "10.1.0.3",
                        "GlobalIPv6Address": "", "EndpointID": "e", "Aliases": ["www", "daf059d76e0c"]
                    }
                }
            }
        }))
    }

    fn config() -> ContainerConfig {
        ContainerConfig::of(&container(), ImageClaim { id: "sha256:aa".into(), ..ImageClaim::default() })
    }

    #[test]
    fn what_docker_said_is_kept_known_or_not() {
        let config = config();
        assert_eq!(config.name, "web");
        assert_eq!(config.config["FieldOfTomorrow"], json!({ "x": 1 }));
        assert_eq!(config.host_config["Memory"], 1000);
        let text = serde_json::to_vec(&config).unwrap();
        assert_eq!(serde_json::from_slice::<ContainerConfig>(&text).unwrap(), config);
    }

    #[test]
    fn addresses_and_ports_stay_and_what_the_engine_made_does_not() {
        let config = config();
        let [(front, first), (back, second)] = &config.endpoints[..] else { panic!("two networks") };
        assert_eq!((front.as_str(), back.as_str()), ("front", "back"));
        assert_eq!(first["IPAMConfig"], json!({ "LinkLocalIPs": [], "IPv4Address": "10.1.0.3" }));
        assert_eq!(first["Aliases"], json!(["www"]));
        assert_eq!(second["IPAMConfig"], json!({ "IPv4Address": "10.2.0.3" }));
        assert!(MADE_BY_ENGINE.iter().all(|key| !first.contains_key(*key) && !second.contains_key(*key)));
        let ports = &config.host_config["PortBindings"];
        assert_eq!(ports["80/tcp"][0]["HostPort"], "49153");
        assert_eq!(ports["81/tcp"][0]["HostPort"], "8081");
    }

    #[test]
    fn a_default_networks_address_is_not_asked_for() {
        let mut said = container().0;
        said["NetworkSettings"]["Networks"] =
            json!({ "bridge": { "IPAMConfig": null, "IPAddress": "172.17.0.2", "Links": null } });
        let config = ContainerConfig::of(&Container(said), ImageClaim::default());
        assert_eq!(config.endpoints[0].1["IPAMConfig"], Value::Null);
    }
}
