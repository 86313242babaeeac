//! The driver with QEMU itself, and with the guest that `make guest` builds.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use casemate_types::compose::ComposeDoc;
use casemate_types::env::{self, EnvVar};
use casemate_types::ids::AppId;
use serde_json::{Value, json};

use super::*;
use crate::cvm::spec::{Compose, Gpus, sha256};
use crate::driver::Guest;

const SECRET: [u8; 32] = [7; 32];

/// Gives out one secret.
struct OneKey;

impl GuestKeys for OneKey {
    fn unseal(&self, _: &AppId, _: &[u8]) -> std::result::Result<Vec<EnvVar>, String> {
        Err("the guest opens it".into())
    }

    fn env_secret(&self, _: &AppId) -> std::result::Result<zeroize::Zeroizing<[u8; 32]>, String> {
        Ok(zeroize::Zeroizing::new(SECRET))
    }
}

/// A node with real machines.
pub(super) struct RealRig(pub(super) FakeRig);

fn sealed(vars: &[(&str, &str)]) -> Option<Long<[u8]>> {
    let key = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(SECRET)).to_bytes();
    let vars: Vec<EnvVar> = vars.iter().map(|(key, value)| EnvVar::new(*key, *value)).collect();
    Some(env::seal(&key, &vars, [9; 32], [1; 12]).expect("a good key").into())
}

impl RealRig {
    pub(super) fn new() -> Self {
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.casemate-guest");
        assert!(made.join("images").is_dir(), "there is no OS image: run `make guest`");
        let folder = tempfile::tempdir().unwrap();
        let config = QemuConfig {
            accel: Accel::Tcg,
            os_images: vec![made.join("images")],
            capacity: Some(Booking { vcpu: 16, memory_mb: 64 * 1024, disk_gb: 1024, gpus: 0 }),
            ports: ports(),
            pace: Pace {
                up: Duration::from_millis(200),
                back_off: Duration::from_millis(50),
                ..Pace::default()
            },
            ..QemuConfig::in_data(folder.path())
        };
        let mut rig = Self(FakeRig { qemu: None, config, clock: Clock::system(), folder });
        rig.open();
        for version in ["1", "2"] {
            let layout = made.join(format!("oci/web-{version}"));
            rig.0.qemu().images().import(&layout, None).unwrap();
        }
        rig
    }

    pub(super) fn open(&mut self) {
        self.0.qemu = None;
        self.0.qemu =
            Some(Qemu::open(self.0.config.clone(), self.0.clock.clone(), Some(Arc::new(OneKey))).unwrap());
    }

    pub(super) async fn until(&self, wanted: impl Fn(&Observed) -> bool) -> Observed {
        let look = async {
            loop {
                let seen = self.0.qemu().observe(&[VM]).await.unwrap().pop().expect("the machine is there");
                if wanted(&seen) {
                    return seen;
                }
                self.0.clock.sleep(Duration::from_millis(50)).await;
            }
        };
        match self.0.clock.within(Duration::from_secs(120), look).await {
            Some(seen) => seen,
            None => panic!(
                "{:?}\n{}",
                self.0.qemu().observe(&[VM]).await,
                std::fs::read_to_string(self.0.machine_folder().join(command::SERIAL)).unwrap_or_default()
            ),
        }
    }

    pub(super) async fn done(&self) -> Observed {
        self.until(|seen| seen.guest == Guest::Done).await
    }

    pub(super) async fn serial(&self) -> String {
        let lines = self.0.qemu().logs(VM, &LogChannel::Serial).await.unwrap();
        lines.into_iter().map(|line| line.text + "\n").collect()
    }
}

#[async_trait]
impl Rig for RealRig {
    fn driver(&self) -> DynDriver {
        self.0.driver()
    }

    fn clock(&self) -> Clock {
        self.0.clock()
    }

