//! A server is killed at every step of an update on a node with real processes, and another one goes on. The hypervisor is played
//! by this program, in processes of their own which outlive the server; in `vm_real` it is QEMU itself.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use casemate_kms::RootKeys;
use casemate_server::app::{App, Chains, LocalKeys, NewNode};
use casemate_server::auth::{Actor, Scopes};
use casemate_server::config::Config;
use casemate_server::cvm::plan::Wish;
use casemate_server::cvm::spec::Booking;
use casemate_server::cvm::state::{Cvm, Status};
use casemate_server::driver::qemu::{Accel, Pace, Qemu, QemuConfig};
use casemate_server::driver::{Driver, Guest, LogChannel, Observed};
use casemate_server::store::{Durability, OperationFilter, Store, WriterMode};
use casemate_server::workflow::operation::{Kind, Operation, StepName};
use casemate_server::workflow::update::{Outcome, Request};
use casemate_server::workflow::worker::{self, Moment, Probe};
use casemate_server::workflow::{create, power, reconcile, update};
use casemate_testkit::{Place, Recorder};
use casemate_types::compose::ComposeDoc;
use casemate_types::ids::OperationId;
use casemate_types::patch::{CvmCreate, CvmPatch, CvmProvision, Sparse};
use casemate_types::version::ApiVersion;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::parts::{Clock, sha256};

#[path = "../../src/driver/qemu/tests/fake.rs"]
#[expect(clippy::unwrap_used, reason = "it is for tests alone, and shared with those of the library")]
mod fake;
mod frozen;
mod images;
mod vm_real;

/// What the fake takes from here.
mod parts {
    pub(super) use casemate_server::clock::Clock;

    pub(super) const QMP: &str = "qmp.sock";
    pub(super) const AGENT: &str = "agent.sock";
    pub(super) const SERIAL: &str = "serial.log";
    pub(super) const BOOT: &str = "boot.json";

    pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
        use sha2::Digest;
        sha2::Sha256::digest(bytes).into()
    }
}

/// A word of every hypervisor's command line.
const MARK: &str = "socket,id=qmp,path=qmp.sock,server=on,wait=off";

/// How long anything here may take, also where others work beside it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Ports that no other test gets which runs beside this one, as far as can be helped.
pub(crate) fn ports() -> std::ops::Range<u16> {
    let process = u16::try_from(std::process::id() % 180).expect("a small number");
    20_000 + process * 50..30_000
}

/// A web server with a volume.
fn compose(image: &str) -> String {
    format!(
        "services:\n  web:\n    image: {image}\n    ports: ['80:8080']\n    volumes: ['data:/data']\nvolumes:\n  data:\n"
    )
}

/// A host: what outlives its servers.
struct Host {
    folder: tempfile::TempDir,
    clock: Clock,
    kms: Arc<RootKeys>,
    program: PathBuf,
    os_images: PathBuf,
    /// Container images that its servers have.
    layouts: Vec<PathBuf>,
    /// Between two looks at a booting guest.
    look: Duration,
    /// How long a caller waits for a stage.
    stage: Duration,
    /// How long it waits before it starts a machine again that went down by itself.
    back_off: Duration,
}

