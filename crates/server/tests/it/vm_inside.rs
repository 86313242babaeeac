//! What a real machine tells through the API: its evidence, what it uses and runs, where it is reached, and its logs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use casemate_kms::RootKeys;
use casemate_server::app::{LocalKeys, NewNode};
use casemate_server::clock::Clock;
use casemate_server::config::Config;
use casemate_server::cvm::spec::{Booking, sha256};
use casemate_server::driver::qemu::{Accel, Pace, Qemu, QemuConfig};
use casemate_server::serve::{Server, Start, lock};
use casemate_server::store::Durability;
use casemate_testkit::actor;
use casemate_types::version::ApiVersion;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha384};

use crate::client::Client;
use crate::sweeps_of_qemu::ports;

/// How long anything here may take. A boot takes seconds, and more where others work beside it.
const PATIENCE: Duration = Duration::from_secs(120);

/// The node that is open, for whoever has to close it.
type Node = Mutex<Option<Qemu>>;

/// A server with real machines, and somebody who asks it.
struct Rig {
    server: Server,
    client: Client,
    clock: Clock,
}

impl Rig {
    async fn start(data: &Path, node: &Node) -> Self {
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.casemate-guest");
        assert!(made.join("images").is_dir(), "there is no OS image: run `make guest`");
        let config = QemuConfig {
            accel: Accel::Tcg,
            os_images: vec![made.join("images")],
            capacity: Some(Booking { vcpu: 16, memory_mb: 64 * 1024, disk_gb: 1024, gpus: 0 }),
            ports: ports(),
            pace: Pace { up: Duration::from_millis(200), ..Pace::default() },
            ..QemuConfig::in_data(data)
        };
        let (clock, kms) = (Clock::system(), Arc::new(RootKeys::generate(&[7; 64])));
        let lock = lock(data).expect("nobody else has it");
        let keys = Arc::new(LocalKeys(Arc::clone(&kms)));
        let qemu = Qemu::open(config, clock.clone(), Some(keys)).expect("a node");
        for layout in ["web-1", "web-2"] {
            qemu.images().import(&made.join("oci").join(layout), None).expect("an image");
        }
        let driver = Arc::new(qemu.clone());
        *node.lock().expect("whole") = Some(qemu);
        let node = NewNode { address: "qemu:1".into(), driver, faults: None };
        let start = Start {
            data: data.into(),
            lock,
            listen: ([127, 0, 0, 1], 0).into(),
            nodes: vec![node],
            kms,
            clock: clock.clone(),
            config: Config { dev: true, public_url: String::new(), ..Config::default() },
            durability: Durability::None,
        };
        let server = Server::start(start).await.expect("a server");
        let client = Client::with(&server.app, &actor(&server.app, "demo").await).await;
        Self { server, client, clock }
    }

    /// The first answer that `wanted` takes.
    async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let look = async {
            loop {
                let seen = self.client.json(path).await;
                if wanted(&seen) {
                    return seen;
                }
                self.clock.sleep(Duration::from_millis(50)).await;
            }
        };
        match self.clock.within(PATIENCE, look).await {
            Some(seen) => seen,
            None => panic!("{:#}", self.client.json(path).await),
        }
    }

    /// Waits until an operation has succeeded.
    async fn succeeds(&self, accepted: &Value) -> Value {
        let id = accepted["correlation_id"].as_str().expect("an operation");
        let is_over = |op: &Value| !["queued", "running"].contains(&op["status"].as_str().expect("a word"));
        let ended = self.until(&format!("/operations/{id}"), is_over).await;
        assert_eq!(ended["status"], "succeeded", "{ended:#}");
        ended
    }

    /// What stands at an address of this server, for somebody who has nothing but the address.
    async fn at(&self, url: &str, more: &str) -> String {
        let path = self.path(url);
        let answer = self.client.nobody().get(&format!("{path}{more}")).await;
        assert_eq!(answer.status, 200, "{path}{more}: {}", answer.text());
        answer.text()
    }

    fn path<'a>(&self, url: &'a str) -> &'a str {
        url.strip_prefix(&self.server.url()).expect("an address of this server")
    }

    /// Follows what stands at an address.
    async fn follow(&self, url: &str) -> Followed {
        let path = format!("{}&follow&tail=1", self.path(url));
        let answer = self.client.nobody().send(axum::http::Method::GET, &path, None).await;
        assert_eq!(answer.status(), 200);
        let text = Arc::new(Mutex::new(String::new()));
        let (mut body, written) = (answer.into_body(), Arc::clone(&text));
        let reading = tokio::spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                let bytes = frame.into_data().expect("data");
                written.lock().expect("whole").push_str(std::str::from_utf8(&bytes).expect("UTF-8"));
            }
        });
        Followed { text, reading, clock: self.clock.clone() }
    }
}

