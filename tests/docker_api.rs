//! Docker containers: what Docker is asked on both hosts, with real daemons. Root and
//! scripts/install-test-docker are needed.

use ferry_engine::docker::aftercare::{ContainerCare, kept_mark};
use ferry_engine::docker::api::{Api, Waiting};
use ferry_engine::docker::checkpoint::{Failed, Start, Stub};
use ferry_engine::docker::sending;
use ferry_engine::docker::{Container, ContainerConfig, ImageClaim, ImagePlan};
use ferry_engine::journal::Side;
use ferry_lab::docker::{Daemon, DaemonOptions, Image};
use ferry_lab::hosts::{Lab, LabOptions};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FERRY: &str = env!("CARGO_BIN_EXE_ferry");
const PATIENCE: Duration = Duration::from_secs(60);

/// Two hosts, or `None` and the reason printed where there can be none.
fn lab(name: &str) -> Option<Lab> {
    let reason = match nix::unistd::geteuid().is_root() {
        true => Daemon::reason_to_skip(),
        false => Some("test hosts need root".into()),
    };
    if let Some(reason) = reason {
        println!("{name} skipped: {reason}");
        return None;
    }
    let hosts = vec!["source".into(), "destination".into()];
    let options = LabOptions { helper: Some(PathBuf::from(FERRY)), hosts, ..LabOptions::default() };
    Some(Lab::new(name, options).expect("a lab"))
}

fn api(daemon: &Daemon<'_>) -> Api {
    Api::at(&daemon.socket())
}

fn described(api: &Api, name: &str) -> ContainerConfig {
    let container = Container::inspect(api, name).unwrap();
    let image = ImageClaim::of(api, container.image(), container.text("/Config/Image")).unwrap();
    ContainerConfig::of(&container, image)
}

/// Sends what the plan says through a pipe, and loads it; the bytes that went through.
fn carry(from: &Api, to: &Api, image: &ImageClaim, plan: ImagePlan) -> (String, usize) {
    let mut sent = Vec::new();
    sending::send(from, image, plan, &mut sent).unwrap();
    (sending::load(to, image, &sent[..]).unwrap(), sent.len())
}

#[test]
fn a_container_is_created_elsewhere_as_it_is_here() {
    let Some(lab) = lab("docker-create") else { return };
    let options = DaemonOptions::default();
    let [here, there] = [lab.source(), lab.destination()].map(|host| Daemon::start(host, &options).unwrap());
    let (source, destination) = (api(&here), api(&there));
    here.import(&Image::busybox().change("ENV FROM=image").change("LABEL a=b"), "shop/web:3").unwrap();
    for daemon in [&here, &there] {
        daemon.expect(["network", "create", "--subnet", "10.77.0.0/24", "front"]).unwrap();
        daemon.expect(["network", "create", "--subnet", "10.78.0.0/24", "back"]).unwrap();
    }
    let run = "run --detach --name web --hostname www --user 1000:1000 --workdir /tmp --env A=1 --label team=x \
        --memory 64m --pids-limit 50 --cpu-shares 512 --cap-drop NET_RAW --cap-add SYS_NICE \
        --security-opt seccomp=unconfined --restart on-failure:3 --publish 80 --volume data:/data \
        --mount type=bind,source=/tmp,destination=/host,readonly --tmpfs /scratch:size=1m --ulimit nofile=100:200 \
        --network front --ip 10.77.0.9 --network-alias www2 --init shop/web:3 sleep 1000";
    here.expect(run.split_whitespace()).unwrap();
    here.expect(["network", "connect", "--ip", "10.78.0.9", "back", "web"]).unwrap();

    let config = described(&source, "web");
    // As it travels.
    let config: ContainerConfig = serde_json::from_slice(&serde_json::to_vec(&config).unwrap()).unwrap();
    assert_eq!(config.image.plan(&destination).unwrap(), ImagePlan::Above(0));
    let (called, bytes) = carry(&source, &destination, &config.image, ImagePlan::Above(0));
    assert_eq!((called.as_str(), bytes > 1_000_000), ("shop/web:3", true));
    assert_eq!(config.image.plan(&destination).unwrap(), ImagePlan::Nothing);
    let id = config.create(&destination, &called).unwrap();
    let refused = config.create(&destination, &called).unwrap_err().to_string();
    assert!(refused.contains("409") && refused.contains("web"), "a taken name: {refused}");

    let copy = described(&destination, "web");
    let same = |what: &str, a: &Value, b: &Value| assert_eq!(a, b, "{what}");
    same("config", &json!(config.config), &json!(copy.config));
    same("host", &json!(config.host_config), &json!(copy.host_config));
    assert_eq!(config.image, copy.image);
    // A container that has not been started has no end in its networks yet: start it.
    destination.post(&format!("/containers/{id}/start"), &Value::Null, Waiting::Briefly).unwrap();
    let running = Container::inspect(&destination, "web").unwrap();
    let addresses: Vec<_> = running.networks().map(|(name, end)| (name, end["IPAddress"].clone())).collect();
    assert_eq!(addresses, [("back", json!("10.78.0.9")), ("front", json!("10.77.0.9"))]);
    assert_eq!(described(&destination, "web").endpoints, config.endpoints);
    here.stop().unwrap();
    there.stop().unwrap();
}