    /// A small HTTP server: `web:1` of odd revisions, `web:2` of even ones.
    fn machine(&self, revision: u64) -> Machine {
        let version = if revision % 2 == 1 { 1 } else { 2 };
        let document = json!({
            "name": "demo", "runner": "docker-compose", "public_logs": true, "public_tcbinfo": false,
            "docker_compose_file": format!(
                "services:\n  web:\n    image: web:{version}\n    ports: ['80:8080']\n    volumes: ['data:/data']\n    \
                 environment: {{A: '${{A}}', REVISION: '{revision}'}}\nvolumes:\n  data:\n"
            ),
            "allowed_envs": ["B", "A"],
        });
        let spec = Spec {
            compose: Compose::new(&ComposeDoc::from_value(document).unwrap()),
            sealed_env: sealed(&[("B", "2"), ("A", "s3cret-value")]),
            user_config: None,
            vcpu: 1,
            memory_mb: 256,
            disk_gb: 1,
            gpus: Gpus::default(),
            image: "casemate-0.1.0".into(),
            instance_seed: [7; 20],
        };
        let app_id = AppId([9; 20]);
        Machine {
            name: "demo-app".into(),
            app_id,
            instance_id: spec.instance_id(&app_id),
            revision,
            spec,
            images: vec![],
        }
    }

    fn bad(&self, mut machine: Machine, behaviour: Behaviour) -> Machine {
        let mut document = machine.spec.compose.parsed();
        match behaviour {
            Behaviour::Fails => document.set_pre_launch_script("echo no; exit 3"),
            // The machine does not wait for ever, but longer than anybody does here.
            Behaviour::Hangs => document.set_docker_compose_file(
                "services:\n  web:\n    image: web:1\n    entrypoint: ['/bin/sh', '-c', 'trap : TERM; while :; do sleep 1000; done']\n",
            ),
        }
        machine.spec.compose = Compose::new(&document);
        machine
    }

    fn crash(&self, vm: VmUuid) {
        self.0.crash(vm);
    }

    async fn reopen(&mut self) {
        self.open();
    }
}

contract!(tokio::test, RealRig::new());

/// What the machine's server answers.
pub(super) fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    // Asked again, `/count` would count again.
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text.split_once("\r\n\r\n").or_else(|| text.split_once("\n\n")).map(|(_, body)| body);
    Ok(body.unwrap_or(&text).trim().to_owned())
}

