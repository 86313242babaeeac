//! Machines that QEMU runs on this host.
//!
//! - **A folder is a machine** (`record.rs`). `machine.json` in it says what is in force; replacing that file is the moment at
//!   which an update takes effect. Everything else is named by it or made from it.
//! - **A process outlives the server.** It is found again by its number, its beginning and its folder (`process.rs`), so no
//!   machine is ever started twice, and a call only changes a machine in its turn (`slot.rs`, `calls.rs`).
//! - **The guest is asked, and never believed on trust.** One watcher for each machine (`watch.rs`) asks the agent how far the
//!   guest is and what it found in its configuration; `observe` reports the guest's own hashes once it has them. The watcher
//!   also waits for the end of the process, so that a death is known at once.
//!
//! What users chose is in files that QEMU reads, never in its arguments (`command.rs`), and secrets go through the agent's
//! channel alone.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use casemate_types::guest::{Evidence, ImageRef};
use casemate_types::ids::VmUuid;
use casemate_types::wire::Sysinfo;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::accel::Accelerators;
use self::gone::Gone;
use self::os_images::OsImages;
use self::slot::Slot;
use super::images::{self, Freed, ImageStore};
use super::{
    Abilities, At, Driver, Error, GuestKeys, LogChannel, LogLine, Machine, NodeFacts, Observed, Result, Stop,
    Stopped, room,
};
use crate::clock::Clock;
use crate::cvm::spec::{Booking, Spec};

mod accel;
mod agent;
mod boot;
mod calls;
mod command;
mod config;
mod console;
mod disk;
mod files;
mod gone;
mod leave;
mod logs;
mod os_images;
mod ports;
mod process;
mod qmp;
mod record;
mod recover;
mod reserve;
mod slot;
mod stage;
mod staging;
mod sysinfo;
#[cfg(test)]
pub(super) mod tests;
mod watch;

pub use self::config::{Accel, Accelerator, Pace, QemuConfig};

/// What a node that runs QEMU can do.
pub const ABILITIES: Abilities = Abilities { new_instance_id: true, fence: true, ports: true };
/// A machine that takes longer than this to come up does not boot. Emulated on two cores they take 2 to 3 s each, and only as many
/// boot at a time as there are cores. What is larger takes longer: its images are verified on the way.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// How often a booting machine is worth a look.
pub const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How often container images of no use are looked for.
const COLLECT: Duration = Duration::from_hours(24);

/// A node that runs QEMU on this host. Clones share it; when the last one is dropped, nobody watches its machines any more, and
/// they go on running.
#[derive(Clone)]
pub struct Qemu {
    host: Arc<Host>,
    _open: Arc<Open>,
}

/// As long as it is there, the node is watched, and nobody else has its folder.
struct Open {
    _watching: DropGuard,
    _folder: std::fs::File,
}

/// What the parts of the node share.
struct Host {
    clock: Clock,
    keys: Option<Arc<dyn GuestKeys>>,
    config: QemuConfig,
    capacity: Booking,
    /// Version of the hypervisor.
    version: String,
    os_images: OsImages,
    store: ImageStore,
    accel: Accelerators,
    slots: Mutex<BTreeMap<VmUuid, Arc<Slot>>>,
    gone: Mutex<Gone>,
    /// Whoever gives a machine its size has it: what fits is settled before the next one asks.
    room: tokio::sync::Mutex<()>,
    /// As many machines may boot at once.
    boots: Arc<Semaphore>,
    /// The node is closed: nobody watches any more.
    closed: CancellationToken,
}