#[test]
fn layers_that_are_there_are_not_sent_again() {
    let Some(lab) = lab("docker-layers") else { return };
    let options = DaemonOptions::default();
    let [here, there] = [lab.source(), lab.destination()].map(|host| Daemon::start(host, &options).unwrap());
    let (source, destination) = (api(&here), api(&there));
    let base = Image::busybox();
    here.import(&base, "base").unwrap();
    there.import(&base, "base").unwrap();
    // Layers upon the base, one of them large.
    here.expect(["run", "--name", "made", "base", "sh", "-c", "head -c 3000000 /dev/urandom >/large"])
        .unwrap();
    here.expect(["commit", "made", "upper:1"]).unwrap();
    here.expect(["run", "--name", "again", "upper:1", "touch", "/small"]).unwrap();
    here.expect(["commit", "again", "upper:2"]).unwrap();
    let id = here.expect(["image", "inspect", "--format", "{{.Id}}", "upper:2"]).unwrap();
    let image = ImageClaim::of(&source, &id, "upper:2").unwrap();
    assert_eq!(image.layers.len(), 3);
    // An image of that name is there, and is another: it keeps its name.
    there.expect(["tag", "base", "upper:2"]).unwrap();

    assert_eq!(image.plan(&destination).unwrap(), ImagePlan::Above(1));
    let (called, bytes) = carry(&source, &destination, &image, ImagePlan::Above(1));
    println!("  {bytes} bytes for the two upper layers");
    assert!((3_000_000..3_900_000).contains(&bytes), "the base was sent too: {bytes} bytes");
    assert_eq!(called, id, "by its ID, since its name means another");
    let large = ["run", "--rm", &id, "sh", "-c", "wc -c </large; ls /small"];
    assert_eq!(there.expect(large).unwrap(), "3000000\n/small");
    // A third one, of which only the top is new.
    here.expect(["commit", "--change", "ENV X=1", "again", "upper:3"]).unwrap();
    let id = here.expect(["image", "inspect", "--format", "{{.Id}}", "upper:3"]).unwrap();
    let image = ImageClaim::of(&source, &id, "upper:3").unwrap();
    let plan = image.plan(&destination).unwrap();
    assert!(matches!(plan, ImagePlan::Above(2 | 3)), "{plan:?}");
    let (called, bytes) = carry(&source, &destination, &image, plan);
    assert!(called == "upper:3" && bytes < 100_000, "{called} with {bytes} bytes");
    assert_eq!(there.expect(["run", "--rm", "upper:3", "sh", "-c", "echo $X"]).unwrap(), "1");
    here.stop().unwrap();
    there.stop().unwrap();
}

#[test]
fn an_archive_that_is_cut_or_wrong_is_no_image() {
    let Some(lab) = lab("docker-cut") else { return };
    let here = Daemon::start(lab.source(), &DaemonOptions::default()).unwrap();
    let source = api(&here);
    here.import(&Image::busybox(), "base").unwrap();
    let id = here.expect(["image", "inspect", "--format", "{{.Id}}", "base"]).unwrap();
    let image = ImageClaim::of(&source, &id, "base").unwrap();
    let mut archive = Vec::new();
    sending::send(&source, &image, ImagePlan::Above(0), &mut archive).unwrap();
    here.expect(["rmi", "base"]).unwrap();
    for wrong in [&archive[..archive.len() / 2], b"garbage", b""] {
        sending::load(&source, &image, wrong).unwrap_err();
        assert_eq!(here.expect(["images", "--quiet"]).unwrap(), "");
    }
    assert_eq!(sending::load(&source, &image, &archive[..]).unwrap(), "base");
    here.stop().unwrap();
}