pub(super) async fn served(rig: &RealRig, port: u16, path: &str) -> String {
    let ask = async {
        loop {
            match tokio::task::block_in_place(|| get(port, path)) {
                Ok(text) if !text.is_empty() => return text,
                Ok(_) | Err(_) => rig.0.clock.sleep(Duration::from_millis(20)).await,
            }
        }
    };
    rig.0.clock.within(Duration::from_secs(30), ask).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_of_compose_memory_and_os_serves_the_new_version_and_keeps_the_volume() {
    let at = |generation| At { vm: VM, generation };
    let rig = RealRig::new();
    let qemu = rig.0.qemu().clone();
    let begun = rig.0.clock.now();
    let since = |begun: jiff::Timestamp| rig.0.clock.now().duration_since(begun).as_millis();
    qemu.ensure_staged(at(1), &rig.machine(1)).await.unwrap();
    println!("staged in {} ms", since(begun));
    qemu.ensure_applied(at(1), &rig.machine(1)).await.unwrap();
    println!("applied after {} ms", since(begun));
    qemu.ensure_started(at(1)).await.unwrap();
    println!("started after {} ms", since(begun));
    let seen = rig.done().await;
    println!("done after {} ms", since(begun));
    let port = seen.ports[0];
    assert_eq!(port.guest, 80);
    assert_eq!(served(&rig, port.host, "/").await, "web 1");
    println!("serving after {} ms", since(begun));
    assert_eq!(served(&rig, port.host, "/count").await, "1");
    assert_eq!(seen.env_keys, ["A", "B"]);
    let memory: u64 = served(&rig, port.host, "/memory").await.parse().unwrap();
    let sysinfo = qemu.sysinfo(VM).await.unwrap().expect("it is up");
    assert_eq!(sysinfo.total_memory, memory * 1024);
    assert_eq!(sysinfo.os_name, "Casemate guest 0.1.0");

    let mut machine = rig.machine(2);
    machine.spec.memory_mb = 384;
    machine.spec.disk_gb = 2;
    machine.spec.image = "casemate-0.2.0".into();
    qemu.ensure_staged(at(2), &machine).await.unwrap();
    assert_eq!(served(&rig, port.host, "/").await, "web 1", "it serves until the stop");
    let begun = rig.0.clock.now();
    let how = Stop::Graceful { timeout: Duration::from_secs(30), then: crate::driver::AfterTimeout::GiveUp };
    assert_eq!(qemu.ensure_stopped(at(2), how).await, Ok(Stopped::Off));
    println!("stopped in {} ms", since(begun));
    qemu.ensure_applied(at(2), &machine).await.unwrap();
    qemu.ensure_started(at(2)).await.unwrap();
    assert_eq!(served(&rig, port.host, "/").await, "web 2");
    println!("not serving for {} ms", since(begun));
    let seen = rig.done().await;
    println!("downtime as reported {:?} ms", seen.last_downtime_ms);
    assert_eq!((seen.boot_count, seen.revision), (2, 2));
    assert_eq!(seen.ports[0], port, "it is reached where it was");
    assert_eq!(served(&rig, port.host, "/data").await, "1", "the volume survives");
    let more: u64 = served(&rig, port.host, "/memory").await.parse().unwrap();
    assert!(more > memory + 100 * 1024, "{memory} kB, then {more} kB");
    let sysinfo = qemu.sysinfo(VM).await.unwrap().expect("it is up");
    assert_eq!(sysinfo.os_name, "Casemate guest 0.2.0");
    assert!(sysinfo.disks[0].total_size > 1_500_000_000, "{sysinfo:?}");
    let web = qemu.logs(VM, &LogChannel::Container("web".into())).await.unwrap();
    let has = |text: &str| web.iter().any(|line| line.text.contains(text));
    assert!(has("web 1 listens on port 8080") && has("web 2 listens on port 8080"), "{web:?}");
    assert!(rig.serial().await.contains("boot 2 of"));

    // What was sealed is in the container, and nowhere on the host.
    let folder = rig.0.machine_folder();
    for entry in std::fs::read_dir(&folder).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_file() && name != command::DATA {
            let bytes = std::fs::read(entry.path()).unwrap();
            assert!(!bytes.windows(12).any(|part| part == b"s3cret-value"), "{name}");
        }
    }
    qemu.ensure_absent(at(3)).await.unwrap();
    assert!(!folder.exists() && get(port.host, "/").is_err());
}