/// What a server has while it lives.
struct Life {
    app: App,
    qemu: Qemu,
    actor: Actor,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let image = folder.path().join("os-images/dstack-0.5.5");
        std::fs::create_dir_all(&image).expect("made");
        let write = |name: &str, text: &str| std::fs::write(image.join(name), text).expect("written");
        write("metadata.json", r#"{"kernel": "bzImage", "initrd": "initramfs.cpio", "version": "0.5.5"}"#);
        let mut list = String::new();
        for (name, text) in [("bzImage", "kernel"), ("initramfs.cpio", "root"), ("cmdline", "quiet")] {
            write(name, text);
            list += &format!("{}  {name}\n", hex::encode(sha256(text.as_bytes())));
        }
        write("sha256sum.txt", &list);
        let program = folder.path().join("fake-qemu");
        let me = std::env::current_exe().expect("a program");
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'Fake emulator version 0.0.1'; exit; fi\n\
             FAKE_QEMU=\"$*\" exec '{}' --exact sweeps_of_qemu::fake::play '{MARK}' --ignored --nocapture\n",
            me.display()
        );
        std::fs::write(&program, text).expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("set");
        let (os_images, layouts) = (folder.path().join("os-images"), vec![folder.path().join("layout")]);
        let host = Self::with(folder, program, os_images, layouts);
        host.layout();
        host
    }

    fn with(folder: tempfile::TempDir, program: PathBuf, os_images: PathBuf, layouts: Vec<PathBuf>) -> Self {
        let (clock, kms) = (Clock::system(), Arc::new(RootKeys::generate(&[7; 64])));
        let (look, back_off) = (Duration::from_millis(10), Duration::from_millis(50));
        let stage = Pace::default().stage;
        Self { folder, clock, kms, program, os_images, layouts, look, stage, back_off }
    }

    /// An image layout with two images.
    fn layout(&self) {
        let folder = self.folder.path().join("layout");
        std::fs::create_dir_all(folder.join("blobs/sha256")).expect("made");
        let put = |bytes: &[u8], media_type: &str| {
            let digest = hex::encode(sha256(bytes));
            std::fs::write(folder.join("blobs/sha256").join(&digest), bytes).expect("written");
            json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
        };
        let manifests: Vec<_> = ["web:1", "web:2"]
            .iter()
            .map(|name| {
                let config = put(json!({ "config": { "Cmd": [name] } }).to_string().as_bytes(), "");
                let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [] }).to_string();
                let mut manifest = put(manifest.as_bytes(), "application/vnd.oci.image.manifest.v1+json");
                manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
                manifest
            })
            .collect();
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        std::fs::write(folder.join("index.json"), index.to_string()).expect("written");
    }

    fn config(&self) -> QemuConfig {
        QemuConfig {
            program: self.program.clone(),
            accel: Accel::Tcg,
            os_images: vec![self.os_images.clone()],
            capacity: Some(Booking { vcpu: 16, memory_mb: 65_536, disk_gb: 1024, gpus: 0 }),
            ports: ports(),
            pace: Pace {
                stage: self.stage,
                booting: self.look,
                up: 2 * self.look,
                back_off: self.back_off,
                ..Pace::default()
            },
            ..QemuConfig::in_data(self.folder.path())
        }
    }

    /// A server lives, until what it is asked ends. Then it is gone, with all that it was doing.
    fn live<T>(&self, probe: Arc<dyn Probe>, ask: impl AsyncFnOnce(&Life) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let outcome = runtime.block_on(async {
            let database = self.folder.path().join("casemate.db");
            let store = Store::open(&database, Durability::None, WriterMode::Inline).expect("opens");
            store.operation_void_leases().await.expect("a new process");
            let keys = Arc::new(LocalKeys(Arc::clone(&self.kms)));
            let qemu = Qemu::open(self.config(), self.clock.clone(), Some(keys)).expect("the node opens");
            for layout in &self.layouts {
                qemu.images().import(layout, None).expect("imported");
            }
            let nodes =
                vec![NewNode { address: "qemu:1".into(), driver: Arc::new(qemu.clone()), faults: None }];
            let config = Config { dev: true, ..Config::default() };
            let app = App::start_with(
                store,
                self.clock.clone(),
                Arc::clone(&self.kms),
                nodes,
                config,
                Chains::default(),
            )
            .await
            .expect("starts");
            let uids = ["wks_demo".to_owned(), "usr_demo".to_owned()];
            let account =
                app.store.workspace_ensure("demo".into(), "demo".into(), uids, self.clock.now()).await;
            let account = account.expect("a workspace");
            let actor = Actor {
                workspace_id: account.workspace_id,
                user_id: account.user_id,
                key_id: 0,
                scopes: Scopes::ALL,
                default_version: ApiVersion::LATEST,
            };
            tokio::spawn(worker::run(app.clone(), probe, CancellationToken::new()));
            ask(&Life { app, qemu, actor }).await
        });
        runtime.shutdown_timeout(Duration::from_secs(10));
        outcome
    }

    /// Processes that work for the node.
    fn processes(&self) -> Vec<PathBuf> {
        processes(self.folder.path())
    }

    /// Machines that have a folder, or what is left of one.
    fn folders(&self) -> Vec<String> {
        let node = std::fs::read_dir(self.folder.path().join("nodes/qemu-1")).expect("the node's folder");
        let names = node.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| uuid::Uuid::parse_str(name.split('.').next().unwrap_or_default()).is_ok())
            .collect()
    }
}

