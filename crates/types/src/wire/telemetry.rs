//! What a running CVM tells about itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Endpoint, Status};
use crate::ids::{ComposeHash, InstanceId, VmUuid};
use crate::open_enum::open_enum;

/// The state of a CVM. What is not known is left out, never `null`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmState {
    /// The CVM's id. Left out at API version 2026-01-21, whose clients disagree about its type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_uuid: Option<VmUuid>,
    /// The machine's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// The CVM's name.
    #[serde(default)]
    pub name: String,
    /// What it is doing.
    pub status: Status,
    /// How long it has run, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime: Option<String>,
    /// When it ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exited_at: Option<String>,
    /// How far it has booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_progress: Option<String>,
    /// Why it did not boot, or which update failed and was put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_error: Option<String>,
    /// How far it has shut down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_progress: Option<String>,
}

/// The last event of a watched CVM: it has the status that was waited for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WatchComplete {
    /// The status it has.
    pub status: Status,
    /// How long that took, in seconds.
    pub elapsed: f64,
    /// The status that was waited for.
    pub target: String,
}

/// The last event of a watched CVM that did not get there in time, or an error on the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WatchError {
    /// What happened.
    pub error: String,
    /// How long it was watched, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed: Option<f64>,
    /// The status that was waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// The answer to a batch: by the texts of the request.
pub type StatusMap = BTreeMap<String, StatusEntry>;

/// The state of one machine in a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StatusEntry {
    /// The machine, as the request spelled it.
    pub vm_uuid: String,
    /// What it is doing.
    pub status: Status,
    /// An operation is at work.
    #[serde(default)]
    pub in_progress: bool,
    /// How long it has run, for people.
    pub uptime: Option<String>,
    /// How far it has booted.
    pub boot_progress: Option<String>,
    /// Why it did not boot, or which update failed and was put back.
    pub boot_error: Option<String>,
    /// How far it has shut down.
    pub shutdown_progress: Option<String>,
    /// The kind of the operation at work.
    pub operation_type: Option<String>,
    /// When it was accepted.
    #[serde(default, with = "super::time::opt")]
    pub operation_started_at: Option<Timestamp>,
    /// Its id.
    pub correlation_id: Option<String>,
    /// What the guest reported lately.
    #[serde(default)]
    pub events: Vec<GuestEvent>,
    /// The operation at work.
    pub operation: Option<StatusOperation>,
    /// What it uses.
    pub resource_usage: Option<ResourceUsage>,
}

/// Something a guest reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestEvent {
    /// What.
    pub event: String,
    /// More about it.
    pub body: String,
    /// When, in Unix seconds.
    pub timestamp: i64,
}

/// The operation at work, in a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StatusOperation {
    /// Its kind.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// When it was accepted.
    #[serde(default, with = "super::time::opt", skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
}

/// What a machine uses.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResourceUsage {
    /// Processors, in percent of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// Memory in use, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_used_bytes: Option<u64>,
    /// Memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    /// Sent, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_bytes: Option<u64>,
}

/// System information of a CVM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmStats {
    /// It runs and answers.
    pub is_online: bool,
    /// Anyone may read this.
    #[serde(default)]
    pub is_public: bool,
    /// Why there is nothing to show.
    pub error: Option<String>,
    /// The information.
    pub sysinfo: Option<Sysinfo>,
    /// What the CVM is doing.
    pub status: Option<Status>,
    /// An operation is at work.
    #[serde(default)]
    pub in_progress: bool,
    /// How far it has booted.
    pub boot_progress: Option<String>,
    /// Why it did not boot.
    pub boot_error: Option<String>,
}

/// What the guest's system says. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Sysinfo {
    /// Name of the system.
    pub os_name: String,
    /// Its version.
    pub os_version: String,
    /// Its kernel.
    pub kernel_version: String,
    /// The processor.
    pub cpu_model: String,
    /// How many.
    pub num_cpus: u64,
    /// Memory.
    pub total_memory: u64,
    /// Memory that programs can still get.
    pub available_memory: u64,
    /// Memory in use.
    pub used_memory: u64,
    /// Memory nobody uses.
    pub free_memory: u64,
    /// Swap.
    pub total_swap: u64,
    /// Swap in use.
    pub used_swap: u64,
    /// Swap nobody uses.
    pub free_swap: u64,
    /// How long it has run, in seconds.
    pub uptime: u64,
    /// Load over one minute, in hundredths: 100 keeps one processor busy.
    pub loadavg_one: u64,
    /// Load over five minutes, in hundredths: 100 keeps one processor busy.
    pub loadavg_five: u64,
    /// Load over fifteen minutes, in hundredths: 100 keeps one processor busy.
    pub loadavg_fifteen: u64,
    /// Its disks.
    pub disks: Vec<Disk>,
}

/// A disk. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Disk {
    /// Its name.
    pub name: String,
    /// Where it is mounted.
    pub mount_point: String,
    /// Its size.
    pub total_size: u64,
    /// What is free.
    pub free_size: u64,
}

/// How a CVM is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmNetwork {
    /// It runs and answers.
    pub is_online: bool,
    /// Anyone may read this.
    #[serde(default)]
    pub is_public: bool,
    /// Why there is nothing to show.
    pub error: Option<String>,
    /// Its address behind the gateway.
    pub internal_ip: Option<String>,
    /// When the gateway last heard of it.
    pub latest_handshake: Option<String>,
    /// Its public addresses.
    pub public_urls: Option<Vec<Endpoint>>,
}

