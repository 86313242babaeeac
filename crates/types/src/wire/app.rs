//! Apps and the workspace that they belong to.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use serde_json::Value;

use super::{CvmType, KmsType, MachineInfo, Status, UserRef, WorkspaceRef};
use crate::ids::{AppId, ComposeHash, CvmUid, InstanceId, VmUuid};

/// One page of apps. Pages count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppPage<C> {
    /// The apps.
    pub dstack_apps: Vec<AppRecord<C>>,
    /// This page.
    pub page: u64,
    /// At most so many on a page.
    pub page_size: u64,
    /// How many apps there are on all pages.
    pub total: u64,
    /// How many pages there are.
    pub total_pages: u64,
}

/// An app and its CVMs, whose shape goes by the API version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppRecord<C> {
    /// Its record's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its app id.
    pub app_id: AppId,
    /// How it was made.
    pub app_provision_type: Option<String>,
    /// Its picture.
    pub app_icon_url: Option<String>,
    /// When it was made.
    #[serde(with = "super::time")]
    pub created_at: Timestamp,
    /// The kind of its key service.
    pub kms_type: KmsType,
    /// What its owner tells about it.
    pub profile: Option<AppProfile>,
    /// Its CVM, or the first of several.
    pub current_cvm: Option<C>,
    /// Its CVMs.
    #[serde(default = "Vec::new")]
    pub cvms: Vec<C>,
    /// How many they are.
    #[serde(default)]
    pub cvm_count: u64,
}

/// What an app's owner tells about it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppProfile {
    /// A name for people.
    pub display_name: Option<String>,
    /// A picture.
    pub avatar_url: Option<String>,
    /// A text.
    pub description: Option<String>,
    /// A domain.
    pub custom_domain: Option<String>,
}

/// A CVM in an app, before API version 2026-01-21.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmBasic {
    /// The machine.
    pub vm_uuid: Option<VmUuid>,
    /// The app it belongs to.
    pub app_id: AppId,
    /// Its name, unique in the workspace.
    #[serde(default)]
    pub name: String,
    /// What it is doing.
    pub status: Status,
    /// Virtual processors.
    pub vcpu: u32,
    /// Memory, in MB.
    pub memory: u32,
    /// Disk, in GB.
    pub disk_size: u32,
    /// The number of its node.
    pub teepod_id: i64,
    /// Its node's name.
    pub teepod_name: String,
    /// Its node's region.
    pub region_identifier: Option<String>,
    /// The kind of its key service.
    pub kms_type: Option<KmsType>,
    /// Its key service, by slug.
    pub kms_slug: Option<String>,
    /// Its key service, by id.
    pub kms_id: Option<String>,
    /// Its named size.
    pub instance_type: Option<String>,
    /// The name of its OS image.
    pub base_image: Option<String>,
    /// The machine's identity, known after its first boot.
    pub instance_id: Option<InstanceId>,
    /// Shown in the public directory.
    pub listed: Option<bool>,
    /// Its size once more.
    pub machine_info: Option<MachineInfo>,
    /// When it last changed.
    #[serde(default, with = "super::time::opt")]
    pub updated_at: Option<Timestamp>,
}

/// The values that filters of the list of apps can have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppFilterOptions {
    /// What CVMs can be doing.
    pub statuses: Vec<String>,
    /// OS images, by name.
    pub image_versions: Vec<String>,
    /// Named sizes.
    pub instance_types: Vec<String>,
    /// Key services, by slug.
    pub kms_slugs: Vec<String>,
    /// Kinds of key services.
    pub kms_types: Vec<String>,
    /// Regions of nodes.
    pub regions: Vec<String>,
    /// Nodes, by name.
    pub nodes: Vec<String>,
}

/// One page of the revisions of an app's CVMs, newest first. Pages count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppRevisionPage {
    /// The revisions.
    pub revisions: Vec<AppRevision>,
    /// How many there are on all pages.
    pub total: u64,
    /// This page.
    pub page: u64,
    /// At most so many on a page.
    pub page_size: u64,
    /// How many pages there are.
    pub total_pages: u64,
}

/// A revision of one of an app's CVMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppRevision {
    /// Its id.
    pub revision_id: String,
    /// The app.
    pub app_id: AppId,
    /// The machine.
    pub vm_uuid: VmUuid,
    /// The hash of its document.
    pub compose_hash: ComposeHash,
    /// When it was made.
    #[serde(with = "super::time")]
    pub created_at: Timestamp,
    /// What made it: `create`, `update`, `rollback`, `put_back` …
    pub operation_type: String,
    /// The operation that made it.
    pub trace_id: Option<String>,
    /// Who made it.
    pub triggered_by: Option<UserRef>,
    /// The CVM.
    pub cvm: Option<CvmMention>,
    /// Whose it is.
    pub workspace: Option<WorkspaceRef>,
}