/// Processes that work for the nodes in this folder.
fn processes(folder: &Path) -> Vec<PathBuf> {
    let folder = folder.canonicalize().expect("there").join("nodes");
    let all = std::fs::read_dir("/proc").expect("Linux").flatten().map(|entry| entry.path());
    all.filter(|process| process.join("cwd").read_link().is_ok_and(|cwd| cwd.starts_with(&folder))).collect()
}

/// Ends them.
fn crash(folder: &Path) {
    send(folder, Signal::KILL);
}

/// Sends them a signal.
fn send(folder: &Path, signal: Signal) {
    for process in processes(folder) {
        let pid = process.file_name().and_then(|name| name.to_str()?.parse().ok()).and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, signal));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        crash(self.folder.path());
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("the host is left in {}", self.folder.path().display());
        }
    }
}

impl Life {
    async fn create(&self) -> Cvm {
        let document =
            ComposeDoc::from_value(json!({ "docker_compose_file": compose("web:1") })).expect("an object");
        let asked = CvmProvision::new("web-one".parse().expect("a valid name"), document);
        let asked = CvmProvision { vcpu: Some(1), memory: Some(512), disk_size: Some(1), ..asked };
        let prepared = create::provision(&self.app, &self.actor, asked, None).await.expect("provisioned");
        let asked = json!({ "app_id": prepared.app_id, "compose_hash": prepared.spec.compose.hash });
        let asked = CvmCreate::from_json(asked.as_object().expect("an object")).expect("valid");
        let author = self.actor.author("req_test");
        let created = create::create(&self.app, &self.actor, author, asked, None).await.expect("created");
        self.wake();
        created.cvm
    }

    fn wake(&self) {
        for lane in [Kind::Update.lane(), Kind::Delete.lane()] {
            self.app.wake(lane);
        }
    }

    async fn update(&self, cvm: &Cvm, patch: CvmPatch) -> Operation {
        let request = Request {
            wish: Wish { patch, ..Wish::default() },
            kind: Kind::Update,
            if_match: None,
            author: self.actor.author("req_test"),
            receipt: None,
            auto_commit: false,
        };
        match update::accept(&self.app, self.cvm(cvm), request).await.expect("accepted") {
            Outcome::Accepted(accepted) => accepted.operation,
            Outcome::NeedsApproval(ask) => panic!("needs an approval: {ask:?}"),
        }
    }

    fn cvm(&self, cvm: &Cvm) -> Cvm {
        self.app.store.cvm(cvm.id).expect("the CVM is there")
    }

    /// Waits until nothing is at work on the CVM.
    async fn settled(&self, cvm: &Cvm) {
        let settled = async {
            while self.app.store.cvm(cvm.id).is_ok_and(|cvm| cvm.open.is_some()) {
                self.app.clock.sleep(Duration::from_millis(5)).await;
            }
        };
        let settled = self.app.clock.within(PATIENCE, settled).await;
        assert!(settled.is_some(), "still at work: {:?}", self.app.store.cvm(cvm.id));
    }

    /// What was done to the CVM and how it ended, newest first.
    fn operations(&self, cvm: &Cvm) -> Vec<(Kind, &'static str)> {
        let all = OperationFilter { cvm_id: Some(cvm.id), limit: 100, ..OperationFilter::default() };
        let operations = self.app.store.operations(self.actor.workspace_id, &all).expect("reads");
        operations.iter().map(|operation| (operation.kind, operation.state.name())).collect()
    }