/// What a CVM runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmComposition {
    /// It runs and answers.
    pub is_online: bool,
    /// Anyone may read this.
    #[serde(default)]
    pub is_public: bool,
    /// Why there is nothing to show.
    pub error: Option<String>,
    /// The docker-compose file.
    pub docker_compose_file: Option<String>,
    /// The document's version.
    pub manifest_version: Option<u64>,
    /// The version of the machine's configuration form.
    pub version: Option<String>,
    /// What starts the app.
    pub runner: Option<String>,
    /// Feature words of the document.
    pub features: Option<Vec<String>>,
    /// Its containers.
    pub containers: Option<Vec<Container>>,
}

/// The evidence that a CVM gives of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmAttestation {
    /// The CVM's name.
    pub name: Option<String>,
    /// It runs and answers.
    pub is_online: bool,
    /// Anyone may read this.
    #[serde(default)]
    pub is_public: bool,
    /// Why there is nothing to show.
    pub error: Option<String>,
    /// The certificates of the app, the app's own first.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<Object>>))]
    pub app_certificates: Option<Vec<serde_json::Value>>,
    /// The measurements.
    pub tcb_info: Option<TcbInfo>,
    /// The text that is hashed.
    pub compose_file: Option<String>,
    /// What the evidence is worth, where that is less than a TEE's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What was measured of a machine. Registers are 48 bytes in hex; all zeros where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TcbInfo {
    /// What measures: `none` if it is only the guest's own agent, without hardware behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tee: Option<String>,
    /// The machine's firmware.
    pub mrtd: String,
    /// The root file system.
    #[serde(default)]
    pub rootfs_hash: Option<String>,
    /// The machine's configuration.
    pub rtmr0: String,
    /// The kernel.
    pub rtmr1: String,
    /// Its arguments and first root.
    pub rtmr2: String,
    /// Everything in `event_log`.
    pub rtmr3: String,
    /// The events, in order.
    pub event_log: Vec<MeasuredEvent>,
    /// The app-compose text that was measured.
    pub app_compose: String,
}

/// An event that extended a register: `register = SHA-384(register || digest)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MeasuredEvent {
    /// Which register: 3.
    pub imr: u32,
    /// Its kind; 134217729 for what a running guest measures.
    pub event_type: u32,
    /// What the register was extended with: SHA-384 over the kind (4 bytes, little-endian), name and payload, with a colon
    /// between them. In hex.
    pub digest: String,
    /// Its name.
    pub event: String,
    /// What it is about, in hex.
    pub event_payload: String,
}

/// A container of a CVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its names, each with a slash in front.
    pub names: Vec<String>,
    /// Its image.
    pub image: String,
    /// The id of its image.
    pub image_id: String,
    /// What it runs.
    pub command: Option<String>,
    /// When it was made, in Unix seconds.
    pub created: i64,
    /// `running`, `exited` …
    pub state: String,
    /// The same, for people.
    pub status: String,
    /// Its log.
    pub log_endpoint: Option<String>,
}

/// What a guest gets besides the document.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UserConfig {
    /// Its host name.
    pub hostname: Option<String>,
    /// Who may log in to a development image.
    #[serde(default)]
    pub ssh_authorized_keys: Vec<String>,
    /// The gateway's domain.
    pub default_gateway_domain: Option<String>,
}

open_enum! {
    /// How a machine went down.
    LastStop {
        /// The guest shut down when asked.
        Graceful = "graceful",
        /// It was switched off.
        Forced = "forced",
        /// It ended by itself.
        Crashed = "crashed",
    }
}

/// What a node itself reports of a machine, computed from what the node holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Observed {
    /// What the machine is doing.
    pub status: Status,
    /// How often it has booted.
    pub boot_count: u64,
    /// The generation of the last call that the node obeyed.
    pub generation: u64,
    /// The revision it has.
    pub revision: u64,
    /// The hash of the text it has.
    pub compose_hash: Option<ComposeHash>,
    /// Its identity.
    pub instance_id: Option<InstanceId>,
    /// Virtual processors.
    pub vcpu: u32,
    /// Memory, in MB.
    pub memory_mb: u32,
    /// Disk, in GB.
    pub disk_gb: u32,
    /// GPUs.
    pub gpus: u32,
    /// The name of its OS image.
    pub image: String,
    /// SHA-256 of the user config it has, in hex.
    pub user_config_sha256: Option<String>,
    /// SHA-256 of the sealed environment it has, in hex.
    pub encrypted_env_sha256: Option<String>,
    /// The variables that reached the app, by name.
    #[serde(default)]
    pub env_keys: Vec<String>,
    /// Anyone may read the containers' logs.
    pub public_logs: bool,
    /// Anyone may read system information.
    pub public_sysinfo: bool,
    /// Anyone may read the measurements.
    pub public_tcbinfo: bool,
    /// How it last went down.
    pub last_stop: Option<LastStop>,
    /// How long it was last down, in milliseconds.
    pub last_downtime_ms: Option<u64>,
    /// Where the ports that it publishes are reached; empty where the node does not know.
    #[serde(default)]
    pub ports: Vec<ReachedPort>,
}

/// A TCP port that a machine publishes, and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReachedPort {
    /// Port of the machine.
    pub port: u16,
    /// Address on the node's host, for example `127.0.0.1:20000`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub at: SocketAddr,
}