/// A revision with what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AppRevisionDetail {
    /// What lists show.
    #[serde(flatten)]
    pub revision: AppRevision,
    /// The document, or the text that is hashed.
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub compose_file: Value,
    /// The sealed environment in hex, or an empty text.
    pub encrypted_env: String,
    /// The user config, or an empty text.
    pub user_config: String,
}

/// A CVM, in passing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmMention {
    /// Always `cvm`.
    #[serde(default)]
    pub object_type: CvmType,
    /// Its id.
    pub id: Option<CvmUid>,
    /// Its name.
    pub name: Option<String>,
    /// The app it belongs to.
    pub app_id: Option<AppId>,
    /// The machine.
    pub vm_uuid: Option<VmUuid>,
}

/// What a workspace may use, and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Quotas {
    /// The workspace's name in addresses.
    pub team_slug: String,
    /// What it pays for.
    pub tier: String,
    /// For new CVMs.
    pub quotas: QuotaSet,
    /// Nodes of its own.
    pub reserved_nodes: Quota,
    /// GPUs of its own.
    pub reserved_gpu: ReservedGpus,
    /// When this was so.
    #[serde(with = "super::time")]
    pub as_of: Timestamp,
}

/// What new CVMs may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QuotaSet {
    /// CVMs.
    pub vm_slots: Quota,
    /// Virtual processors.
    pub vcpu: Quota,
    /// Memory, in MB.
    pub memory_mb: Quota,
    /// Disk, in GB.
    pub disk_gb: Quota,
}

/// How much there may be of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Quota {
    /// In all.
    pub limit: u64,
    /// Still.
    pub remaining: u64,
}

/// GPUs that are kept for a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReservedGpus {
    /// How many.
    pub gpus: Quota,
    /// How many of them are in use.
    pub in_use: u64,
    /// How many of them cannot be used.
    pub misconfigured: u64,
}

/// Workspaces of the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Workspaces {
    /// The workspaces.
    pub data: Vec<Workspace>,
    /// Whether there are more.
    pub pagination: Pagination,
}

/// Where a list goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pagination {
    /// There are more.
    pub has_more: bool,
    /// Where the next part begins; `null` after the last one.
    pub next_cursor: Option<String>,
    /// How many there are in all, if known.
    pub total: Option<u64>,
}

/// A workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Workspace {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its name in addresses.
    pub slug: Option<String>,
    /// What it pays for.
    pub tier: String,
    /// What the user may do in it.
    pub role: String,
    /// It is the one that is used where none is named.
    #[serde(default)]
    pub is_default: bool,
    /// When it was made.
    #[serde(with = "super::time")]
    pub created_at: Timestamp,
}

/// Who the caller is, from API version 2026-01-21 on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Me {
    /// The user.
    pub user: MeUser,
    /// The workspace of the key.
    pub workspace: MeWorkspace,
    /// What is left to spend.
    pub credits: MeCredits,
}

/// The user behind a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MeUser {
    /// Name. Not empty.
    pub username: String,
    /// E-mail address.
    pub email: String,
    /// `admin` or `user`.
    pub role: String,
    /// Picture, or an empty text.
    #[serde(default)]
    pub avatar: String,
    /// The address was confirmed.
    #[serde(default)]
    pub email_verified: bool,
    /// Signing in takes a one-time code.
    #[serde(default)]
    pub totp_enabled: bool,
    /// There are codes for when the device is lost.
    #[serde(default)]
    pub has_backup_codes: bool,
    /// There is a password.
    #[serde(default)]
    pub flag_has_password: bool,
}

/// The workspace of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MeWorkspace {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its name in addresses.
    pub slug: Option<String>,
    /// What it pays for.
    pub tier: String,
    /// What the user may do in it.
    pub role: String,
    /// Its picture.
    pub avatar: Option<String>,
}

/// Credit of a workspace. Amounts are decimal texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MeCredits {
    /// What is left.
    #[serde(deserialize_with = "amount")]
    pub balance: String,
    /// What of it was a present.
    #[serde(deserialize_with = "amount")]
    pub granted_balance: String,
    /// Paid afterwards.
    #[serde(default)]
    pub is_post_paid: bool,
    /// What is still to pay.
    #[serde(default, deserialize_with = "opt_amount")]
    pub outstanding_amount: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Amount {
    Text(String),
    Number(serde_json::Number),
}

impl From<Amount> for String {
    fn from(amount: Amount) -> Self {
        match amount {
            Amount::Text(text) => text,
            Amount::Number(number) => number.to_string(),
        }
    }
}

fn amount<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Amount::deserialize(from).map(Into::into)
}

fn opt_amount<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Amount>::deserialize(from)?.map(Into::into))
}

/// Who the caller is, before API version 2026-01-21.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MeFlat {
    /// The user's name.
    pub username: String,
    /// The user's e-mail address.
    pub email: String,
    /// What is left to spend.
    pub credits: f64,
    /// What of it was a present.
    pub granted_credits: f64,
    /// The user's picture, or an empty text.
    pub avatar: String,
    /// The workspace's name.
    pub team_name: String,
    /// What the workspace pays for.
    pub team_tier: String,
}