    async fn seen(&self, cvm: &Cvm) -> Option<Observed> {
        self.qemu.observe(&[cvm.vm_uuid]).await.expect("the node answers").pop()
    }
}

/// The server that comes to a place goes no further.
struct Killer {
    place: Place,
    reached: Notify,
    struck: Mutex<bool>,
}

impl Killer {
    fn at(place: Place) -> Arc<Self> {
        Arc::new(Self { place, reached: Notify::new(), struck: Mutex::new(false) })
    }
}

#[async_trait]
impl Probe for Killer {
    async fn reached(&self, operation: &Operation, step: StepName, moment: Moment) -> bool {
        if (Place { kind: operation.kind, step, moment }) != self.place {
            return true;
        }
        *self.struck.lock().expect("no panic while holding it") = true;
        self.reached.notify_one();
        std::future::pending().await
    }
}

/// Does what an update asks for come up?
#[derive(Clone, Copy, PartialEq, Eq)]
enum New {
    Good,
    Bad,
}

fn patch(round: u32, new: New) -> CvmPatch {
    let image = if round.is_multiple_of(2) { "web:2" } else { "web:1" };
    let (user_config, script) = match new {
        New::Good => (round.to_string(), String::new()),
        // What the player of a guest goes by, and what a real one does.
        New::Bad => (fake::FAILS.to_owned(), "exit 3".to_owned()),
    };
    CvmPatch {
        docker_compose_file: Sparse::Value(compose(image)),
        memory: Sparse::Value(512 + (round + 1) * 16),
        user_config: Sparse::Value(user_config),
        pre_launch_script: Sparse::Value(script),
        allow_force_stop: Sparse::Value(true),
        ..CvmPatch::default()
    }
}

/// A machine before an update.
struct Before {
    seen: Observed,
    booked: Booking,
    operation: OperationId,
}

impl Life {
    /// Accepts an update.
    async fn begin(&self, cvm: &Cvm, patch: CvmPatch) -> Before {
        let (seen, booked) = (self.seen(cvm).await.expect("there"), self.cvm(cvm).booked);
        let operation = self.update(cvm, patch).await.id;
        self.wake();
        Before { seen, booked, operation }
    }

    /// The update has ended: the machine is entirely old or entirely new, and was turned on once for each operation.
    async fn ended(&self, cvm: &Cvm, before: &Before, new: New, what: &str) -> Observed {
        self.settled(cvm).await;
        let operation = self.app.store.operation(self.actor.workspace_id, before.operation).expect("there");
        let (outcome, boots) = match new {
            New::Good => ("succeeded", 1),
            New::Bad => ("failed", 2),
        };
        assert_eq!(operation.state.name(), outcome, "{what}: {operation:?}");
        let (now, seen) = (self.cvm(cvm), self.seen(cvm).await.expect("there"));
        let spec = self.app.store.spec(cvm.id, now.revision).expect("the current spec");
        assert_eq!((now.status, &seen.guest), (Status::Running, &Guest::Done), "{what}");
        assert_eq!((seen.compose_hash, seen.size), (spec.compose.hash, spec.booking()), "{what}");
        assert_eq!(seen.user_config_sha256, spec.user_config_sha256(), "{what}");
        assert_eq!(seen.revision, now.revision, "{what}");
        assert_eq!(seen.size == before.booked, new == New::Bad, "{what}: neither old nor new");
        assert_eq!(seen.boot_count, before.seen.boot_count + boots, "{what}");
        assert_eq!(self.qemu.used(), now.booked, "{what}");
        assert_eq!(self.app.store.nodes().expect("reads")[0].booked, now.booked, "{what}");
        seen
    }
}

