//! Approvals, and what contracts allow.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Diff, KmsInfo, NumberOrString};
use crate::error::OnchainStatus;
use crate::ids::{AppId, ComposeHash, CvmUid, DeviceId, OperationId};
use crate::open_enum::open_enum;

open_enum! {
    /// Where an approval stands.
    ApprovalState {
        /// It waits.
        Open = "open",
        /// It waits, and does not go on by itself: somebody has to look at it. What can be done with an open one can be done.
        NeedsAttention = "needs_attention",
        /// An operation carries it out.
        Committed = "committed",
        /// A newer one took its place.
        Superseded = "superseded",
        /// Its time is over.
        Expired = "expired",
        /// It was called off, or its CVM was deleted.
        Cancelled = "cancelled",
    }
}

impl ApprovalState {
    /// Can it still be committed, or called off?
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open | Self::NeedsAttention)
    }
}

/// Something that waits for somebody's yes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Approval {
    /// Its id.
    pub id: String,
    /// The CVM; for a replica the one that it is made after.
    pub cvm_id: CvmUid,
    /// Its name.
    pub cvm_name: String,
    /// What it leads to: `update` or `replica`.
    pub purpose: String,
    /// Where it stands.
    pub state: ApprovalState,
    /// The hash that has to be allowed.
    pub compose_hash: ComposeHash,
    /// The app.
    pub app_id: AppId,
    /// Who asked.
    pub author: String,
    /// The server commits it by itself once hash and device are allowed.
    pub auto_commit: bool,
    /// Why auto-commit does not go on without somebody; the state is `needs_attention` as long as it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs_attention: Option<String>,
    /// The operation that carries it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<OperationId>,
    /// The approval that took its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<String>,
    /// When it was asked for.
    #[serde(with = "super::time")]
    pub created_at: Timestamp,
    /// Until when it can be committed.
    #[serde(with = "super::time")]
    pub expires_at: Timestamp,
}

/// Approvals, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApprovalPage {
    /// The approvals.
    pub items: Vec<Approval>,
    /// Where the next page begins; `null` on the last one.
    pub next_cursor: Option<String>,
}

/// An approval with everything that is needed to decide about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApprovalDetail {
    /// The approval.
    #[serde(flatten)]
    pub approval: Approval,
    /// What would change. Texts are whole, of the environment only names are shown.
    pub diff: Vec<Diff>,
    /// Why the change cannot be planned any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What whoever says yes may not expect, such as an image that the compose hash does not settle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The exact text whose SHA-256 is `compose_hash`.
    pub app_compose: Option<String>,
    /// The key service that asks the contract.
    pub kms: KmsInfo,
    /// The chain.
    pub chain_id: u64,
    /// The app's contract, with the letter case by which wallets find typing errors.
    pub contract: String,
    /// The device that has to be allowed.
    pub device_id: DeviceId,
    /// What the contract allows now; `null` if the chain does not answer.
    pub onchain_status: Option<OnchainStatus>,
    /// The calls that make it allowed.
    pub calls: Vec<ContractCall>,
    /// The calls that are still missing, for the Transaction Builder of Safe wallets.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub safe_batch: Value,
}

/// A call of a contract, to be signed by its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ContractCall {
    /// The function.
    pub function: String,
    /// Its argument.
    pub argument: String,
    /// The contract.
    pub to: String,
    /// The transaction's data, `0x…`.
    pub data: String,
    /// It is still missing; `null` if that is not known.
    #[serde(default)]
    pub needed: Option<bool>,
}

/// Calls that take hashes back that are no longer used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Revocation {
    /// The chain.
    pub chain_id: u64,
    /// The hashes that no CVM of the app has any more. They can still boot until the contract is told.
    pub compose_hashes: Vec<ComposeHash>,
    /// The calls.
    pub calls: Vec<ContractCall>,
    /// The same for the Transaction Builder of Safe wallets.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub safe_batch: Value,
}

/// What an app's contract lets boot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AllowedHashes {
    /// The app.
    pub app_id: AppId,
    /// The chain.
    pub chain_id: u64,
    /// The app's contract.
    pub contract: String,
    /// The contract's whole log was read. Until then there may be hashes that are not in the list; ask again.
    pub complete: bool,
    /// Up to which block the log was read.
    pub read_to_block: Option<u64>,
    /// The hashes that are allowed now.
    pub items: Vec<AllowedHash>,
}

/// A hash that an app's contract allows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AllowedHash {
    /// The hash.
    pub compose_hash: ComposeHash,
    /// A CVM of the app has it now, or may have it when its operation has ended.
    pub in_use: bool,
    /// The revisions that have or had it.
    pub revisions: Vec<HashRevision>,
    /// The call that takes it back. Not for one in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removal: Option<ContractCall>,
}

/// A revision that has or had a hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HashRevision {
    /// The CVM.
    pub cvm_id: CvmUid,
    /// Its number.
    pub revision: u64,
    /// The CVM has it now, or may have it when its operation has ended.
    pub current: bool,
    /// When it was made.
    #[serde(with = "super::time")]
    pub created_at: Timestamp,
}

/// What an app's contract says to a hash and a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IsAllowed {
    /// The CVM, if it was asked about one: a number before 2026-05-22.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cvm_id: Option<NumberOrString>,
    /// The app's contract.
    pub app_contract_address: String,
    /// The hash.
    pub compose_hash: ComposeHash,
    /// The device.
    pub device_id: DeviceId,
    /// The hash is allowed.
    pub compose_hash_allowed: bool,
    /// Any device is allowed.
    pub allow_any_device: bool,
    /// The device is allowed; `null` where any is.
    pub device_id_allowed: Option<bool>,
    /// It can boot.
    pub is_allowed: bool,
    /// Why that is not known.
    pub error: Option<String>,
}

/// The same for all CVMs of an app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmsAllowed {
    /// A contract governs the app's keys.
    pub is_onchain: bool,
    /// One for each CVM.
    pub results: Vec<IsAllowed>,
    /// How many CVMs.
    pub total: u64,
    /// Of these, allowed.
    pub allowed_count: u64,
    /// Not allowed.
    pub denied_count: u64,
    /// Not known.
    pub error_count: u64,
    /// CVMs that were not asked about.
    pub skipped_cvm_ids: Vec<NumberOrString>,
}

/// The devices that an app's CVMs are on or could be on, and which its contract allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeviceAllowlist {
    /// A contract governs the app's keys.
    pub is_onchain_kms: bool,
    /// Any device is allowed.
    pub allow_any_device: Option<bool>,
    /// The chain.
    pub chain_id: Option<u64>,
    /// The app's contract.
    pub app_contract_address: Option<String>,
    /// The devices.
    pub devices: Vec<ListedDevice>,
}

/// A device, and whether an app's contract allows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListedDevice {
    /// The device.
    pub device_id: String,
    /// The node that it is.
    pub node_name: Option<String>,
    /// The app's CVMs on it: numbers before 2026-05-22.
    pub cvm_ids: Vec<NumberOrString>,
    /// The contract allows it, or any.
    pub allowed_onchain: bool,
    /// `allowed`, `not_allowed`.
    pub status: String,
}
