//! What the driver of a machine and the agent inside it say to each other.
//!
//! Two channels. The [`BootConfig`] is there before the machine is: one JSON document in `fw_cfg` under [`BOOT_CONFIG`]. After
//! that the driver asks and the agent answers, over the virtio-serial port named [`AGENT_PORT`]: frames of a length (4 bytes,
//! big-endian, at most [`MAX_FRAME`]) and so many bytes of JSON, a [`Question`] there and an [`Answer`] back. The agent never
//! speaks first, so a driver that was away misses nothing: it asks again.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::env::EnvVar;
use crate::ids::{AppId, ComposeHash, InstanceId, VmUuid};

/// Name of the `fw_cfg` file with the [`BootConfig`].
pub const BOOT_CONFIG: &str = "opt/casemate/boot";
/// Name of the virtio-serial port.
pub const AGENT_PORT: &str = "casemate.agent";
/// Serial number of the disk that is the machine's own and survives updates.
pub const DATA_DISK: &str = "data";
/// How many different container images a machine has room for: each is a disk of its own.
pub const MAX_IMAGES: usize = 64;
/// Bytes of one frame, without its length.
pub const MAX_FRAME: usize = 4 * 1024 * 1024;

/// Everything that a machine is told before it boots. Nothing of it is secret: what has to stay so is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// The machine.
    pub vm: VmUuid,
    /// Number of this boot, from 1; it stands in the serial log.
    pub boot: u64,
    /// Name of the CVM, which becomes the guest's host name.
    pub name: String,
    /// Identity under which the guest gets its keys.
    pub app_id: AppId,
    /// Identity of this machine within the app.
    pub instance_id: InstanceId,
    /// What `compose` must hash to.
    pub compose_hash: ComposeHash,
    /// The app-compose text.
    pub compose: String,
    /// Environment variables as ciphertext, in hex.
    pub sealed_env: Option<String>,
    /// Free text handed to the app as it is.
    pub user_config: Option<String>,
    /// SHA-256 of the OS image's digest list, in hex.
    pub os_image_hash: String,
    /// The container images, each by the reference that the compose file has and the digest that it was resolved to. Each
    /// digest has a read-only disk, by [its serial number](image_serial), as the crate `casemate-rootfs` makes and verifies it.
    pub images: Vec<ImageRef>,
}

/// A container image and what it was resolved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// As in the compose file, for example `web:1`.
    pub reference: String,
    /// Digest of its manifest for this machine's platform, `sha256:…`.
    pub digest: String,
}

/// Serial number of the disk with the image of this digest: as much of what follows `sha256:` as virtio has room for, which
/// is 20 bytes.
pub fn image_serial(digest: &str) -> &str {
    let hash = digest.strip_prefix("sha256:").unwrap_or(digest);
    hash.get(..20).unwrap_or(hash)
}

/// What the driver asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Comes back with the answer.
    pub id: u64,
    /// The question itself.
    pub ask: Ask,
}