/// A log that is being followed.
struct Followed {
    text: Arc<Mutex<String>>,
    reading: tokio::task::JoinHandle<()>,
    clock: Clock,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Followed {
    fn text(&self) -> String {
        self.text.lock().expect("whole").clone()
    }

    /// Waits for a line that has this in it, and expects to have seen it once.
    async fn sees(&self, wanted: &str) {
        let look = async {
            while !self.text().contains(wanted) {
                self.clock.sleep(Duration::from_millis(50)).await;
            }
        };
        assert!(self.clock.within(PATIENCE, look).await.is_some(), "no `{wanted}` in\n{}", self.text());
        assert_eq!(self.text().matches(wanted).count(), 1, "{}", self.text());
    }
}

/// What the machine's web server answers.
pub(crate) async fn served(clock: &Clock, url: &str, path: &str) -> String {
    let address = url.strip_prefix("http://").expect("plain HTTP").to_owned();
    let get = |address: String, path: String| -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned()).unwrap_or_default())
    };
    let ask = async {
        loop {
            let (address, path) = (address.clone(), path.to_owned());
            match tokio::task::spawn_blocking(move || get(address, path)).await.expect("it ran") {
                Ok(text) if !text.is_empty() => return text,
                Ok(_) | Err(_) => clock.sleep(Duration::from_millis(50)).await,
            }
        }
    };
    clock.within(PATIENCE, ask).await.expect("an answer")
}

/// A web server, and a job that fails each time.
fn compose(web: &str) -> String {
    format!(
        "services:\n  web:\n    image: '{web}'\n    ports: ['80:8080']\n    volumes: ['data:/data']\n  job:\n    image: 'web:1'\n    \
         entrypoint: ['/bin/sh', '-c']\n    command: ['echo working; echo broken >&2; exit 3']\n    restart: 'on-failure:1'\n\
         volumes:\n  data:\n"
    )
}

/// The register after these events, computed from what they say.
fn replayed(events: &[Value]) -> String {
    let mut register = [0; 48];
    for event in events {
        let payload = hex::decode(event["event_payload"].as_str().expect("text")).expect("hex");
        let kind = u32::try_from(event["event_type"].as_u64().expect("a number")).expect("a small one");
        let name = event["event"].as_str().expect("a name").as_bytes();
        let digest = Sha384::digest([&kind.to_le_bytes()[..], b":", name, b":", &payload].concat());
        assert_eq!(event["digest"], hex::encode(digest), "{event}");
        register = Sha384::digest([&register[..], &digest].concat()).into();
    }
    hex::encode(register)
}

/// Digest of `web:VERSION`.
fn digest(version: &str) -> String {
    let index = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../../.casemate-guest/oci/web-{version}/index.json"));
    let index: Value = serde_json::from_slice(&std::fs::read(index).expect("an image")).expect("JSON");
    index["manifests"][0]["digest"].as_str().expect("a digest").to_owned()
}

fn container<'a>(composition: &'a Value, name: &str) -> &'a Value {
    let containers = composition["containers"].as_array().expect("a list");
    containers.iter().find(|one| one["names"][0] == name).unwrap_or_else(|| panic!("{composition:#}"))
}

