//! Nodes, sizes, OS images, key services, API keys.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::AppId;
use crate::open_enum::open_enum;
use crate::version::ApiVersion;

/// A key service. All seven keys are always there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsInfo {
    /// Its id.
    pub id: String,
    /// Its name in addresses.
    pub slug: Option<String>,
    /// Where it answers.
    pub url: String,
    /// The version of its software.
    pub version: String,
    /// The chain of its contract; `null` off chain.
    pub chain_id: Option<u64>,
    /// Its contract.
    pub kms_contract_address: Option<String>,
    /// The app id of its gateway.
    pub gateway_app_id: Option<String>,
    /// A description of the chain, for clients that do not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub chain: Option<Value>,
    /// Who could change the code that gets the keys: `operator` for the key service inside the server, `tee` for a
    /// `dstack-kms`, whose keys only measured code gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custody: Option<String>,
    /// Why it gives no keys at the moment: it does not answer, or is not what it is configured to be. Only where key services
    /// are asked for, and absent if all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A page of key services, before API version 2026-06-23.
pub type KmsPage = super::Page<KmsInfo>;

/// A key service by its contract, from API version 2026-06-23 on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsContract {
    /// Its id.
    pub id: String,
    /// Its name in addresses.
    pub slug: Option<String>,
    /// Its name for people.
    pub label: Option<String>,
    /// Its contract, or the word `phala` off chain.
    pub contract_address: String,
    /// The chain of its contract; 0 off chain.
    pub chain_id: u64,
    /// The key that signs apps' public keys: a compressed point in hex.
    pub k256_pubkey: Option<String>,
    /// The key of its certificate authority, in hex.
    pub ca_pubkey: Option<String>,
    /// How many machines serve it.
    pub node_count: u64,
    /// Who could change the code that gets the keys, as in [`KmsInfo`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custody: Option<String>,
    /// Why it gives no keys at the moment, as in [`KmsInfo`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The machines that serve a key service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsNodes {
    /// The machines.
    pub items: Vec<KmsNode>,
    /// How many.
    pub total: u64,
}

/// A machine that serves a key service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsNode {
    /// Its id.
    pub id: String,
    /// Its name in addresses.
    pub slug: Option<String>,
    /// Where it answers.
    pub url: String,
    /// The version of its software.
    pub version: String,
    /// The kind of key service.
    pub kms_type: String,
}

/// Key services on a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsOnChain {
    /// The chain's name.
    pub chain_name: String,
    /// The chain's id.
    pub chain_id: u64,
    /// The key services, by contract.
    pub contracts: Vec<KmsOnChainContract>,
}

/// A key service on a chain, and what could be used with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsOnChainContract {
    /// Its contract.
    pub contract_address: String,
    /// The chain's id.
    pub chain_id: u64,
    /// The chain's name.
    pub chain_name: String,
    /// The key that signs apps' public keys: a compressed point in hex.
    pub k256_pubkey: Option<String>,
    /// The key of its certificate authority, in hex.
    pub ca_pubkey: Option<String>,
    /// The contract of its gateway.
    pub gateway_contract_address: Option<String>,
    /// Devices.
    pub devices: Vec<KmsOnChainDevice>,
    /// OS images.
    pub os_images: Vec<KmsOnChainImage>,
}

/// A device that could be allowed by a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsOnChainDevice {
    /// Its id: 64 hex digits.
    pub device_id: String,
    /// The node that it is.
    pub node_name: Option<String>,
    /// The contract allows it; `null` if that was not looked up.
    pub on_chain_allowed: Option<bool>,
}

/// An OS image that could be allowed by a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsOnChainImage {
    /// Its name.
    pub name: String,
    /// Its version, as text.
    pub version: String,
    /// Its hash: 64 hex digits.
    pub os_image_hash: Option<String>,
    /// The contract allows it; `null` if that was not looked up.
    pub on_chain_allowed: Option<bool>,
}

/// An app's public key and the key service's signature. Strict clients accept no further field up to 2026-05-22.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PubKey {
    /// The X25519 key: 64 hex digits.
    pub public_key: String,
    /// The signature over it: 65 bytes in hex.
    pub signature: String,
    /// When it was signed, in Unix seconds, if the signature says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
}

/// App ids that a new CVM can ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NextAppIds {
    /// The ids.
    pub app_ids: Vec<NextAppId>,
}

/// An app id and the number it was made from; both go into the provision request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NextAppId {
    /// The app id.
    pub app_id: AppId,
    /// The number.
    pub nonce: u64,
}

