//! Operations, plans, revisions and events: what only this server has.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{ComposeHash, CvmUid, OperationId};
use crate::open_enum::open_enum;

open_enum! {
    /// Where an operation stands.
    OperationStatus {
        /// Waits for a worker.
        Queued = "queued",
        /// At work.
        Running = "running",
        /// Done.
        Succeeded = "succeeded",
        /// Ended without success.
        Failed = "failed",
        /// Ended by a stop, a deletion or a cancel.
        Cancelled = "cancelled",
    }
}

impl OperationStatus {
    /// It will not change any more.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A piece of work on a CVM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Operation {
    /// Its id.
    pub correlation_id: OperationId,
    /// The CVM.
    pub cvm_id: CvmUid,
    /// `create`, `update`, `start`, `put_back` …
    pub kind: String,
    /// Where it stands.
    pub status: OperationStatus,
    /// The step at work, or the last one.
    pub step: Option<String>,
    /// How often this step was tried.
    pub attempt: u64,
    /// What it waits for, if it cannot go on by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// Its steps, in order.
    pub steps: Vec<OperationStep>,
    /// What it changes.
    pub diff: Vec<Diff>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The operation that put the old configuration back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put_back: Option<OperationId>,
    /// Where a contract governs the keys: how to take the hash back that this update took out of use. Not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<super::Revocation>,
    /// How long the machine was down for it, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    /// When it was accepted.
    #[serde(with = "super::time")]
    pub created_at: Timestamp,
    /// When it ended.
    #[serde(default, with = "super::time::opt")]
    pub ended_at: Option<Timestamp>,
}

/// A step of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OperationStep {
    /// `stage`, `stop`, `apply`, `start`, `observe`.
    pub name: String,
    /// When it began.
    #[serde(default, with = "super::time::opt")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, with = "super::time::opt")]
    pub ended_at: Option<Timestamp>,
}

/// A field that changes. Secrets and long texts are shown by their hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Diff {
    /// The field.
    pub field: String,
    /// Its value before.
    pub from: Value,
    /// Its value after.
    pub to: Value,
}

/// Why an operation did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reason {
    /// For programs: `refused`, `boot_failed`, `stop_timed_out` …
    pub code: String,
    /// For people.
    pub message: String,
}

/// Operations, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OperationPage {
    /// The operations.
    pub items: Vec<Operation>,
    /// Where the next page begins; `null` on the last one.
    pub next_cursor: Option<String>,
}

/// What a request would do, had it not been a dry run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DryRun {
    /// What it would do.
    pub plan: Plan,
}

open_enum! {
    /// How much a request would do.
    PlanKind {
        /// Nothing: everything is as asked for.
        Nothing = "nothing",
        /// Only records change, the machine goes on.
        Records = "records",
        /// The machine restarts.
        Restart = "restart",
    }
}

/// What a request would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Plan {
    /// How much.
    pub kind: PlanKind,
    /// What changes.
    pub diff: Vec<Diff>,
    /// The hash of the document that would be in force.
    pub compose_hash: Option<ComposeHash>,
    /// The hash would have to be registered on a chain first.
    pub needs_approval: bool,
    /// What the caller may not expect.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A numbered configuration of a CVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Revision {
    /// Its number, from 1.
    pub revision: u64,
    /// The hash of its document.
    pub compose_hash: ComposeHash,
    /// Who made it.
    pub author: Option<String>,
    /// The operation that made it.
    pub cause: Option<OperationId>,
    /// When.
    #[serde(with = "super::time")]
    pub created_at: Timestamp,
    /// The earlier revision whose content it has again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    /// It is in force.
    pub current: bool,
    /// What the images of its services were resolved to when it was put in place: a tag may mean another image by now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImageDigest>,
}

/// A container image and what it was resolved to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageDigest {
    /// As in the compose file, for example `web:1`.
    pub reference: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
}

/// Revisions, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RevisionPage {
    /// The revisions.
    pub items: Vec<Revision>,
    /// Where the next page begins; `null` on the last one.
    pub next_cursor: Option<String>,
}

/// Something that happened, written with the change itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEvent {
    /// Its number. Numbers grow; a reader that comes back with its last one misses nothing.
    pub seq: u64,
    /// When.
    #[serde(with = "super::time")]
    pub at: Timestamp,
    /// What: `cvm.update.accepted`, `step.finished` …
    pub kind: String,
    /// The CVM concerned.
    pub cvm_id: Option<CvmUid>,
    /// The operation concerned.
    pub correlation_id: Option<OperationId>,
    /// Who: a user, or the server itself.
    pub actor: Option<String>,
    /// With which API key.
    pub key_id: Option<String>,
    /// In which request.
    pub request_id: Option<String>,
    /// The revision in force before.
    pub revision_before: Option<u64>,
    /// The revision in force after.
    pub revision_after: Option<u64>,
    /// What the operation concerned does, where this is what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// What was changed, where this is what was asked for. Secrets have no values here, not even as a hash.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<AuditChange>,
    /// More, by kind.
    #[serde(default)]
    pub details: Value,
}

/// A field that was changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditChange {
    /// Its name.
    pub field: String,
    /// Its value before; a hash for a long one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// Its value after; a hash for a long one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

/// Something that happened to an operation, and the operation as it is by now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OperationEvent {
    /// What happened.
    pub event: AuditEvent,
    /// The operation.
    pub operation: Operation,
}

/// Events, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditPage {
    /// The events.
    pub items: Vec<AuditEvent>,
    /// Where the next page begins; `null` if there is nothing more yet.
    pub next_cursor: Option<String>,
}

open_enum! {
    /// What changing a field does to the machine.
    RestartClass {
        /// Nothing: only a record changes.
        Record = "record",
        /// It restarts.
        Restart = "restart",
    }
}

/// What is to know about a field that can be updated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldRule {
    /// The field.
    pub field: String,
    /// Its JSON type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its unit: `MB`, `GB`, `s` …
    pub unit: Option<String>,
    /// Its limits, for people.
    pub limits: Option<String>,
    /// It is part of what is hashed.
    pub in_compose_hash: bool,
    /// What changing it does.
    pub restart: RestartClass,
}
