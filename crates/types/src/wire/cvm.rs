//! CVMs, in the shapes that the API versions give them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{KmsInfo, NumberOrString};
use crate::ids::{AppId, ComposeHash, CvmUid, InstanceId, VmUuid};
use crate::open_enum::open_enum;

open_enum! {
    /// What a CVM is doing. The API keeps this an open set of words.
    Status {
        /// Works.
        Running = "running",
        /// Off.
        Stopped = "stopped",
        /// On its way up.
        Starting = "starting",
        /// On its way down, hard.
        Stopping = "stopping",
        /// On its way down, gracefully.
        ShuttingDown = "shutting_down",
        /// Down and up again.
        Restarting = "restarting",
        /// Being made.
        Creating = "creating",
        /// Being prepared on its node.
        Provisioning = "provisioning",
        /// Waits for its turn.
        Pending = "pending",
        /// Gets a new configuration.
        Updating = "updating",
        /// Being removed.
        Deleting = "deleting",
        /// The machine ended by itself.
        Exited = "exited",
        /// Its last operation failed and was not put back.
        Failed = "failed",
        /// Needs somebody to look at it.
        Error = "error",
    }
}

impl Status {
    /// Something is under way, and another status will follow by itself.
    pub fn is_transitional(&self) -> bool {
        match self {
            Self::Starting
            | Self::Stopping
            | Self::ShuttingDown
            | Self::Restarting
            | Self::Creating
            | Self::Provisioning
            | Self::Pending
            | Self::Updating
            | Self::Deleting => true,
            Self::Running | Self::Stopped | Self::Exited | Self::Failed | Self::Error => false,
            Self::Other(word) => word.ends_with("ing"),
        }
    }
}

open_enum! {
    /// The kind of key service of a CVM.
    KmsType {
        /// Off chain.
        Phala = "phala",
        /// Governed by a contract on Ethereum.
        Ethereum = "ethereum",
        /// Governed by a contract on Base.
        Base = "base",
        /// From before there were kinds.
        Legacy = "legacy",
    }
}

/// A literal that tells references apart.
macro_rules! object_type {
    ($name:ident, $word:literal) => {
        #[doc = concat!("The word `", $word, "`.")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        pub enum $name {
            /// The only value.
            #[default]
            #[serde(rename = $word)]
            It,
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::schema::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .enum_values(Some([$word]))
                    .into()
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}
    };
}

object_type!(NodeType, "node");
object_type!(WorkspaceType, "workspace");
object_type!(UserType, "user");
object_type!(CvmType, "cvm");

/// A CVM, from API version 2026-01-21 on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Cvm {
    /// Its id.
    pub id: CvmUid,
    /// Its name, unique in the workspace.
    pub name: String,
    /// The app it belongs to.
    pub app_id: Option<AppId>,
    /// The machine.
    pub vm_uuid: Option<VmUuid>,
    /// The machine's identity, known after its first boot.
    pub instance_id: Option<InstanceId>,
    /// Its size and price.
    #[serde(default)]
    pub resource: Resource,
    /// Where it runs.
    pub node_info: Option<NodeRef>,
    /// What it boots.
    pub os: Option<OsRef>,
    /// The kind of its key service.
    pub kms_type: Option<KmsType>,
    /// Its key service, and the app's public key there.
    pub kms_info: Option<CvmKms>,
    /// What it is doing.
    pub status: Status,
    /// An operation is at work.
    #[serde(default)]
    pub in_progress: bool,
    /// That operation; `null` when there is none.
    pub progress: Option<Progress>,
    /// The hash of the document in force.
    pub compose_hash: Option<ComposeHash>,
    /// SHA-256 of the docker-compose file.
    pub docker_compose_hash: Option<String>,
    /// SHA-256 of the pre-launch script.
    pub pre_launch_script_hash: Option<String>,
    /// How requests reach it.
    #[serde(default)]
    pub gateway: Gateway,
    /// Where its logs are.
    #[serde(default)]
    pub logs: LogUrls,
    /// Its services, if known.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub services: Vec<Value>,
    /// Its public addresses.
    pub endpoints: Option<Vec<Endpoint>>,
    /// Its public addresses, under their older name.
    pub public_urls: Option<Vec<Endpoint>>,
    /// Anyone may read the containers' logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_logs: Option<bool>,
    /// Anyone may read system information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_sysinfo: Option<bool>,
    /// Anyone may read the measurements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_tcbinfo: Option<bool>,
    /// The gateway forwards requests to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_enabled: Option<bool>,
    /// Its guest waits for a verified clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_time: Option<bool>,
    /// Shown in the public directory.
    #[serde(default)]
    pub listed: bool,
    /// The file system of its data disk: `ext4` or `zfs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_fs: Option<String>,
    /// Whose it is.
    pub workspace: Option<WorkspaceRef>,
    /// Who made it.
    pub creator: Option<UserRef>,
    /// When it was made.
    #[serde(default, with = "super::time::opt")]
    pub created_at: Option<Timestamp>,
    /// When it last changed.
    #[serde(default, with = "super::time::opt")]
    pub updated_at: Option<Timestamp>,
    /// When it was removed.
    #[serde(default, with = "super::time::opt")]
    pub deleted_at: Option<Timestamp>,
    /// Always `null` here.
    pub project_type: Option<String>,
    /// Its main address.
    pub app_url: Option<String>,
    /// The name of its OS image.
    pub base_image: Option<String>,
    /// What starts the app.
    pub runner: Option<String>,
    /// Feature words of the document.
    pub features: Option<Vec<String>>,
    /// The document's version, as text.
    pub manifest_version: Option<String>,
    /// The app's public key, to seal environments for it: 64 hex digits.
    pub encrypted_env_pubkey: Option<String>,
    /// Disk, in GB.
    pub disk_size: Option<u32>,
    /// The app-compose document. In details only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub compose_file: Option<Value>,
    /// What older readers of lists look for. In lists only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosted: Option<HostedRef>,
}