/// OS images that a CVM may switch to, of one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OsImageGroup {
    /// Three or four numbers.
    pub version: Vec<u32>,
    /// The image for production.
    pub prod: Option<OsImageVariant>,
    /// The image for development, which lets its owner in.
    pub dev: Option<OsImageVariant>,
}

/// An OS image that a CVM may switch to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OsImageVariant {
    /// Its name.
    pub name: String,
    /// Its name and the first 8 digits of its hash.
    #[serde(default)]
    pub slug: String,
    /// Its hash: 64 hex digits.
    pub os_image_hash: Option<String>,
    /// The CVM has it now.
    pub is_current: bool,
    /// It needs a GPU.
    #[serde(default)]
    pub requires_gpu: bool,
    /// It can be chosen.
    #[serde(default = "yes")]
    pub enabled: bool,
}

fn yes() -> bool {
    true
}

/// An OS image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OsImage {
    /// Its name.
    pub name: String,
    /// Its name and the first 8 digits of its hash.
    pub slug: String,
    /// Its version, as text.
    pub version: String,
    /// Its hash: 64 hex digits.
    pub os_image_hash: Option<String>,
    /// It is for development, which lets its owner in.
    pub is_dev: bool,
    /// It needs a GPU.
    #[serde(default)]
    pub requires_gpu: bool,
}

/// What new CVMs can be put on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TeepodsAvailable {
    /// What the workspace pays for.
    pub tier: String,
    /// What the workspace may use.
    pub capacity: Capacity,
    /// The nodes, the best first.
    pub nodes: Vec<Teepod>,
    /// The key services of these nodes.
    pub kms_list: Vec<KmsInfo>,
    /// The GPUs of these nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_availability: Option<GpuAvailability>,
}

/// What a workspace may use; `null` is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Capacity {
    /// CVMs.
    pub max_instances: Option<u64>,
    /// Virtual processors.
    pub max_vcpu: Option<u64>,
    /// Memory, in MB.
    pub max_memory: Option<u64>,
    /// Disk, in GB.
    pub max_disk: Option<u64>,
}

/// A node that can take a CVM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Teepod {
    /// Its number.
    pub teepod_id: i64,
    /// Its name, unique without regard to letter case.
    pub name: String,
    /// Shown to everybody.
    pub listed: bool,
    /// How well it fits, from 0 to 1.
    pub resource_score: f64,
    /// Virtual processors left.
    pub remaining_vcpu: u64,
    /// Memory left, in MB.
    pub remaining_memory: u64,
    /// CVMs it can still take.
    pub remaining_cvm_slots: u64,
    /// Its OS images.
    pub images: Vec<TeepodImage>,
    /// It takes CVMs whose key service asks a contract.
    #[serde(default)]
    pub support_onchain_kms: bool,
    /// The platform's family, model and stepping.
    pub fmspc: Option<String>,
    /// Its device id: 64 hex digits.
    pub device_id: Option<String>,
    /// Its region.
    pub region_identifier: Option<String>,
    /// Its usual key service, by slug.
    pub default_kms: Option<String>,
    /// Its key services, by slug.
    #[serde(default)]
    pub kms_list: Vec<String>,
}

/// An OS image of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TeepodImage {
    /// Its name.
    pub name: String,
    /// Its name and the first 8 digits of its hash.
    #[serde(default)]
    pub slug: String,
    /// It is for development, which lets its owner in.
    pub is_dev: bool,
    /// Three or four numbers.
    pub version: Vec<u32>,
    /// Its hash: 64 hex digits.
    pub os_image_hash: Option<String>,
    /// It needs a GPU.
    #[serde(default)]
    pub requires_gpu: bool,
    /// It can be chosen.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// What new CVMs can be put on and made of, all in one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateResources {
    /// What the workspace pays for.
    pub tier: String,
    /// What the workspace may use.
    pub capacity: Capacity,
    /// The nodes, the best first.
    pub nodes: Vec<Teepod>,
    /// The key services.
    pub kms_nodes: Vec<CreateKms>,
    /// Which node takes CVMs of which key service.
    pub node_kms_relations: Vec<CreateRelation>,
    /// The gateways. There is none here.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub gateway_nodes: Vec<Value>,
    /// The named sizes.
    pub instance_types: Vec<CreateSize>,
    /// The GPUs of the nodes.
    pub gpu_availability: GpuAvailability,
}

/// A key service that new CVMs can have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateKms {
    /// The key service.
    #[serde(flatten)]
    pub info: KmsInfo,
    /// Its kind.
    pub kms_type: String,
    /// OS images that get keys from it, by name.
    pub supported_os_images: Vec<String>,
}

