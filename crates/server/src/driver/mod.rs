//! What every driver promises, and what the rest of the server may rely on.
//!
//! A call states a target and the generation it belongs to. It may be repeated; a call for an older generation is refused
//! as [`Error::Stale`]. Within a generation the order is staged < stopped < applied < started, and a call for a stage already
//! passed changes nothing: a late worker of the same operation is harmless. A machine is entirely old or entirely new.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use casemate_types::env::EnvVar;
use casemate_types::guest::{Evidence, ImageRef};
use casemate_types::ids::{AppId, ComposeHash, InstanceId, VmUuid};
use casemate_types::wire::Sysinfo;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::cvm::spec::{Booking, Spec};
use crate::cvm::state::Cvm;

#[cfg(test)]
mod contract_tests;
pub mod fault;
mod fence;
pub mod images;
mod inside;
pub mod qemu;
pub mod remote;
mod room;
pub mod sim;

/// Where the programs of this host are looked for, whatever the server's own environment says.
const PROGRAMS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The machine a call is for, and the operation it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct At {
    /// The machine.
    pub vm: VmUuid,
    /// Operation number of the CVM. A node refuses a lower one than it has seen.
    pub generation: u64,
}

/// A machine as it should be: the spec and what surrounds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the CVM when this was asked for.
    pub name: String,
    /// Identity under which the guest gets its keys.
    pub app_id: AppId,
    /// Identity of this machine within the app.
    pub instance_id: InstanceId,
    /// Number of the spec.
    pub revision: u64,
    /// The spec itself.
    pub spec: Spec,
    /// What the images of its services mean, where that was settled when the same content was staged before. It is what they
    /// mean from then on, whatever their tags have come to mean since.
    #[serde(default)]
    pub images: Vec<ImageRef>,
}

impl Machine {
    /// That of a CVM with this spec, which is the one of `revision`.
    pub fn of(cvm: &Cvm, revision: u64, spec: Spec) -> Self {
        let (app_id, instance_id) = (cvm.app_id, spec.instance_id(&cvm.app_id));
        Self { name: cvm.name.clone(), app_id, instance_id, revision, spec, images: Vec::new() }
    }
}

/// How a machine is brought down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// Ask the guest and wait up to `timeout`.
    Graceful {
        /// How long the guest may take.
        timeout: Duration,
        /// What happens then.
        then: AfterTimeout,
    },
    /// Cut the power.
    Force,
}

/// What a graceful stop does when the guest takes too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AfterTimeout {
    /// Cut the power.
    Force,
    /// Leave the machine as it is and say so.
    GiveUp,
}

/// How a stop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stopped {
    /// The machine is off (now, or before the call).
    Off,
    /// The guest did not go down in time and was left alone.
    StillRunning,
    /// It cannot go down, since its process stands still ([`Guest::Frozen`]), and was left alone without waiting.
    Frozen {
        /// Since when, as far as the node has noticed.
        since: Timestamp,
    },
}

/// Abilities that not every kind of node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// A machine can get a new instance id and keep its data.
    pub new_instance_id: bool,
    /// The node itself refuses calls of an older generation.
    pub fence: bool,
    /// Ports that machines publish are reached on the node's own loopback address, and the node says where.
    pub ports: bool,
}

/// Why a call did not do what it was asked. Five kinds, since five things can be done about it, and `Stale`, which ends the
/// caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// The node says no and will say no again. Nothing was changed by this call.
    #[error("the node refused: {0}")]
    Refused(String),
    /// The machine was started and its guest reports that it cannot come up.
    #[error("the machine does not boot: {0}")]
    BootFailed(String),
    /// No answer. The call may have taken effect.
    #[error("the node is not reachable: {0}")]
    Unreachable(String),
    /// The node's own disk is full. Nothing was changed by this call, and it does it as soon as somebody has made room.
    #[error("the node has no room: {0}")]
    NoRoom(String),
    /// It takes longer than a caller waits, and goes on: the same call again joins it, or hears what came of it. What it does at
    /// present, as in "it pulls image `web:1`".
    #[error("the node is at work: it {0}")]
    AtWork(String),
    /// A newer operation has been here.
    #[error("generation {seen} has been here")]
    Stale {
        /// The highest generation that the node has seen.
        seen: u64,
    },
}

/// Outcome of a driver call.
pub type Result<T> = std::result::Result<T, Error>;

/// An engine that runs machines on one node. See the module for what calls promise.
#[async_trait]
pub trait Driver: Send + Sync {
    /// The kind of engine: `sim`, `qemu`, `dstack`.
    fn kind(&self) -> &'static str;

    /// What this node can do.
    fn abilities(&self) -> Abilities;

    /// Do its machines get their keys from this server, over a channel of its own? Then no other key service gives them any:
    /// those go by what a TEE has measured.
    fn brings_keys(&self) -> bool {
        self.kind() != "dstack"
    }