/// The one field of a hosted item that a reader of newer lists wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostedRef {
    /// The app.
    pub app_id: Option<AppId>,
}

/// Size and price of a CVM.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Resource {
    /// Its named size.
    pub instance_type: Option<String>,
    /// Virtual processors.
    pub vcpu: Option<u32>,
    /// Memory, in GB.
    pub memory_in_gb: Option<f64>,
    /// Disk, in GB.
    pub disk_in_gb: Option<u32>,
    /// GPUs.
    pub gpus: Option<u32>,
    /// Price per hour, as a decimal text.
    pub compute_billing_price: Option<String>,
    /// `skip`, `hourly` or `monthly`.
    pub billing_period: Option<String>,
}

/// The node of a CVM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeRef {
    /// Always `node`.
    #[serde(default)]
    pub object_type: NodeType,
    /// Its number.
    pub id: Option<i64>,
    /// Its name.
    pub name: Option<String>,
    /// Its region.
    pub region: Option<String>,
    /// Its device id: 64 hex digits.
    pub device_id: Option<String>,
    /// Its platform provisioning id.
    pub ppid: Option<String>,
    /// `ONLINE`, `OFFLINE` or `MAINTENANCE`.
    pub status: Option<String>,
    /// The version of its software.
    pub version: Option<String>,
}

/// The OS image of a CVM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OsRef {
    /// Its name.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// It is a development image, which lets its owner in.
    pub is_dev: Option<bool>,
    /// Its hash: 64 hex digits.
    pub os_image_hash: Option<String>,
}

/// The key service of a CVM, seen from the CVM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmKms {
    /// The chain of its contract; `null` off chain.
    pub chain_id: Option<u64>,
    /// The key service's contract.
    pub dstack_kms_address: Option<String>,
    /// The app's contract.
    pub dstack_app_address: Option<String>,
    /// Who deployed it.
    pub deployer_address: Option<String>,
    /// A node of the chain.
    pub rpc_endpoint: Option<String>,
    /// The app's public key, to seal environments for it: 64 hex digits.
    pub encrypted_env_pubkey: Option<String>,
    /// The key that signs the app's public key: a compressed point in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k256_pubkey: Option<String>,
}

/// The operation at work on a CVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// The status it works towards.
    pub target: Option<String>,
    /// When it was accepted.
    #[serde(default, with = "super::time::opt")]
    pub started_at: Option<Timestamp>,
    /// Its id.
    pub correlation_id: Option<String>,
}

/// How requests reach a CVM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Gateway {
    /// Addresses of apps and instances are below this domain.
    pub base_domain: Option<String>,
    /// What own domains point to.
    pub cname: Option<String>,
}