#[test]
fn a_restart_policy_is_off_while_it_moves_and_comes_back() {
    let Some(lab) = lab("docker-policy") else { return };
    let here = Daemon::start(lab.source(), &DaemonOptions::default()).unwrap();
    let source = api(&here);
    here.import(&Image::busybox(), "base").unwrap();
    let policy =
        || here.expect(["inspect", "--format", "{{json .HostConfig.RestartPolicy}}", "web"]).unwrap();
    here.expect("run --detach --name web --restart on-failure:7 base sleep 1000".split(' ')).unwrap();
    let container = Container::inspect(&source, "web").unwrap();
    let before = policy();
    let care = ContainerCare::of(&source, &container);
    // As the journal keeps it.
    let care: ContainerCare = serde_json::from_str(&serde_json::to_string(&care).unwrap()).unwrap();
    for _ in 0..2 {
        care.suspend().unwrap();
        assert!(policy().contains("\"no\""), "{}", policy());
        care.perform(Side::Source).unwrap();
        assert_eq!(policy(), before);
    }
    care.suspend().unwrap();
    care.perform(Side::Destination).unwrap();
    care.perform(Side::Destination).unwrap();
    care.perform(Side::Source).unwrap();
    assert_eq!(here.expect(["ps", "--all", "--quiet"]).unwrap(), "");
    here.stop().unwrap();
}

#[test]
fn a_container_that_alone_has_its_files_is_kept_out_of_the_way() {
    let Some(lab) = lab("docker-kept") else { return };
    let here = Daemon::start(lab.source(), &DaemonOptions::default()).unwrap();
    let source = api(&here);
    here.import(&Image::busybox(), "base").unwrap();
    here.expect(["run", "--name", "web", "base", "sh", "-c", "echo kept >/root/1"]).unwrap();
    let container = Container::inspect(&source, "web").unwrap();
    let care = ContainerCare::of(&source, &container);
    for _ in 0..2 {
        care.perform(Side::Destination).unwrap();
        let names = here.expect(["ps", "--all", "--format", "{{.Names}}"]).unwrap();
        assert_eq!(names.trim(), format!("web{}", kept_mark(container.id())));
    }
    let file = here.expect(["cp", &format!("{}:/root/1", container.id()), "-"]).unwrap();
    assert!(file.contains("kept"), "{file}");
    here.stop().unwrap();
}

/// A CRIU that says where it is, and waits until the test lets it end.
fn waiting_criu(host: &ferry_lab::hosts::Host) -> &'static str {
    let script =
        "#!/bin/sh\ntouch /run/criu-waits\nwhile [ ! -e /run/criu-ends ]; do sleep 0.02; done\nexit 1\n";
    let path = "/run/waiting-criu";
    fs::write(host.path(path), script).unwrap();
    fs::set_permissions(host.path(path), fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_start_waits_for_criu_and_a_failed_one_leaves_no_container() {
    let Some(lab) = lab("docker-parked") else { return };
    let host = lab.source();
    let here = Daemon::start(host, &DaemonOptions::default().with_criu(waiting_criu(host))).unwrap();
    let source = api(&here);
    here.import(&Image::busybox(), "base").unwrap();
    here.expect("create --name original --restart always base sleep 1000".split(' ')).unwrap();
    let config = ContainerConfig { name: "copy".into(), ..described(&source, "original") };
    let id = config.create(&source, "base").unwrap();
    // The engine's paths are those of its host, which this process is not on.
    let root = Path::new("/run/docker/data/containers").join(&id);
    let error = Stub::make(&source, &id, &[]).unwrap_err().to_string();
    assert!(error.contains(&*root.to_string_lossy()), "{error}");
    let descriptors = ["/dev/null", "pipe:[1]", "pipe:[2]"].map(String::from);
    let stub = Stub::in_directory(&host.path(root), &descriptors).unwrap();
    let start = Start::begin(&source, &id, stub).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !host.path("/run/criu-waits").exists() {
        assert!(Instant::now() < deadline && !start.is_over(), "runc does not ask CRIU: {:?}", start);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!start.is_over(), "Docker waits for CRIU");
    fs::write(host.path("/run/criu-ends"), "").unwrap();
    let ended = start.discard(Failed::Goes);
    assert!(ended.said.contains("criu"), "{}", ended.said);
    ended.removed.unwrap();
    assert_eq!(here.expect(["ps", "--all", "--quiet", "--filter", "name=copy"]).unwrap(), "");
    here.stop().unwrap();
}