fn log_of(composition: &Value, name: &str) -> String {
    container(composition, name)["log_endpoint"].as_str().expect("an address").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_machine_tells_what_it_is_and_runs_and_writes() {
    let data = tempfile::tempdir().expect("a folder");
    let node = Node::default();
    let told = AssertUnwindSafe(tells(data.path(), &node)).catch_unwind().await;
    // However it ended, nothing that was started stays.
    let open = node.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(open) = open {
        open.shut_down(Duration::ZERO).await;
    }
    if let Err(panic) = told {
        std::panic::resume_unwind(panic);
    }
}

async fn tells(data: &Path, node: &Node) {
    let rig = Rig::start(data, node).await;
    let client = &rig.client;
    let asked = json!({
        "name": "demo-app", "vcpu": 1, "memory": 512, "disk_size": 1, "image": "casemate-0.1.0",
        "compose_file": { "docker_compose_file": compose("web:1"), "public_logs": true },
    });
    let prepared = client.post("/cvms/provision", asked).await.expect(200);
    let made = json!({ "app_id": prepared["app_id"], "compose_hash": prepared["compose_hash"] });
    client.post("/cvms", made).await.expect(200);
    rig.until("/cvms/demo-app/state", |state| {
        assert!(!["error", "failed"].contains(&state["status"].as_str().unwrap_or_default()), "{state:#}");
        state["status"] == "running"
    })
    .await;
    let app_id = prepared["app_id"].as_str().expect("an id").to_owned();

    evidence(&rig, &app_id).await;
    let url = reached(&rig).await;
    running(&rig).await;
    logs(&rig, &url).await;
    images(&rig).await;

    // An update, while somebody follows.
    let composition = client.json("/cvms/demo-app/composition").await;
    let serial =
        client.json("/cvms/demo-app").await["logs"]["serial"].as_str().expect("an address").to_owned();
    let web = log_of(&composition, "/web-1") + "&text&bare";
    let (serial, web) = (rig.follow(&serial).await, rig.follow(&web).await);
    let pinned = format!("web:2@{}", digest("2"));
    let accepted = client.patch("/cvms/demo-app", json!({ "docker_compose_file": compose(&pinned) })).await;
    rig.succeeds(&accepted.expect(202)).await;
    assert_eq!(served(&rig.clock, &url, "/").await, "web 2", "at the same address");
    serial.sees(", image casemate-0.1.0, tcg").await;
    serial.sees("done after").await;
    web.sees("web 2 listens on port 8080").await;
    assert!(!web.text().contains("web 1 listens"), "only the last line from before: {}", web.text());
    let revisions = client.json("/cvms/demo-app/revisions").await;
    assert_eq!(revisions["items"][0]["images"][0], json!({ "reference": pinned, "digest": digest("2") }));
    assert_eq!(revisions["items"][1]["images"][0], json!({ "reference": "web:1", "digest": digest("1") }));
    let after = client.json("/cvms/demo-app/composition").await;
    assert_eq!(container(&after, "/web-1")["image_id"], digest("2"));

    // Off, with a last line that nobody has read by then, and then with another process of the server.
    drop(web);
    assert_eq!(served(&rig.clock, &url, "/data").await, "0");
    for _ in 0..3 {
        served(&rig.clock, &url, "/").await;
    }
    client.post("/cvms/demo-app/stop", json!({})).await.expect(200);
    rig.until("/cvms/demo-app/state", |state| state["status"] == "stopped").await;
    for route in ["attestation", "stats", "network", "composition"] {
        let told = client.json(&format!("/cvms/demo-app/{route}")).await;
        assert!(told["is_online"] == false && told["error"].is_string(), "{route}: {told:#}");
    }
    let before = rig.at(&log_of(&after, "/web-1"), "&text").await;
    let lines: Vec<_> = before.lines().filter(|line| line.contains("listens")).collect();
    assert_eq!(lines, ["web 1 listens on port 8080", "web 2 listens on port 8080"], "kept, over both boots");
    assert!(before.contains("GET /data\n"), "fetched before the power was cut: {before}");
    let Rig { server, client, clock: _ } = rig;
    let (old, log) = (server.url(), log_of(&after, "/web-1"));
    // Nothing of it stays, or two would watch the machines.
    server.stop().await;
    drop((client, serial, node.lock().expect("whole").take()));
    let rig = Rig::start(data, node).await;
    let log = log.replace(&old, &rig.server.url());
    assert_eq!(rig.at(&log, "&text").await, before, "also for a new process");
    let serial = rig.client.json("/cvms/demo-app").await["logs"]["serial"].as_str().expect("one").to_owned();
    let serial = rig.at(&serial, "").await;
    let boots = |number: u32| serial.matches(&format!("boot {number} of ")).count();
    assert!(boots(1) >= 1 && boots(2) >= 1 && boots(3) == 0, "{serial}");

    rig.client.delete("/cvms/demo-app").await.expect(204);
    let gone = rig.clock.within(PATIENCE, async {
        while rig.client.get("/cvms/demo-app").await.status != 404 {
            rig.clock.sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(gone.await.is_some());
}

/// It is the guest's own, and says so.
async fn evidence(rig: &Rig, app_id: &str) {
    let shown = rig.client.json("/cvms/demo-app/attestation").await;
    assert_eq!((&shown["is_online"], &shown["error"]), (&json!(true), &Value::Null), "{shown:#}");
    let note = shown["note"].as_str().expect("a note");
    assert!(note.contains("development evidence") && note.contains("without TEE"), "{note}");
    let tcb = &shown["tcb_info"];
    assert_eq!((&tcb["tee"], &shown["app_certificates"]), (&json!("none"), &json!([])));
    let events = tcb["event_log"].as_array().expect("a list");
    assert_eq!(tcb["rtmr3"], replayed(events), "the register is what the events make of it");
    assert_eq!(tcb["rtmr0"], "00".repeat(48));
    let payload = |name: &str| {
        let found: Vec<_> = events.iter().filter(|event| event["event"] == name).collect();
        assert_eq!(found.len(), 1, "{name}: {events:#?}");
        assert_eq!(found[0]["imr"], 3);
        found[0]["event_payload"].as_str().expect("text")
    };
    let cvm = rig.client.json("/cvms/demo-app").await;
    assert_eq!(payload("app-id"), app_id);
    assert_eq!(payload("instance-id"), cvm["instance_id"].as_str().expect("an id"));
    assert_eq!(payload("compose-hash"), cvm["compose_hash"].as_str().expect("a hash"));
    let text = tcb["app_compose"].as_str().expect("a text");
    assert_eq!(payload("compose-hash"), hex::encode(sha256(text.as_bytes())));
    assert_eq!(shown["compose_file"], text);
    for marker in ["system-preparing", "boot-mr-done", "system-ready"] {
        assert_eq!(payload(marker), "");
    }
}

/// Where its port is reached, in every place that says so. Returns it.
async fn reached(rig: &Rig) -> String {
    let network = rig.client.json("/cvms/demo-app/network").await;
    assert_eq!((&network["is_online"], &network["error"]), (&json!(true), &Value::Null));
    let urls = network["public_urls"].as_array().expect("a list");
    assert_eq!(urls.len(), 1, "{network:#}");
    let url = urls[0]["app"].as_str().expect("an address").to_owned();
    assert!(url.starts_with("http://127.0.0.1:") && urls[0]["instance"] == url, "{network:#}");
    assert_eq!(served(&rig.clock, &url, "/").await, "web 1");
    let cvm = rig.client.json("/cvms/demo-app").await;
    assert_eq!((&cvm["endpoints"], &cvm["public_urls"]), (&network["public_urls"], &network["public_urls"]));
    assert_eq!(cvm["app_url"], url);
    let older = ApiVersion::ALL.into_iter().rfind(|version| !version.has_cvm_objects());
    let older = rig.client.version(older.expect("one")).json("/cvms/demo-app").await;
    assert_eq!(older["public_urls"], network["public_urls"]);
    url
}

/// What it uses and runs.
async fn running(rig: &Rig) {
    let stats = rig.client.json("/cvms/demo-app/stats").await;
    let sysinfo = &stats["sysinfo"];
    assert_eq!((&stats["is_online"], &sysinfo["num_cpus"]), (&json!(true), &json!(1)), "{stats:#}");
    assert_eq!(sysinfo["os_name"], "Casemate guest 0.1.0");
    let memory = sysinfo["total_memory"].as_u64().expect("a number") >> 20;
    assert!((350..=512).contains(&memory), "{stats:#}");
    let whole = |field: &Value| assert!(field.is_u64(), "{field} of {stats:#}");
    for (name, field) in sysinfo.as_object().expect("an object") {
        match name.as_str() {
            "disks" => ["total_size", "free_size"].iter().for_each(|size| whole(&field[0][*size])),
            "os_name" | "os_version" | "kernel_version" | "cpu_model" => {
                assert!(field.as_str().is_some_and(|text| !text.is_empty()), "{name} of {stats:#}");
            }
            _ => whole(field),
        }
    }

    // The job is started again once, and then not any more.
    let composition = rig
        .until("/cvms/demo-app/composition", |seen| {
            let job = container(seen, "/job-1");
            job["status"] == "Exited (3), started again once"
        })
        .await;
    assert_eq!(container(&composition, "/job-1")["state"], "exited");
    let web = container(&composition, "/web-1");
    assert_eq!((&web["state"], &web["image"]), (&json!("running"), &json!("web:1")));
    assert_eq!(web["image_id"], digest("1"));
    assert!(web["status"].as_str().is_some_and(|text| text.starts_with("Up ")), "{web:#}");
    let age = rig.clock.now().as_second() - web["created"].as_i64().expect("seconds");
    assert!((-2..300).contains(&age), "{web:#}");
}

/// Logs, by their addresses alone.
async fn logs(rig: &Rig, url: &str) {
    let cvm = rig.client.json("/cvms/demo-app").await;
    let address = |channel: &str| cvm["logs"][channel].as_str().expect("an address").to_owned();
    let serial = rig.at(&address("serial"), "").await;
    assert!(serial.contains("boot 1 of ") && serial.contains("done after"), "{serial}");
    for channel in ["stdout", "stderr"] {
        assert!(rig.at(&address(channel), "").await.contains("boot 1 of "), "{channel}");
    }
    let last = rig.at(&address("serial"), "&tail=2&lines=2").await;
    assert!(last.lines().count() == 2 && serial.ends_with(&last), "{last}");
    let forged = address("serial").replace("sig=", "sig=0");
    assert_eq!(rig.client.nobody().get(rig.path(&forged)).await.status, 401);

    let composition = rig.client.json("/cvms/demo-app/composition").await;
    let (web, job) = (log_of(&composition, "/web-1"), log_of(&composition, "/job-1"));
    let text = rig.at(&web, "&text&bare").await;
    assert!(text.starts_with("web 1 listens on port 8080\n") && text.contains("GET /\n"), "{text}");
    // Twice, since it was started again.
    let both = async {
        loop {
            let text = rig.at(&job, "").await;
            let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
            let lines: Vec<_> =
                lines.map(|line| (line["channel"].clone(), line["message"].clone())).collect();
            let of = |channel: &str| lines.iter().filter(|(of, _)| of == channel).count();
            if (of("stdout"), of("stderr")) == (2, 2) {
                return lines;
            }
            rig.clock.sleep(Duration::from_millis(50)).await;
        }
    };
    let lines = rig.clock.within(PATIENCE, both).await.expect("two lines of each");
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    assert!(lines.contains(&(json!("stderr"), json!(base64("broken\n")))), "{lines:?}");
    assert!(lines.contains(&(json!("stdout"), json!(base64("working\n")))), "{lines:?}");

    // What is written from now on has a later time than this.
    let between = rig.clock.now();
    let since = |sign: &str| {
        let moment = between + jiff::SignedDuration::from_millis(1500);
        format!("&text&{sign}={moment:.3}")
    };
    rig.clock.sleep(Duration::from_millis(3000)).await;
    served(&rig.clock, url, "/memory").await;
    let wanted = rig.clock.within(PATIENCE, async {
        while !rig.at(&web, &since("since")).await.contains("GET /memory") {
            rig.clock.sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(wanted.await.is_some(), "{}", rig.at(&web, "&text&timestamps").await);
    assert!(!rig.at(&web, &since("since")).await.contains("listens"));
    let until = rig.at(&web, &since("until")).await;
    assert!(until.contains("listens") && !until.contains("GET /memory"), "{until}");
    assert_eq!(rig.at(&web, "&text&since=1h").await, rig.at(&web, "&text").await);
    let stamped = rig.at(&web, "&text&timestamps&tail=1").await;
    assert!(stamped.ends_with("Z GET /memory\n"), "{stamped}");
}

/// What a tag was resolved to is with the revision.
async fn images(rig: &Rig) {
    let revisions = rig.client.json("/cvms/demo-app/revisions").await;
    let known = json!([{ "reference": "web:1", "digest": digest("1") }]);
    assert_eq!(revisions["items"][0]["images"], known, "{revisions:#}");
}