    /// How long a machine may take from start to "done" before it counts as one that does not boot.
    fn boot_deadline(&self) -> Duration;

    /// How often it is worth asking a booting machine how far it is.
    fn poll_interval(&self) -> Duration;

    /// From now on only the node with this name is meant. Who answers on a new connection says its name before it is asked
    /// anything; if that is another, every call but `describe` is [`Error::Unreachable`], and it hears nothing of it.
    fn expect_node(&self, name: &str);

    /// Capacity, images and identity of the node, whichever answers.
    async fn describe(&self) -> Result<NodeFacts>;

    /// Everything that can fail without touching the running machine: image present, room, files in place. What the images of
    /// its services mean, which is what it is going to run; none where the node does not know. A repeated call says the same.
    async fn ensure_staged(&self, at: At, machine: &Machine) -> Result<Vec<ImageRef>>;

    /// The machine is off. An absent machine is off.
    async fn ensure_stopped(&self, at: At, how: Stop) -> Result<Stopped>;

    /// The (stopped) machine has this spec. Creates it when it does not exist.
    async fn ensure_applied(&self, at: At, machine: &Machine) -> Result<()>;

    /// The machine is on. Returning does not mean that the guest is up: `observe` tells.
    async fn ensure_started(&self, at: At) -> Result<()>;

    /// The machine and its disk are gone.
    async fn ensure_absent(&self, at: At) -> Result<()>;

    /// What the node sees of these machines, computed from what it holds. Absent machines are left out.
    async fn observe(&self, machines: &[VmUuid]) -> Result<Vec<Observed>>;

    /// Every machine on the node, also those nobody here knows.
    async fn inventory(&self) -> Result<Vec<Observed>>;

    /// What the system inside a machine says of itself, for people. Nothing while its guest is not up, or if this kind of node
    /// does not tell.
    async fn sysinfo(&self, machine: VmUuid) -> Result<Option<Sysinfo>>;

    /// What a machine measured of itself: the machine is asked. Nothing while its guest is not up, or if machines of this kind
    /// of node measure nothing.
    async fn evidence(&self, _machine: VmUuid) -> Result<Option<Evidence>> {
        Ok(None)
    }

    /// Lines of one log of a machine, oldest first.
    async fn logs(&self, machine: VmUuid, channel: &LogChannel) -> Result<Vec<LogLine>>;
}

/// What the node itself reports of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The machine.
    pub vm: VmUuid,
    /// Is it on, and how far is the guest?
    pub guest: Guest,
    /// It is down, and its node is going to start it again without being asked.
    #[serde(default)]
    pub comes_back: bool,
    /// How often it was started.
    pub boot_count: u64,
    /// The highest generation that reached the node.
    pub generation: u64,
    /// Number of the applied spec.
    pub revision: u64,
    /// SHA-256 of the compose text that the node holds, computed there.
    pub compose_hash: ComposeHash,
    /// Instance id that the guest uses.
    pub instance_id: InstanceId,
    /// Size of the machine.
    pub size: Booking,
    /// OS image.
    pub image: String,
    /// SHA-256 of the user config that the node holds.
    #[serde(with = "crate::cvm::spec::hex_bytes")]
    pub user_config_sha256: Option<[u8; 32]>,
    /// SHA-256 of the ciphertext that the node holds.
    #[serde(with = "crate::cvm::spec::hex_bytes")]
    pub encrypted_env_sha256: Option<[u8; 32]>,
    /// Names of the variables that the guest could open and that the compose file allows, sorted.
    pub env_keys: Vec<String>,
    /// Flags read from the compose text on the node.
    pub public_logs: bool,
    /// As above.
    pub public_sysinfo: bool,
    /// As above.
    pub public_tcbinfo: bool,
    /// When the machine was last started.
    pub started_at: Option<Timestamp>,
    /// When the machine last went down.
    pub stopped_at: Option<Timestamp>,
    /// How it last went down.
    pub last_stop: Option<LastStop>,
    /// Milliseconds from the last power-off to the guest's "done".
    pub last_downtime_ms: Option<u64>,
    /// What is running inside, while the guest is up.
    pub containers: Vec<Container>,
    /// Where the ports that it publishes are reached on its host; none where the node does not know.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// What the images of its services were resolved to, once for all boots of this spec; none where the node does not know.
    #[serde(default)]
    pub images: Vec<ImageRef>,
}

/// A TCP port of a machine and where it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Port of the host, on its loopback address.
    pub host: u16,
    /// Port of the machine.
    pub guest: u16,
}

/// What a node last reported of a machine, as the store has it. Most who look at a CVM do not ask for it, so it is read by
/// those who do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report(Box<str>);

impl Report {
    /// As it is stored.
    pub fn of(seen: &Observed) -> Self {
        Self(serde_json::to_string(seen).expect("text as keys, and nothing that can fail").into())
    }

    /// From the store.
    pub fn stored(text: &str) -> Self {
        Self(text.into())
    }

