//! Answers to requests that change something.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::{KmsInfo, NumberOrString, Vm};
use crate::ids::{AppId, ComposeHash, InstanceId, OperationId};
use crate::open_enum::open_enum;

/// What provisioning a new CVM gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProvisionAnswer {
    /// The app id; `null` if the app's contract is still to be deployed.
    pub app_id: Option<AppId>,
    /// The app's public key, to seal the environment with: 64 hex digits.
    pub app_env_encrypt_pubkey: Option<String>,
    /// The hash of the normalised document.
    pub compose_hash: ComposeHash,
    /// The key service.
    pub kms_info: Option<KmsInfo>,
    /// The platform's family, model and stepping.
    pub fmspc: Option<String>,
    /// The node's device id: 64 hex digits.
    pub device_id: Option<String>,
    /// The OS image's hash: 64 hex digits.
    pub os_image_hash: Option<String>,
    /// The named size.
    pub instance_type: Option<String>,
    /// The node. Equal to `node_id`: one client overwrites the other with it.
    pub teepod_id: Option<i64>,
    /// The node.
    pub node_id: Option<i64>,
    /// The key service's id.
    pub kms_id: Option<String>,
    /// Where the hashed text differs from what was sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What provisioning a new document for a CVM gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ComposeProvisionAnswer {
    /// The app.
    pub app_id: Option<AppId>,
    /// The node's device id: 64 hex digits.
    pub device_id: Option<String>,
    /// The hash of the normalised document.
    pub compose_hash: ComposeHash,
    /// The key service, if it asks a contract.
    pub kms_info: Option<KmsInfo>,
    /// The contract allows the hash already.
    #[serde(default)]
    pub compose_hash_registered: bool,
    /// It is the hash that is in force.
    #[serde(default)]
    pub compose_unchanged: bool,
    /// Where the hashed text differs from what was sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

open_enum! {
    /// What an accepted request says about itself.
    AcceptedStatus {
        /// An operation carries it out.
        InProgress = "in_progress",
    }
}

/// The answer to an accepted update: an operation is stored that will carry it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Accepted {
    /// Always `in_progress`.
    pub status: AcceptedStatus,
    /// What was accepted, for people.
    #[serde(default)]
    pub message: String,
    /// The operation.
    pub correlation_id: OperationId,
    /// `false`: nothing has to be registered on a chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires_on_chain_hash: Option<bool>,
    /// The set of variables that reach the app changes. In answers about environments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_envs_changed: Option<bool>,
    /// The hash of the document that will be in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compose_hash: Option<ComposeHash>,
    /// What the caller may not expect, such as where the hashed text differs from what was sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Accepted {
    /// An accepted operation.
    pub fn new(correlation_id: OperationId, message: impl Into<String>) -> Self {
        Self {
            status: AcceptedStatus::InProgress,
            message: message.into(),
            correlation_id,
            requires_on_chain_hash: None,
            allowed_envs_changed: None,
            compose_hash: None,
            warnings: Vec::new(),
        }
    }
}

/// An accepted update together with the CVM as it will be: once whole, and once flat beside the rest, where only
/// `status` is that of the update.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AcceptedCvm {
    /// The operation.
    #[serde(flatten)]
    pub accepted: Accepted,
    /// The CVM as it will be.
    pub cvm: Vm,
}

impl Serialize for AcceptedCvm {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error;
        let cvm = serde_json::to_value(&self.cvm).map_err(S::Error::custom)?;
        let accepted = serde_json::to_value(&self.accepted).map_err(S::Error::custom)?;
        let (Value::Object(mut all), Value::Object(accepted)) = (cvm.clone(), accepted) else {
            return Err(S::Error::custom("both are objects"));
        };
        all.extend(accepted);
        all.insert("cvm".into(), cvm);
        all.serialize(to)
    }
}

open_enum! {
    /// What became of a CVM's instance id.
    InstanceIdStatus {
        /// There is a new one.
        Updated = "updated",
        /// It is the same.
        Unchanged = "unchanged",
        /// It was not looked at.
        Skipped = "skipped",
        /// There is another one, or the CVM is busy.
        Conflict = "conflict",
        /// It could not be found out.
        Error = "error",
    }
}

open_enum! {
    /// Where an instance id was found.
    InstanceIdSource {
        /// In the node's state.
        NodeState = "teepod_state",
        /// The node said so.
        NodeInfo = "teepod_info",
        /// The gateway said so.
        Gateway = "gateway",
        /// Nowhere, or it was issued.
        None = "none",
    }
}

/// What became of one CVM's instance id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceIdResult {
    /// A number up to API version 2026-01-21, then the CVM's id.
    pub cvm_id: NumberOrString,
    /// The identifier of the request.
    pub identifier: String,
    /// What became of it.
    pub status: InstanceIdStatus,
    /// The instance id before.
    pub old_instance_id: Option<InstanceId>,
    /// The instance id now.
    pub new_instance_id: Option<InstanceId>,
    /// The new instance id once more, if one was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// Where it was found.
    pub source: InstanceIdSource,
    /// The gateway agrees.
    #[serde(default)]
    pub verified_with_gateway: bool,
    /// Why not.
    pub reason: Option<String>,
    /// The operation that brings the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<OperationId>,
}

/// What became of several CVMs' instance ids.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceIdsResult {
    /// How many CVMs fit the request.
    pub total: u64,
    /// How many were looked at.
    pub scanned: u64,
    /// How many have a new one.
    pub updated: u64,
    /// How many have the same.
    pub unchanged: u64,
    /// How many were not looked at.
    pub skipped: u64,
    /// How many have another one, or are busy.
    pub conflicts: u64,
    /// How many could not be found out.
    pub errors: u64,
    /// Each of them.
    pub items: Vec<InstanceIdResult>,
}

impl InstanceIdsResult {
    /// Counts results; all CVMs that fit the request are among them, or `total` says how many more there are.
    pub fn of(items: Vec<InstanceIdResult>, total: u64) -> Self {
        let mut result = Self { total, ..Self::default() };
        for item in &items {
            let counter = match item.status {
                InstanceIdStatus::Updated => &mut result.updated,
                InstanceIdStatus::Unchanged => &mut result.unchanged,
                InstanceIdStatus::Skipped => &mut result.skipped,
                InstanceIdStatus::Conflict => &mut result.conflicts,
                InstanceIdStatus::Error | InstanceIdStatus::Other(_) => &mut result.errors,
            };
            *counter += 1;
        }
        result.scanned = items.len() as u64 - result.skipped;
        result.items = items;
        result
    }
}