impl Qemu {
    /// Opens the node, and takes over the machines that run. Needs a runtime.
    ///
    /// # Errors
    /// There is no QEMU, or the node's folder cannot be used, or another process uses it; says what to do.
    pub fn open(
        config: QemuConfig,
        clock: Clock,
        keys: Option<Arc<dyn GuestKeys>>,
    ) -> std::result::Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let program = find(&config.program).ok_or_else(|| {
            format!(
                "there is no {}; install it: apt-get install --no-install-recommends qemu-system-x86",
                config.program.display()
            )
        })?;
        files::make_private(&config.folder).map_err(folder_of(&config.folder))?;
        // It is where machines work, so it has to have one name.
        let own = config.folder.canonicalize().map_err(folder_of(&config.folder))?;
        let config = QemuConfig { folder: own, program, ..config };
        let locked = files::lock(&config.folder).map_err(folder_of(&config.folder))?;
        let capacity = config.capacity.map_or_else(|| config.host_capacity(), Ok)?;
        let closed = CancellationToken::new();
        let host = Host {
            clock: clock.clone(),
            keys,
            capacity,
            version: version(&config.program)?,
            os_images: OsImages::new(config.os_images.clone()),
            store: config.image_store(clock.clone())?,
            accel: Accelerators::default(),
            slots: Mutex::default(),
            gone: Mutex::new(Gone::open(&config.folder).map_err(folder_of(&config.folder))?),
            room: tokio::sync::Mutex::default(),
            boots: Arc::new(Semaphore::new(config.boots_at_once)),
            config,
            closed: closed.clone(),
        };
        let host = Arc::new(host);
        recover::all(&host).map_err(folder_of(&host.config.folder))?;
        let deciding = Arc::clone(&host);
        host.spawn(async move {
            accel::decide(&deciding).await;
        });
        let collecting = Arc::clone(&host);
        host.spawn(async move { collect(&collecting).await });
        Ok(Self { host, _open: Arc::new(Open { _watching: closed.drop_guard(), _folder: locked }) })
    }

    /// The store of container images.
    pub fn images(&self) -> &ImageStore {
        &self.host.store
    }

    /// Closes the node and brings its machines down, as a host does that is switched off: each is asked, and loses its power if
    /// it takes longer than `timeout`. Whoever opens the node again turns them on.
    pub async fn shut_down(&self, timeout: Duration) {
        leave::all(&self.host, timeout).await;
    }

    /// The sum of what its machines occupy.
    pub fn used(&self) -> Booking {
        room::occupied(self.host.specs(None).iter())
    }
}

impl Host {
    /// The place of a machine.
    fn slot(&self, vm: VmUuid) -> Arc<Slot> {
        let mut slots = self.slots();
        let new = || Arc::new(Slot::open(&self.config.folder, vm, self.gone().get(vm)));
        Arc::clone(slots.entry(vm).or_insert_with(new))
    }

    /// Every place, also those without a machine.
    fn all(&self) -> Vec<Arc<Slot>> {
        self.slots().values().cloned().collect()
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<VmUuid, Arc<Slot>>> {
        self.slots.lock().expect("nothing panics while holding it")
    }

    fn gone(&self) -> MutexGuard<'_, Gone> {
        self.gone.lock().expect("nothing panics while holding it")
    }

    /// The specs of the machines but for one.
    fn specs(&self, but: Option<VmUuid>) -> Vec<Spec> {
        let others = self.all().into_iter().filter(|slot| Some(slot.vm) != but);
        others.filter_map(|slot| slot.spec()).collect()
    }

    /// Is there room for `spec` beside the other machines?
    fn fits(&self, slot: &Slot, spec: &Spec) -> Result<()> {
        let used = room::occupied(self.specs(Some(slot.vm)).iter());
        room::fits(spec, slot.spec().as_ref(), used, &self.facts(Vec::new())).map_err(Error::Refused)
    }

    fn facts(&self, images: Vec<super::Image>) -> NodeFacts {
        let accelerator = self.accel.decided(&self.config).map_or("kvm is being tried", |one| one.as_str());
        NodeFacts {
            name: self.config.name.clone(),
            region: "local".into(),
            device_id: self.config.device_id(),
            version: format!("QEMU {} ({accelerator})", self.version),
            capacity: self.capacity,
            gpu_product: None,
            images,
            own_guests: true,
        }
    }

    /// Goes on by itself until the node is closed.
    fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let closed = self.closed.clone();
        tokio::spawn(async move { closed.run_until_cancelled(work).await });
    }

    /// Carries a call to its end, whether its caller waits for it or not: what was begun is not left half done.
    async fn carry<T, F>(self: &Arc<Self>, at: At, call: impl FnOnce(Arc<Self>, Arc<Slot>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let call = call(Arc::clone(self), self.slot(at.vm));
        let ended = tokio::spawn(call).await;
        ended.unwrap_or_else(|error| Err(Error::Unreachable(format!("the call did not end: {error}"))))
    }
}