/// A node that takes CVMs of a key service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateRelation {
    /// The node's number.
    pub teepod_id: i64,
    /// The key service's id.
    pub kms_id: String,
    /// The key service's kind.
    pub kms_type: String,
    /// The key service's contract.
    pub kms_contract_address: Option<String>,
    /// OS images that can be used, by name.
    pub supported_os_images: Vec<String>,
}

/// A named size that new CVMs can have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateSize {
    /// Its name, as requests give it.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// Virtual processors.
    pub vcpu: u32,
    /// Memory, in MB.
    pub memory_mb: u32,
    /// Disk where none is asked for, in GB.
    pub default_disk_size_gb: u32,
    /// It comes with GPUs.
    pub requires_gpu: bool,
    /// With how many.
    pub requires_gpu_count: u32,
    /// Its family.
    pub family: Option<String>,
}

/// GPUs that new CVMs can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GpuAvailability {
    /// Some are kept for this workspace.
    pub has_reserved_gpus: bool,
    /// How many.
    pub reserved_gpu_count: u64,
    /// Some are for anybody.
    pub has_public_gpus: bool,
    /// How many.
    pub public_gpu_count: u64,
}

/// Named sizes, by family. Strict clients accept no further field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceTypes {
    /// The families.
    pub result: Vec<InstanceTypeGroup>,
}

/// Named sizes of a family. Strict clients accept no further field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceTypeGroup {
    /// The family's name.
    pub name: String,
    /// Its sizes.
    pub items: Vec<InstanceType>,
    /// How many.
    pub total: u64,
}

/// Named sizes of the family that was asked for. Strict clients accept no further field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceTypeFamily {
    /// Its sizes.
    pub items: Vec<InstanceType>,
    /// How many.
    pub total: u64,
    /// The family's name.
    pub family: String,
}

/// A named size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceType {
    /// Its name, as requests give it.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// What it is good for.
    pub description: String,
    /// Virtual processors.
    pub vcpu: u32,
    /// Memory, in MB.
    pub memory_mb: u32,
    /// Price per hour, as a decimal text.
    pub hourly_rate: String,
    /// It comes with a GPU.
    pub requires_gpu: bool,
    /// Disk where none is asked for, in GB.
    pub default_disk_size_gb: u32,
    /// Its family.
    pub family: Option<String>,
}

open_enum! {
    /// Whether a node takes calls.
    NodeStatus {
        /// It answers.
        Online = "ONLINE",
        /// It does not answer.
        Offline = "OFFLINE",
        /// It takes nothing new.
        Maintenance = "MAINTENANCE",
    }
}

/// A node, for those who look after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Node {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// How it is reached: `sim`, `qemu`, `dstack`.
    pub driver: String,
    /// Its region.
    pub region: Option<String>,
    /// Whether it takes calls.
    pub status: NodeStatus,
    /// The version of its software.
    pub version: Option<String>,
    /// Its device id: 64 hex digits.
    pub device_id: Option<String>,
    /// All it has.
    pub capacity: NodeRoom,
    /// What of it new CVMs can have.
    pub free: NodeRoom,
    /// Its OS images, by name.
    pub images: Vec<String>,
    /// It can give a CVM a new instance id.
    pub can_renew_instance_id: bool,
    /// Faults that were set on it for rehearsal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
    /// When it last answered.
    #[serde(default, with = "super::time::opt")]
    pub seen_at: Option<Timestamp>,
}

/// Room on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeRoom {
    /// Virtual processors.
    pub vcpu: u64,
    /// Memory, in MB.
    pub memory_mb: u64,
    /// Disk, in GB.
    pub disk_gb: u64,
    /// GPUs.
    pub gpus: u64,
    /// CVMs.
    pub slots: u64,
}

/// An API key, without the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiKeyInfo {
    /// Its id.
    pub id: String,
    /// What its owner calls it.
    pub name: String,
    /// How the key begins, enough to recognise it.
    pub prefix: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// The API version of requests that name none.
    pub default_version: ApiVersion,
    /// When it was made.
    #[serde(with = "super::time")]
    pub created_at: Timestamp,
    /// When it was last used, to within a minute or so.
    #[serde(default, with = "super::time::opt")]
    pub last_used_at: Option<Timestamp>,
    /// When it stops working by itself.
    #[serde(default, with = "super::time::opt")]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(default, with = "super::time::opt")]
    pub revoked_at: Option<Timestamp>,
}

/// A new API key. The only answer that ever shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewApiKey {
    /// The key. A secret.
    pub key: String,
    /// The rest.
    #[serde(flatten)]
    pub info: ApiKeyInfo,
}

impl std::fmt::Debug for NewApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewApiKey").field("info", &self.info).finish_non_exhaustive()
    }
}