/// A CVM that was created and updated once, and the places that the update came by.
fn begin(host: &Host, new: New) -> (Cvm, Vec<Place>) {
    let recorder = Arc::new(Recorder::default());
    let cvm = host.live(Arc::clone(&recorder) as _, async |life| {
        let cvm = life.create().await;
        life.settled(&cvm).await;
        life.update(&cvm, patch(0, new)).await;
        life.settled(&cvm).await;
        cvm
    });
    let places = Arc::into_inner(recorder).expect("the server is gone").places();
    let places: Vec<Place> = places.into_iter().filter(|place| place.kind != Kind::Create).collect();
    let kinds = if new == New::Bad { 2 } else { 1 };
    assert!(places.len() >= 11 * kinds, "{places:?}");
    (cvm, places)
}

/// Updates again and again, with a server that is killed at each place in turn, or at each so many, and another one that goes on.
/// `check` looks at the machine after each.
fn sweep(host: &Host, new: New, each: usize, check: impl AsyncFn(&Life, &Cvm, &str)) {
    let (cvm, places) = begin(host, new);
    for (round, place) in (1..).zip(places.into_iter().step_by(each)) {
        let what = format!("killed at {place:?}");
        let killer = Killer::at(place);
        let before = host.live(Arc::clone(&killer) as _, async |life| {
            let before = life.begin(&cvm, patch(round, new)).await;
            let killed = life.app.clock.within(PATIENCE, killer.reached.notified()).await;
            assert!(killed.is_some(), "{what}: not reached");
            before
        });
        assert!(*killer.struck.lock().expect("nobody panicked"), "{what}");
        host.live(Arc::new(worker::NoProbe), async |life| {
            life.ended(&cvm, &before, new, &what).await;
            check(life, &cvm, &what).await;
        });
        assert_eq!((host.processes().len(), host.folders()), (1, vec![cvm.vm_uuid.to_string()]), "{what}");
    }
}

#[test]
fn an_update_of_real_processes_survives_a_server_that_is_killed_anywhere() {
    sweep(&Host::new(), New::Good, 1, async |_, _, _| {});
}

#[test]
fn an_update_that_does_not_boot_is_put_back_by_whoever_lives() {
    sweep(&Host::new(), New::Bad, 1, async |_, _, _| {});
}

#[test]
fn a_machine_that_dies_again_and_again_is_left_to_its_node() {
    let host = Host::new();
    host.live(Arc::new(worker::NoProbe), async |life| {
        let cvm = life.create().await;
        life.settled(&cvm).await;
        let said = async |text: &str| {
            let serial = life.qemu.logs(cvm.vm_uuid, &LogChannel::Serial).await.expect("answers");
            serial.iter().any(|line| line.text.contains(text))
        };
        let dies = async {
            while !said("again in 400ms, for the 4. time").await {
                crash(host.folder.path());
                reconcile::once(&life.app).await;
                life.app.clock.sleep(Duration::from_millis(10)).await;
            }
        };
        let pauses = life.app.clock.within(PATIENCE, dies).await;
        assert!(pauses.is_some(), "the pauses do not grow: {:?}", life.operations(&cvm));
        let lives = async {
            while life.seen(&cvm).await.is_none_or(|seen| seen.guest != Guest::Done) {
                reconcile::once(&life.app).await;
                life.app.clock.sleep(Duration::from_millis(10)).await;
            }
        };
        life.app.clock.within(PATIENCE, lives).await.expect("it comes up when it can");
        assert_eq!(life.operations(&cvm), [(Kind::Create, "succeeded")]);
        assert_eq!(life.cvm(&cvm).status, Status::Running);
    });
}

/// At the last step of a restart, the machine goes down.
struct Crasher {
    folder: PathBuf,
    clock: Clock,
}

#[async_trait]
impl Probe for Crasher {
    async fn reached(&self, operation: &Operation, step: StepName, moment: Moment) -> bool {
        if (operation.kind, step, moment) == (Kind::Restart, StepName::Observe, Moment::Before) {
            crash(&self.folder);
            while !processes(&self.folder).is_empty() {
                self.clock.sleep(Duration::from_millis(5)).await;
            }
        }
        true
    }
}