/// A question. `Debug` does not show the secret of [`Ask::Keys`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// How far the guest is, and what runs in it: [`Report`].
    Status,
    /// Here is the secret that opens the app's environment (X25519, 32 bytes in hex). For a guest whose report says that it
    /// [waits for it](Phase::WaitsForKeys): [`Reply::Done`].
    Keys {
        /// The secret.
        env_secret: String,
    },
    /// What the guest uses: [`Stats`].
    Stats,
    /// Lines of one service from line number `from` on, at most `limit` of them: [`Lines`].
    Logs {
        /// Service of the compose file.
        service: String,
        /// Number of the first line, counted from 0 over all boots.
        from: u64,
        /// How many lines at most.
        limit: usize,
    },
    /// What was measured: [`Evidence`].
    Evidence,
    /// Stop the services and power off: [`Reply::Done`] at once.
    PowerOff,
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("Status"),
            Self::Keys { .. } => f.write_str("Keys(…)"),
            Self::Stats => f.write_str("Stats"),
            Self::Logs { service, from, limit } => write!(f, "Logs({service:?}, {from}, {limit})"),
            Self::Evidence => f.write_str("Evidence"),
            Self::PowerOff => f.write_str("PowerOff"),
        }
    }
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// That of the question.
    pub id: u64,
    /// The answer itself.
    pub reply: Reply,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Ask::Status`].
    Status(Box<Report>),
    /// To [`Ask::Stats`].
    Stats(Stats),
    /// To [`Ask::Logs`].
    Logs(Lines),
    /// To [`Ask::Evidence`].
    Evidence(Box<Evidence>),
    /// It is done, or on its way.
    Done,
    /// It cannot be: in words.
    Error(String),
}

/// How far a guest is, and what it found in its configuration. Hashes are computed in the guest, from what it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`BootConfig::boot`].
    pub boot: u64,
    /// How far it is.
    pub phase: Phase,
    /// SHA-256 of the compose text, computed here.
    pub compose_hash: ComposeHash,
    /// Instance id in use.
    pub instance_id: InstanceId,
    /// SHA-256 of the user config, in hex.
    pub user_config_sha256: Option<String>,
    /// SHA-256 of the sealed environment, in hex.
    pub sealed_env_sha256: Option<String>,
    /// Names of the variables that were opened and that the compose file allows, sorted.
    pub env_keys: Vec<String>,
    /// One for each service, in the order of the compose file.
    pub containers: Vec<Container>,
}

/// How far a guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// On its way up: what it does, for people.
    Booting(String),
    /// It has a sealed environment and no secret to open it.
    WaitsForKeys,
    /// Everything is up.
    Done,
    /// It does not come up: why, for people. The agent stays and answers.
    Failed(String),
    /// On its way down.
    Stopping,
}

/// A service's container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Service of the compose file.
    pub service: String,
    /// Image reference of the compose file.
    pub image: String,
    /// What the image was resolved to.
    pub digest: String,
    /// Is its process there?
    pub running: bool,
    /// How its process ended the last time.
    pub exit_code: Option<i32>,
    /// How often it was started again.
    pub restarts: u32,
    /// When its process was last started.
    pub started_at: Option<Timestamp>,
}

/// What a guest uses. Bytes, unless a name says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Name and version of the operating system.
    pub os: String,
    /// Version of the kernel.
    pub kernel: String,
    /// Name of the processor.
    pub cpu_model: String,
    /// Processors.
    pub cpus: u32,
    /// Memory that the kernel has.
    pub memory_total: u64,
    /// Memory in use.
    pub memory_used: u64,
    /// Size of the data disk's file system.
    pub disk_total: u64,
    /// Of that, used.
    pub disk_used: u64,
    /// Seconds since the kernel started.
    pub uptime_s: u64,
    /// Load over 1, 5 and 15 minutes.
    pub load: [f64; 3],
}

/// Lines of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    /// The lines, oldest first.
    pub lines: Vec<Line>,
    /// Number of the line after them. Older lines than are kept are skipped.
    pub next: u64,
}

/// A line of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When it was written.
    pub at: Timestamp,
    /// Written to standard error?
    pub stderr: bool,
    /// The line, without its end.
    pub text: String,
}

/// What a guest measured of itself. There is no TEE behind it: it is for development, and says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The events, in order.
    pub events: Vec<Event>,
    /// What the register holds after them, 48 bytes in hex.
    pub rtmr3: String,
    /// The app-compose text that was measured.
    #[serde(default)]
    pub app_compose: String,
}

/// An event that a guest measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its name, for example `compose-hash`.
    pub name: String,
    /// What it is about, in hex.
    pub payload: String,
    /// SHA-384 that the register was extended with, in hex.
    pub digest: String,
}

/// How many variables a guest takes.
const MAX_VARS: usize = 1024;
/// How long a value may be, in bytes.
const MAX_VALUE: usize = 128 * 1024;
/// How long names and values may be together, in bytes.
const MAX_TOTAL: usize = 1024 * 1024;

/// Does a guest take this environment? It has exactly the variables that the app-compose document allows, each once.
///
/// # Errors
/// What is wrong with it, by the variable's name and never by its value.
pub fn check_env(vars: &[EnvVar], allowed: &[&str]) -> Result<(), String> {
    let refuse = |what: String| Err(format!("the sealed environment has {what}"));
    if vars.len() > MAX_VARS {
        return refuse(format!("{} variables, and at most {MAX_VARS} are allowed", vars.len()));
    }
    for (at, var) in vars.iter().enumerate() {
        let name = &var.key;
        if !allowed.contains(&name.as_str()) {
            return refuse(format!("`{name}`, which `allowed_envs` does not name"));
        }
        if vars[..at].iter().any(|other| other.key == *name) {
            return refuse(format!("`{name}` twice"));
        }
        if var.value.len() > MAX_VALUE || var.value.contains('\0') {
            return refuse(format!(
                "a value for `{name}` that is longer than {MAX_VALUE} bytes or has a zero byte"
            ));
        }
    }
    if vars.iter().map(|var| var.key.len() + var.value.len()).sum::<usize>() > MAX_TOTAL {
        return refuse(format!("more than {MAX_TOTAL} bytes"));
    }
    match allowed.iter().find(|name| vars.iter().all(|var| var.key != **name)) {
        Some(missing) => refuse(format!("no `{missing}`, which `allowed_envs` names")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_show_the_secret() {
        let question = Question { id: 1, ask: Ask::Keys { env_secret: "5ec2e7".to_owned() } };
        assert_eq!(format!("{question:?}"), "Question { id: 1, ask: Keys(…) }");
    }
}