    /// For the store.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is in it; nothing if another version of this program wrote it: the next comparison with the node replaces it.
    pub fn read(&self) -> Option<Observed> {
        serde_json::from_str(&self.0).ok()
    }
}

/// Power and boot state of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guest {
    /// Powered off by a call.
    Off,
    /// On, not done booting.
    Booting {
        /// Where it is, in the guest's words.
        progress: String,
    },
    /// The guest reported "done".
    Done,
    /// The guest reported that it cannot boot. The machine may be on or off.
    Failed {
        /// The guest's words.
        error: String,
    },
    /// It is on, and somebody has stopped its process with a signal: it does nothing until it is let go on.
    Frozen {
        /// Since when, as far as the node has noticed.
        since: Timestamp,
    },
    /// It went down by itself.
    Exited,
}

impl Guest {
    /// Is it on, and not said to be of no use?
    pub fn is_on(&self) -> bool {
        match self {
            Self::Booting { .. } | Self::Done | Self::Frozen { .. } => true,
            Self::Off | Self::Failed { .. } | Self::Exited => false,
        }
    }
}

/// What people are told of a machine that is [`Guest::Frozen`].
pub fn stands_still(since: Timestamp) -> String {
    format!("its process on the node is stopped by a signal since {since:.0}, and goes on with SIGCONT")
}

/// How a machine last went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastStop {
    /// The guest shut itself down when asked.
    Graceful,
    /// The power was cut.
    Forced,
    /// Nobody asked.
    Crashed,
}

/// A container inside a running guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Service name of the compose file.
    pub service: String,
    /// Image reference.
    pub image: String,
    /// What the image was resolved to, `sha256:…`, where the guest tells.
    #[serde(default)]
    pub digest: Option<String>,
    /// Is its process there?
    pub running: bool,
    /// How its process ended the last time.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// How often it was started again.
    #[serde(default)]
    pub restarts: u32,
    /// When its process was last started, where the guest tells.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
}

impl Container {
    /// One that runs since the machine is up, and of which nothing else is known.
    pub fn running(service: impl Into<String>, image: impl Into<String>) -> Self {
        let (service, image) = (service.into(), image.into());
        Self { service, image, digest: None, running: true, exit_code: None, restarts: 0, started_at: None }
    }
}

/// Which log of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogChannel {
    /// The serial console: firmware, kernel, boot steps.
    Serial,
    /// Standard output of the hypervisor's process.
    Stdout,
    /// Standard error of the hypervisor's process.
    Stderr,
    /// One service of the compose file.
    Container(String),
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was written.
    pub at: Timestamp,
    /// Written to standard error?
    pub stderr: bool,
    /// The line, without its end.
    pub text: String,
}

/// What a node tells about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Unique name.
    pub name: String,
    /// Region identifier.
    pub region: String,
    /// 32 bytes in hex: SHA-256 of the platform id.
    pub device_id: String,
    /// Version of the engine.
    pub version: String,
    /// Everything that can be booked.
    pub capacity: Booking,
    /// Product name of its graphics cards, if it has any.
    pub gpu_product: Option<String>,
    /// OS images on the node.
    pub images: Vec<Image>,
    /// Its machines run the services of the compose file by a program of ours, which takes what
    /// [`ComposeDoc::runnable`](casemate_types::compose::ComposeDoc::runnable) takes and nothing else.
    #[serde(default)]
    pub own_guests: bool,
}

/// An OS image on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// For example `dstack-0.5.5`.
    pub name: String,
    /// Three or four numbers.
    pub version: Vec<u32>,
    /// A development image opens a terminal and is not for production.
    pub is_dev: bool,
    /// SHA-256 of the image's digest list, in hex.
    pub os_image_hash: String,
    /// Only for machines with graphics cards.
    pub requires_gpu: bool,
}

impl Image {
    /// `<name>-<first 8 hex digits of the hash>`.
    pub fn slug(&self) -> String {
        format!("{}-{}", self.name, self.os_image_hash.get(..8).unwrap_or(&self.os_image_hash))
    }

    /// Its version, as text.
    pub fn version_text(&self) -> String {
        let numbers: Vec<_> = self.version.iter().map(u32::to_string).collect();
        numbers.join(".")
    }

    /// Is it what somebody means who writes `text`, its name or its slug?
    pub fn is_meant_by(&self, text: &str) -> bool {
        self.name == text || self.slug() == text
    }
}

/// How a guest on a local node gets its secrets: the driver's own channel to the key service.
pub trait GuestKeys: Send + Sync {
    /// The variables inside `blob`, for a guest of `app`.
    fn unseal(&self, app: &AppId, blob: &[u8]) -> std::result::Result<Vec<EnvVar>, String>;

    /// The secret that opens environments which were sealed for `app`: X25519. For a guest that asks for it.
    fn env_secret(&self, app: &AppId) -> std::result::Result<Zeroizing<[u8; 32]>, String>;
}

/// A shared driver.
pub type DynDriver = Arc<dyn Driver>;