#[test]
fn a_machine_that_dies_inside_an_operation_and_comes_up_is_running() {
    let mut host = Host::new();
    host.back_off = Duration::from_secs(1);
    let crasher = Crasher { folder: host.folder.path().to_owned(), clock: host.clock.clone() };
    host.live(Arc::new(crasher), async |life| {
        let cvm = life.create().await;
        life.settled(&cvm).await;
        let author = life.actor.author("req_test");
        power::restart(&life.app, life.cvm(&cvm), false, author).await.expect("accepted");
        life.wake();
        life.settled(&cvm).await;
        let failed = (Kind::Restart, "failed");
        assert_eq!(life.operations(&cvm)[0], failed);
        assert_eq!(life.cvm(&cvm).status, Status::Error);
        let comes_right = async {
            while life.cvm(&cvm).status != Status::Running {
                reconcile::once(&life.app).await;
                life.settled(&cvm).await;
                life.app.clock.sleep(Duration::from_millis(10)).await;
            }
        };
        let right = life.app.clock.within(PATIENCE, comes_right).await;
        assert!(right.is_some(), "{:?}", life.cvm(&cvm));
        let recovered = (Kind::Recover, "succeeded");
        assert_eq!(life.operations(&cvm), [recovered, failed, (Kind::Create, "succeeded")]);
        assert_eq!(life.seen(&cvm).await.expect("there").boot_count, 3, "once for each, and once by itself");
    });
}

#[test]
fn a_deletion_is_gone_on_with_and_leaves_no_process_and_no_file() {
    let host = Host::new();
    for moment in [Moment::Before, Moment::Between] {
        for step in [StepName::Stage, StepName::Stop, StepName::Apply, StepName::Start, StepName::Observe] {
            // Asked for by one server in the middle of an update, half done by the next, finished by the last.
            let killer = Killer::at(Place { kind: Kind::Update, step, moment });
            let cvm = host.live(Arc::clone(&killer) as _, async |life| {
                let cvm = life.create().await;
                life.settled(&cvm).await;
                life.update(&cvm, patch(2, New::Good)).await;
                life.wake();
                let reached = life.app.clock.within(PATIENCE, killer.reached.notified()).await;
                reached.expect("it comes to that place");
                power::delete(&life.app, life.cvm(&cvm), life.actor.author("req_test"))
                    .await
                    .expect("accepted");
                cvm
            });
            let killer = Killer::at(Place { kind: Kind::Delete, step: StepName::Remove, moment });
            host.live(Arc::clone(&killer) as _, async |life| {
                life.wake();
                let reached = life.app.clock.within(PATIENCE, killer.reached.notified()).await;
                reached.expect("it comes to that place");
            });
            host.live(Arc::new(worker::NoProbe), async |life| {
                life.settled(&cvm).await;
                assert!(life.app.store.cvm(cvm.id).is_err() && life.seen(&cvm).await.is_none());
                assert_eq!(life.qemu.used(), Default::default());
                assert_eq!(life.app.store.nodes().expect("reads")[0].booked, Default::default());
            });
            assert_eq!((host.processes().len(), host.folders()), (0, vec![]), "{step} {moment:?}");
        }
    }
}

/// After a stage, the tag means something else.
struct Mover {
    folder: PathBuf,
    app: std::sync::OnceLock<App>,
    /// What was recorded of each revision by then.
    recorded: Mutex<Vec<(u64, Vec<String>)>>,
}

#[async_trait]
impl Probe for Mover {
    async fn reached(&self, operation: &Operation, step: StepName, moment: Moment) -> bool {
        if (step, moment) == (StepName::Stage, Moment::After) {
            let digests = digests(self.app.get().expect("it began"), operation.cvm_id, operation.target);
            self.recorded.lock().expect("no panic while holding it").push((operation.target, digests));
            move_tag(&self.folder);
        }
        true
    }
}

/// What the store says that the images of a revision mean.
fn digests(app: &App, cvm_id: i64, revision: u64) -> Vec<String> {
    let revision = app.store.revisions(cvm_id, Some(revision + 1), 1).expect("reads").remove(0);
    revision.images.into_iter().map(|image| image.digest).collect()
}