#[async_trait]
impl Driver for Qemu {
    fn kind(&self) -> &'static str {
        "qemu"
    }

    fn abilities(&self) -> Abilities {
        ABILITIES
    }

    fn boot_deadline(&self) -> Duration {
        BOOT_DEADLINE
    }

    fn poll_interval(&self) -> Duration {
        POLL_INTERVAL
    }

    /// This node is in this process: there is no other that could answer.
    fn expect_node(&self, _: &str) {}

    async fn describe(&self) -> Result<NodeFacts> {
        let host = Arc::clone(&self.host);
        // The first time, megabytes are hashed.
        let images = tokio::task::spawn_blocking(move || host.os_images.list()).await;
        let images = images.map_err(|error| Error::Unreachable(error.to_string()))?;
        Ok(self.host.facts(images.into_iter().map(|image| image.facts).collect()))
    }

    async fn ensure_staged(&self, at: At, machine: &Machine) -> Result<Vec<ImageRef>> {
        let machine = machine.clone();
        self.host.carry(at, |host, slot| async move { calls::stage(&host, &slot, at, &machine).await }).await
    }

    async fn ensure_stopped(&self, at: At, how: Stop) -> Result<Stopped> {
        self.host.carry(at, |host, slot| async move { calls::stop(&host, &slot, at, how).await }).await
    }

    async fn ensure_applied(&self, at: At, machine: &Machine) -> Result<()> {
        let machine = machine.clone();
        self.host.carry(at, |host, slot| async move { calls::apply(&host, &slot, at, &machine).await }).await
    }

    async fn ensure_started(&self, at: At) -> Result<()> {
        self.host.carry(at, |host, slot| async move { calls::start(&host, &slot, at).await }).await
    }

    async fn ensure_absent(&self, at: At) -> Result<()> {
        self.host.carry(at, |host, slot| async move { calls::remove(&host, &slot, at).await }).await
    }

    async fn observe(&self, machines: &[VmUuid]) -> Result<Vec<Observed>> {
        let known: Vec<_> = machines.iter().filter_map(|vm| self.host.slots().get(vm).cloned()).collect();
        Ok(self.seen(known))
    }

    async fn inventory(&self) -> Result<Vec<Observed>> {
        Ok(self.seen(self.host.all()))
    }

    async fn sysinfo(&self, machine: VmUuid) -> Result<Option<Sysinfo>> {
        Ok(sysinfo::of(&self.host, &self.host.slot(machine)).await)
    }

    async fn evidence(&self, machine: VmUuid) -> Result<Option<Evidence>> {
        Ok(sysinfo::evidence(&self.host, &self.host.slot(machine)).await)
    }

    async fn logs(&self, machine: VmUuid, channel: &LogChannel) -> Result<Vec<LogLine>> {
        logs::lines(&self.host, &self.host.slot(machine), channel).await
    }
}

impl Qemu {
    fn seen(&self, slots: Vec<Arc<Slot>>) -> Vec<Observed> {
        let (silent, now) = (self.host.config.pace.silent, self.host.clock.now());
        slots.into_iter().filter_map(|slot| slot.observe(silent, now)).collect()
    }
}

/// Removes container images that are of no use any more, now and once a day.
async fn collect(host: &Host) {
    loop {
        let store = host.store.clone();
        match tokio::task::spawn_blocking(move || store.collect(images::Mode::Do)).await {
            Ok(Ok(Freed { bytes: 0, names })) if names.is_empty() => {}
            Ok(Ok(Freed { bytes, names })) => {
                tracing::info!(bytes, ?names, "container images of no use are gone");
            }
            Ok(Err(error)) => tracing::warn!(%error, "container images of no use were not removed"),
            Err(error) => tracing::warn!(%error, "container images of no use were not removed"),
        }
        host.clock.sleep(COLLECT).await;
    }
}

/// What is wrong with the node's folder.
fn folder_of(folder: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("the node's folder {}: {error}", folder.display())
}

/// Where a program is.
fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.canonicalize().ok().filter(|path| path.is_file());
    }
    super::PROGRAMS.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

/// `7.2.22`, of a line such as `QEMU emulator version 7.2.22 (Debian …)`.
fn version(program: &Path) -> std::result::Result<String, String> {
    let failed = |why: &dyn std::fmt::Display| format!("{} does not work: {why}", program.display());
    let output = std::process::Command::new(program).arg("--version").env_clear().output();
    let output = output.map_err(|error| failed(&error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
    version.map(str::to_owned).ok_or_else(|| failed(&"it does not tell its version"))
}