/// Addresses of a CVM's logs. They need no key: what they may show is decided by what is in them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogUrls {
    /// The serial console.
    pub serial: Option<String>,
    /// What the machine's program wrote.
    pub stdout: Option<String>,
    /// What the machine's program complained about.
    pub stderr: Option<String>,
    /// Containers' logs are below this.
    pub container_log_base: Option<String>,
}

/// A public address, once for the app and once for this instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Endpoint {
    /// Any instance of the app.
    pub app: String,
    /// This one.
    pub instance: String,
}

/// A workspace, in passing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkspaceRef {
    /// Always `workspace`.
    #[serde(default)]
    pub object_type: WorkspaceType,
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its name in addresses.
    pub slug: Option<String>,
    /// Its picture.
    pub avatar_url: Option<String>,
}

/// A user, in passing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UserRef {
    /// Always `user`.
    #[serde(default)]
    pub object_type: UserType,
    /// The user's id.
    pub id: Option<String>,
    /// The user's name.
    pub username: Option<String>,
    /// The user's picture.
    pub avatar_url: Option<String>,
}

/// A node, in answers that call it teepod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TeepodRef {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Its region.
    pub region_identifier: Option<String>,
}

/// Size of a machine, in older answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineInfo {
    /// Virtual processors.
    pub vcpu: u32,
    /// Memory, in MB.
    pub memory: u32,
    /// Disk, in GB.
    pub disk_size: u32,
    /// GPUs.
    #[serde(default)]
    pub gpu_count: u32,
}

/// A CVM's details, before API version 2026-01-21.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmFlat {
    /// Its number.
    pub id: i64,
    /// Its name, unique in the workspace.
    pub name: String,
    /// What it is doing.
    pub status: Status,
    /// An operation is at work.
    #[serde(default)]
    pub in_progress: bool,
    /// The number of its node.
    pub teepod_id: Option<i64>,
    /// Its node.
    pub teepod: Option<TeepodRef>,
    /// The app it belongs to.
    pub app_id: AppId,
    /// The machine.
    pub vm_uuid: Option<VmUuid>,
    /// The machine's identity, known after its first boot.
    pub instance_id: Option<InstanceId>,
    /// Virtual processors.
    pub vcpu: u32,
    /// Memory, in MB.
    pub memory: u32,
    /// Disk, in GB.
    pub disk_size: u32,
    /// The name of its OS image.
    pub base_image: Option<String>,
    /// The app's public key, to seal environments for it: 64 hex digits.
    pub encrypted_env_pubkey: Option<String>,
    /// Shown in the public directory.
    #[serde(default)]
    pub listed: bool,
    /// Always `null` here.
    pub project_id: Option<String>,
    /// Always `null` here.
    pub project_type: Option<String>,
    /// Its named size.
    pub instance_type: Option<String>,
    /// Anyone may read system information.
    #[serde(default)]
    pub public_sysinfo: bool,
    /// Anyone may read the containers' logs.
    #[serde(default)]
    pub public_logs: bool,
    /// A page about it.
    pub dapp_dashboard_url: Option<String>,
    /// Its logs; always has a query, to which readers append.
    pub syslog_endpoint: Option<String>,
    /// Its key service.
    pub kms_info: Option<KmsInfo>,
    /// The app's contract.
    pub contract_address: Option<String>,
    /// Who deployed it.
    pub deployer_address: Option<String>,
    /// When it will be removed.
    #[serde(default, with = "super::time::opt")]
    pub scheduled_delete_at: Option<Timestamp>,
    /// Its public addresses.
    #[serde(default)]
    pub public_urls: Vec<Endpoint>,
    /// Addresses of apps and instances are below this domain.
    pub gateway_domain: Option<String>,
    /// Its size once more.
    pub machine_info: Option<MachineInfo>,
    /// When it last changed.
    #[serde(default, with = "super::time::opt")]
    pub updated_at: Option<Timestamp>,
}