/// `web:1` is an image that it never was before, for whoever asks next.
fn move_tag(folder: &Path) {
    let store = QemuConfig::in_data(folder).image_store(Clock::system()).expect("opens");
    let layout = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir_all(layout.path().join("blobs/sha256")).expect("made");
    let put = |text: String| {
        let digest = hex::encode(sha256(text.as_bytes()));
        std::fs::write(layout.path().join("blobs/sha256").join(&digest), &text).expect("written");
        json!({ "mediaType": "", "digest": format!("sha256:{digest}"), "size": text.len() })
    };
    let config = put(json!({ "config": { "Cmd": [format!("{:?}", store.list())] } }).to_string());
    let manifest = put(json!({ "schemaVersion": 2, "config": config, "layers": [] }).to_string());
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(layout.path().join("index.json"), index.to_string()).expect("written");
    store.import(layout.path(), Some(&"web:1".parse().expect("a name"))).expect("imported");
}

#[test]
fn what_a_revision_runs_is_settled_by_its_stage_and_never_changes() {
    let host = Host::new();
    let (app, recorded) = (std::sync::OnceLock::new(), Mutex::default());
    let mover = Arc::new(Mover { folder: host.folder.path().to_owned(), app, recorded });
    host.live(Arc::clone(&mover) as _, async |life| {
        assert!(mover.app.set(life.app.clone()).is_ok());
        let cvm = life.create().await;
        let ends = async |kind: Kind, state: &str| {
            life.wake();
            life.settled(&cvm).await;
            let last = (kind, state);
            assert_eq!(life.operations(&cvm)[0], (last.0, last.1));
            let (now, seen) = (life.cvm(&cvm), life.seen(&cvm).await.expect("there"));
            assert_eq!((seen.revision, seen.guest), (now.revision, Guest::Done));
            let runs: Vec<_> = seen.images.into_iter().map(|image| image.digest).collect();
            assert_eq!(runs, digests(&life.app, cvm.id, now.revision));
            runs
        };
        let with = |memory: u32, user_config: &str| CvmPatch {
            docker_compose_file: Sparse::Value(format!("{}# with {memory} MB\n", compose("web:1"))),
            memory: Sparse::Value(memory),
            user_config: Sparse::Value(user_config.into()),
            ..CvmPatch::default()
        };
        let first = ends(Kind::Create, "succeeded").await;
        assert_eq!(first.len(), 1);
        let author = || life.actor.author("req_test");
        power::restart(&life.app, life.cvm(&cvm), false, author()).await.expect("accepted");
        assert_eq!(ends(Kind::Restart, "succeeded").await, first);
        life.update(&cvm, with(2064, "")).await;
        let second = ends(Kind::Update, "succeeded").await;
        assert_ne!(second, first, "an update of the compose file looks at what the tag means");
        // Its image is another one again, and what is put back is not.
        life.update(&cvm, with(2080, fake::FAILS)).await;
        assert_eq!(ends(Kind::PutBack, "succeeded").await, second);
        let spec = life.app.store.spec(cvm.id, 1).expect("the first spec");
        let request = Request {
            wish: Wish { content_of: Some((1, spec)), ..Wish::default() },
            kind: Kind::Rollback,
            if_match: None,
            author: author(),
            receipt: None,
            auto_commit: false,
        };
        update::accept(&life.app, life.cvm(&cvm), request).await.expect("accepted");
        assert_eq!(ends(Kind::Rollback, "succeeded").await, first);
        let recorded = mover.recorded.lock().expect("no panic while holding it");
        let revisions: Vec<_> = recorded.iter().map(|(revision, _)| *revision).collect();
        assert_eq!(revisions, [1, 1, 2, 3, 5], "a put-back stages nothing");
        for (revision, then) in recorded.iter() {
            assert_eq!((then.len(), then), (1, &digests(&life.app, cvm.id, *revision)), "{revision}");
        }
    });
}