/// Puts so many images beside `web:1` that differ from it in a variable. Their names.
fn variants(rig: &RealRig, count: usize) -> Vec<String> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.casemate-guest/oci/web-1");
    let layout = tempfile::tempdir().unwrap();
    let blobs = layout.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for blob in std::fs::read_dir(made.join("blobs/sha256")).unwrap().flatten() {
        std::fs::copy(blob.path(), blobs.join(blob.file_name())).unwrap();
    }
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let blob = |of: &Value| read(blobs.join(of["digest"].as_str().unwrap().trim_start_matches("sha256:")));
    let put = |document: &Value| {
        let (text, digest) = (document.to_string(), hex::encode(sha256(document.to_string().as_bytes())));
        std::fs::write(blobs.join(&digest), &text).unwrap();
        (json!(format!("sha256:{digest}")), json!(text.len()))
    };
    let index = read(made.join("index.json"));
    let manifest = blob(&index["manifests"][0]);
    let names: Vec<String> = (0..count).map(|number| format!("variant:{number}")).collect();
    let manifests: Vec<Value> = names
        .iter()
        .map(|name| {
            let (mut config, mut manifest) = (blob(&manifest["config"]), manifest.clone());
            config["config"]["Env"] = json!(["PATH=/bin", format!("VARIANT={name}")]);
            (manifest["config"]["digest"], manifest["config"]["size"]) = put(&config);
            let mut named = index["manifests"][0].clone();
            (named["digest"], named["size"]) = put(&manifest);
            named["annotations"]["org.opencontainers.image.ref.name"] = json!(name);
            named
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    std::fs::write(layout.path().join("index.json"), index.to_string()).unwrap();
    rig.0.qemu().images().import(layout.path(), None).unwrap();
    names
}

#[tokio::test]
async fn many_images_are_as_many_disks_and_machines_that_run_at_once_share_them() {
    let rig = RealRig::new();
    // More than one place on the bus has functions for.
    let names = variants(&rig, 12);
    let mut many = rig.machine(1);
    let mut document = many.spec.compose.parsed();
    let service = |name: &String| (name.replace(':', "-"), json!({"image": name}));
    let services: serde_json::Map<_, _> = names.iter().map(service).collect();
    document.set_docker_compose_file(&json!({ "services": services }).to_string());
    many.spec.compose = Compose::new(&document);
    let vms = [VM, VmUuid(uuid::Uuid::from_u128(2))];
    for vm in vms {
        let at = At { vm, generation: 1 };
        rig.0.qemu().ensure_staged(at, &many).await.unwrap();
        rig.0.qemu().ensure_applied(at, &many).await.unwrap();
        rig.0.qemu().ensure_started(at).await.unwrap();
    }
    rig.done().await;
    let done = async {
        loop {
            let seen = rig.0.qemu().observe(&vms).await.unwrap();
            if seen.iter().all(|seen| seen.guest == Guest::Done) {
                return seen;
            }
            rig.0.clock.sleep(Duration::from_millis(50)).await;
        }
    };
    for seen in rig.0.clock.within(Duration::from_secs(120), done).await.expect("both are up") {
        let digests: BTreeSet<_> = seen.containers.iter().map(|one| one.digest.clone()).collect();
        assert_eq!((seen.containers.len(), digests.len()), (names.len(), names.len()), "{seen:?}");
        assert!(seen.containers.iter().all(|one| one.running), "{seen:?}");
    }
}

#[tokio::test]
async fn kvm_is_used_only_if_a_machine_comes_up_with_it() {
    let mut rig = RealRig::new();
    rig.0.config.accel = Accel::Auto;
    rig.open();
    let host = Arc::clone(&rig.0.qemu().host);
    let accelerator = accel::decide(&host).await;
    let remembered = std::fs::read_to_string(rig.0.config.folder.join("kvm.json")).unwrap_or_default();
    println!("{accelerator:?} {remembered}");
    // What finds out works where the accelerator does.
    let image = host.os_images.list().pop().unwrap();
    accel::canary(&host, &image, Accelerator::Tcg, Duration::from_secs(60)).await.unwrap();
    let kvm = accel::canary(&host, &image, Accelerator::Kvm, Duration::from_secs(10)).await;
    println!("with KVM: {kvm:?}");
    assert!(kvm.is_err() || accelerator == Accelerator::Kvm || !remembered.contains("true"));
    assert!(rig.0.qemu().describe().await.unwrap().version.contains(accelerator.as_str()));
    assert!(!rig.0.config.folder.join("canary").exists());
    let at = At { vm: VM, generation: 1 };
    let machine = rig.machine(1);
    rig.0.qemu().ensure_staged(at, &machine).await.unwrap();
    rig.0.qemu().ensure_applied(at, &machine).await.unwrap();
    rig.0.qemu().ensure_started(at).await.unwrap();
    rig.done().await;
}