/// A CVM in a list, before API version 2026-01-21.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmHosted {
    /// The machine.
    pub hosted: Hosted,
    /// Its name, unique in the workspace.
    pub name: String,
    /// What it is doing.
    pub status: Status,
    /// Who made it.
    pub managed_user: Option<ManagedUser>,
    /// Its node.
    pub node: Option<TeepodRef>,
    /// Shown in the public directory.
    #[serde(default)]
    pub listed: bool,
    /// An operation is at work.
    #[serde(default)]
    pub in_progress: bool,
    /// It can be updated.
    #[serde(default)]
    pub allow_upgrade: bool,
    /// A page about it.
    pub dapp_dashboard_url: Option<String>,
    /// Its logs; always has a query, to which readers append.
    pub syslog_endpoint: Option<String>,
    /// Always `null` here.
    pub project_id: Option<String>,
    /// Always `null` here.
    pub project_type: Option<String>,
    /// `skip`, `hourly` or `monthly`.
    pub billing_period: Option<String>,
    /// Its key service.
    pub kms_info: Option<KmsInfo>,
    /// Virtual processors.
    pub vcpu: Option<u32>,
    /// Memory, in MB.
    pub memory: Option<u32>,
    /// Disk, in GB.
    pub disk_size: Option<u32>,
    /// Addresses of apps and instances are below this domain.
    pub gateway_domain: Option<String>,
    /// Its public addresses.
    #[serde(default)]
    pub public_urls: Vec<Endpoint>,
    /// Its size once more.
    pub machine_info: Option<MachineInfo>,
    /// When it last changed.
    #[serde(default, with = "super::time::opt")]
    pub updated_at: Option<Timestamp>,
    /// The app's contract.
    pub contract_address: Option<String>,
    /// Who deployed it.
    pub deployer_address: Option<String>,
}

/// The machine in a [`CvmHosted`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hosted {
    /// Its UUID.
    pub id: VmUuid,
    /// The CVM's name.
    pub name: String,
    /// What it is doing.
    pub status: Status,
    /// How long it has run, for people.
    pub uptime: String,
    /// Its main address.
    pub app_url: Option<String>,
    /// The app it belongs to.
    pub app_id: AppId,
    /// Its identity, known after its first boot.
    pub instance_id: Option<InstanceId>,
    /// Its configuration, if the node tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub configuration: Option<Value>,
    /// When it ended by itself.
    pub exited_at: Option<String>,
    /// How far it has booted.
    pub boot_progress: Option<String>,
    /// Why it did not boot.
    pub boot_error: Option<String>,
    /// How far it has shut down.
    pub shutdown_progress: Option<String>,
    /// The name of its OS image.
    pub image_version: Option<String>,
}

/// A user, in older lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ManagedUser {
    /// The user's number.
    pub id: i64,
    /// The user's name.
    pub username: String,
}

/// The record that creating, starting, stopping and the like answer with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Vm {
    /// A number up to API version 2026-01-21, then the CVM's id.
    pub id: NumberOrString,
    /// Its name, unique in the workspace.
    pub name: String,
    /// What it is doing.
    pub status: Status,
    /// An operation is at work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_progress: Option<bool>,
    /// The number of its node.
    pub teepod_id: Option<i64>,
    /// Its node.
    pub teepod: Option<TeepodRef>,
    /// Who made it: a number up to API version 2026-01-21.
    pub user_id: Option<NumberOrString>,
    /// The app it belongs to.
    pub app_id: Option<AppId>,
    /// The machine.
    pub vm_uuid: Option<VmUuid>,
    /// The machine's identity, known after its first boot.
    pub instance_id: Option<InstanceId>,
    /// Its main address.
    pub app_url: Option<String>,
    /// The name of its OS image.
    pub base_image: Option<String>,
    /// Virtual processors.
    pub vcpu: u32,
    /// Memory, in MB.
    pub memory: u32,
    /// Disk, in GB.
    pub disk_size: u32,
    /// The document's version, as a number.
    pub manifest_version: Option<u64>,
    /// The version of the machine's configuration form.
    pub version: Option<String>,
    /// What starts the app.
    pub runner: Option<String>,
    /// The docker-compose file.
    pub docker_compose_file: Option<String>,
    /// Feature words of the document.
    pub features: Option<Vec<String>>,
    /// When it was made.
    #[serde(with = "super::time")]
    pub created_at: Timestamp,
    /// The app's public key, to seal environments for it: 64 hex digits.
    pub encrypted_env_pubkey: Option<String>,
    /// The app's contract.
    pub app_auth_contract_address: Option<String>,
    /// Who deployed it.
    pub deployer_address: Option<String>,
    /// Anyone may read system information. In answers about visibility.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_sysinfo: Option<bool>,
    /// Anyone may read the containers' logs. In answers about visibility.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_logs: Option<bool>,
    /// Anyone may read the measurements. In answers about visibility.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_tcbinfo: Option<bool>,
    /// Shown in the public directory. In answers about visibility.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed: Option<bool>,
}
