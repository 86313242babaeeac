//! The other request bodies, one struct each.

use serde::Serialize;
use serde_json::{Map, Value};

use super::reader::Reader;
use super::{CvmPatch, GpuPatch, OnFailure, Sparse, TxProof};
use crate::compose::ComposeDoc;
use crate::env::SealedEnv;
use crate::error::FieldError;
use crate::ids::{AppId, ComposeHash, CvmName, DeviceId};
use crate::wire::KmsType;

/// What `from_json` gives.
pub type Read<T> = Result<T, Vec<FieldError>>;

/// Fields of every update that say how it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateOptions {
    /// What happens if the update fails; by default the old configuration is put back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// Restart even if nothing changes.
    #[serde(skip_serializing_if = "is_false")]
    pub force_restart: bool,
    /// How long the guest may take to shut down, in seconds: 10 to 1200. 60 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_timeout: Option<u32>,
    /// Whether the machine is switched off when that time is over; by default the update fails then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_force_stop: Option<bool>,
}

impl UpdateOptions {
    fn read(body: &mut Reader<'_>) -> Self {
        Self {
            on_failure: body.parsed(&["on_failure"]),
            force_restart: body.bool(&["force_restart"]).unwrap_or_default(),
            shutdown_timeout: CvmPatch::read_shutdown_timeout(body),
            allow_force_stop: body.bool(&["allow_force_stop"]),
        }
    }

    fn apply(self, patch: &mut CvmPatch) {
        patch.on_failure = self.on_failure.into();
        patch.force_restart = if self.force_restart { Sparse::Value(true) } else { Sparse::Absent };
        patch.shutdown_timeout = self.shutdown_timeout.into();
        patch.allow_force_stop = self.allow_force_stop.into();
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Reads the hash that an earlier answer gave.
fn compose_hash(body: &mut Reader<'_>) -> Option<ComposeHash> {
    let names = ["compose_hash", "composeHash"];
    if body.find(&names).is_none() {
        body.missing("compose_hash", "the hash that the first step gave");
    }
    body.parsed(&names)
}

fn app_compose(body: &mut Reader<'_>, field: &str, map: &Map<String, Value>) -> Option<ComposeDoc> {
    match ComposeDoc::from_map(map.clone()) {
        Ok(doc) => Some(doc),
        Err(error) => {
            body.note(&format!("{field}.{}", error.field), "value_error", error.message, None);
            None
        }
    }
}

/// `POST /cvms/provision`: what a new CVM shall be. Nothing runs yet.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmProvision {
    /// The new CVM's name.
    pub name: CvmName,
    /// The app-compose document. Missing fields get defaults.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub compose_file: ComposeDoc,
    /// A named size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// Virtual processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// Memory, in MB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u32>,
    /// Disk, in GB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<u32>,
    /// The OS image, by name or slug.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// A development image where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer_dev: Option<bool>,
    /// The node (also `node_id`).
    #[serde(rename = "teepod_id", skip_serializing_if = "Option::is_none")]
    pub node_id: Option<i64>,
    /// The region, if any node of it will do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Shown in the public directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listed: Option<bool>,
    /// The kind of key service (also `kms_type`), in any letter case; `phala` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms: Option<KmsType>,
    /// The key service, by id or slug.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms_id: Option<String>,
    /// The key service, by its contract (also `kms_contract_id`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms_contract: Option<String>,
    /// The environment variables that reach the app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_keys: Option<Vec<String>>,
    /// The sealed environment, in hex, if the app's key is known already.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub encrypted_env: Option<SealedEnv>,
    /// The app id (also `custom_app_id`), one that `next_app_id` gave or that a contract has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_id: Option<AppId>,
    /// The number that `next_app_id` gave with the app id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<u64>,
    /// SSH keys for development images, for the user config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssh_authorized_keys: Option<Vec<String>>,
    /// Text that the guest gets besides the document, not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_config: Option<String>,
    /// The GPUs the machine shall have.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<GpuPatch>))]
    pub gpus: Sparse<GpuPatch>,
}

impl CvmProvision {
    /// The least that a new CVM needs.
    pub fn new(name: CvmName, compose_file: ComposeDoc) -> Self {
        Self {
            name,
            compose_file,
            instance_type: None,
            vcpu: None,
            memory: None,
            disk_size: None,
            image: None,
            prefer_dev: None,
            node_id: None,
            region: None,
            listed: None,
            kms: None,
            kms_id: None,
            kms_contract: None,
            env_keys: None,
            encrypted_env: None,
            app_id: None,
            nonce: None,
            ssh_authorized_keys: None,
            user_config: None,
            gpus: Sparse::Absent,
        }
    }

    /// Reads a body. `storage_fs` and `secure_time` beside the document go into it, if it has none of its own.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let name = name(&mut body);
        if body.find(&["compose_file"]).is_none() {
            body.missing("compose_file", "the app-compose document");
        }
        let mut doc =
            body.object(&["compose_file"]).and_then(|(field, map)| app_compose(&mut body, &field, map));
        if let Some(doc) = &mut doc {
            if let Some(fs) = body.string(&["storage_fs"]).filter(|_| doc.get("storage_fs").is_none()) {
                doc.set("storage_fs", fs);
            }
            if let Some(secure) = body.bool(&["secure_time"]).filter(|_| doc.get("secure_time").is_none()) {
                doc.set("secure_time", secure);
            }
        }
        let text = |body: &mut Reader<'_>, names: &[&str]| body.string(names).filter(|text| !text.is_empty());
        let instance_type = text(&mut body, &["instance_type"]);
        let vcpu = body.size("vcpu", CvmPatch::MIN_VCPU);
        let memory = body.size("memory", CvmPatch::MIN_MEMORY);
        let disk_size = body.size("disk_size", CvmPatch::MIN_DISK_SIZE);
        let image = text(&mut body, &["image"]);
        let prefer_dev = body.bool(&["prefer_dev"]);
        let node_id = body.int(&["teepod_id", "node_id"], 1, i64::from(i32::MAX));
        let region = text(&mut body, &["region"]);
        let listed = body.bool(&["listed"]);
        let kms = kms_type(&mut body);
        let kms_id = text(&mut body, &["kms_id"]);
        let kms_contract = text(&mut body, &["kms_contract", "kms_contract_id"]);
        let env_keys = body.strings(&["env_keys"]);
        let encrypted_env = body.parsed_unless_empty(&["encrypted_env"]);
        let app_id = body.parsed_unless_empty(&["app_id", "custom_app_id"]);
        let nonce = body.int(&["nonce"], 0, i64::MAX);
        let ssh_authorized_keys = body.strings(&["ssh_authorized_keys"]);
        let user_config = body.string(&["user_config"]);
        let gpus = GpuPatch::read(&mut body);
        body.finish_with(name.zip(doc).map(|(name, compose_file)| Self {
            name,
            compose_file,
            instance_type,
            vcpu,
            memory,
            disk_size,
            image,
            prefer_dev,
            node_id,
            region,
            listed,
            kms,
            kms_id,
            kms_contract,
            env_keys,
            encrypted_env,
            app_id,
            nonce,
            ssh_authorized_keys,
            user_config,
            gpus,
        }))
    }
}

fn name(body: &mut Reader<'_>) -> Option<CvmName> {
    if body.find(&["name"]).is_none() {
        body.missing("name", "5 to 63 letters, digits and hyphens, a letter first");
    }
    body.parsed(&["name"])
}

fn kms_type(body: &mut Reader<'_>) -> Option<KmsType> {
    body.parsed_unless_empty::<KmsWord>(&["kms", "kms_type"]).map(|KmsWord(kind)| kind)
}

/// A kind of key service in any letter case.
struct KmsWord(KmsType);

impl std::str::FromStr for KmsWord {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match KmsType::from(text.trim().to_ascii_lowercase().as_str()) {
            KmsType::Other(_) => Err("must be PHALA, ETHEREUM or BASE"),
            known => Ok(Self(known)),
        }
    }
}

/// `POST /cvms`: makes the CVM that was provisioned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmCreate {
    /// The app id that provisioning gave, or the address of the app's contract.
    pub app_id: AppId,
    /// The compose hash that provisioning gave.
    pub compose_hash: ComposeHash,
    /// The sealed environment, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub encrypted_env: Option<SealedEnv>,
    /// The environment variables that reach the app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_keys: Option<Vec<String>>,
    /// The key service, by id or slug.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms_id: Option<String>,
    /// The app's contract (also `app_auth_contract_address`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contract_address: Option<AppId>,
    /// Who deployed the contract: an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployer_address: Option<String>,
    /// What proves that the compose hash was registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub transaction_hash: Option<TxProof>,
    /// The token that provisioning gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl CvmCreate {
    /// Reads a body.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        if body.find(&["app_id"]).is_none() {
            body.missing("app_id", "the app id that provisioning gave, or the address of the app's contract");
        }
        let app_id = body.parsed(&["app_id"]);
        let hash = compose_hash(&mut body);
        let encrypted_env = body.parsed_unless_empty(&["encrypted_env"]);
        let env_keys = body.strings(&["env_keys"]);
        let kms_id = body.string(&["kms_id"]).filter(|text| !text.is_empty());
        let contract_address = body.parsed_unless_empty(&["contract_address", "app_auth_contract_address"]);
        let deployer_address = body.string(&["deployer_address"]).filter(|text| !text.is_empty());
        let transaction_hash = body.parsed(&["transaction_hash"]);
        let token = body.string(&["token"]).filter(|text| !text.is_empty());
        body.finish_with(app_id.zip(hash).map(|(app_id, compose_hash)| Self {
            app_id,
            compose_hash,
            encrypted_env,
            env_keys,
            kms_id,
            contract_address,
            deployer_address,
            transaction_hash,
            token,
        }))
    }
}

/// `POST /cvms/{id}/compose_file/provision`: the document that a CVM shall have. Nothing runs yet.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ComposeProvision {
    /// The document, here or with its fields directly in the body. What is missing stays as it is.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub app_compose: ComposeDoc,
    /// The environment variables that reach the app change, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_env_vars: Option<bool>,
}

impl ComposeProvision {
    /// Reads a body of either form.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let update_env_vars = body.bool(&["update_env_vars"]);
        let app_compose = if body.find(&["app_compose"]).is_some() {
            body.object(&["app_compose"]).and_then(|(field, map)| app_compose(&mut body, &field, map))
        } else {
            let mut doc = map.clone();
            doc.shift_remove("update_env_vars");
            doc.shift_remove("app_compose");
            app_compose(&mut body, "app_compose", &doc)
        };
        body.finish_with(app_compose.map(|app_compose| Self { app_compose, update_env_vars }))
    }
}

/// `POST /cvms/{id}/compose_file/commit` and `PATCH /cvms/{id}/compose_file`: runs the provisioned document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ComposeCommit {
    /// The hash that provisioning gave.
    pub compose_hash: ComposeHash,
    /// The sealed environment, in hex. Replaces the old one completely.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub encrypted_env: Option<SealedEnv>,
    /// The environment variables that reach the app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_keys: Option<Vec<String>>,
    /// `env_keys` replace the document's `allowed_envs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_env_vars: Option<bool>,
    /// What proves that the hash was registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub transaction_hash: Option<TxProof>,
    /// How the update is done.
    #[serde(flatten)]
    pub options: UpdateOptions,
}

impl ComposeCommit {
    /// The least that a commit needs.
    pub fn new(compose_hash: ComposeHash) -> Self {
        Self {
            compose_hash,
            encrypted_env: None,
            env_keys: None,
            update_env_vars: None,
            transaction_hash: None,
            options: UpdateOptions::default(),
        }
    }

    /// Reads a body; the names may be in camel case.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let hash = compose_hash(&mut body);
        let encrypted_env = body.parsed_unless_empty(&["encrypted_env", "encryptedEnv"]);
        let env_keys = body.strings(&["env_keys", "envKeys"]);
        let update_env_vars = body.bool(&["update_env_vars", "updateEnvVars"]);
        let transaction_hash = body.parsed(&["transaction_hash", "transactionHash"]);
        let options = UpdateOptions::read(&mut body);
        body.finish_with(hash.map(|compose_hash| Self {
            compose_hash,
            encrypted_env,
            env_keys,
            update_env_vars,
            transaction_hash,
            options,
        }))
    }
}

/// `PATCH /cvms/{id}/envs`: a new environment, which replaces the old one completely.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnvsUpdate {
    /// The sealed environment, in hex.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub encrypted_env: SealedEnv,
    /// The environment variables that reach the app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_keys: Option<Vec<String>>,
    /// The hash being confirmed, in the second phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compose_hash: Option<ComposeHash>,
    /// What proves its registration, in the second phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub transaction_hash: Option<TxProof>,
    /// How the update is done.
    #[serde(flatten)]
    pub options: UpdateOptions,
}

impl EnvsUpdate {
    /// Reads a body.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        if body.find(&["encrypted_env"]).is_none() {
            body.missing("encrypted_env", "the sealed environment, in hex");
        }
        let encrypted_env = body.parsed(&["encrypted_env"]);
        let env_keys = body.strings(&["env_keys"]);
        let compose_hash = body.parsed_unless_empty(&["compose_hash", "composeHash"]);
        let transaction_hash = body.parsed(&["transaction_hash", "transactionHash"]);
        let options = UpdateOptions::read(&mut body);
        body.finish_with(encrypted_env.map(|encrypted_env| Self {
            encrypted_env,
            env_keys,
            compose_hash,
            transaction_hash,
            options,
        }))
    }
}

impl From<EnvsUpdate> for CvmPatch {
    fn from(body: EnvsUpdate) -> Self {
        let mut patch = Self {
            encrypted_env: body.encrypted_env.into(),
            allowed_envs: body.env_keys.into(),
            ..Self::default()
        };
        body.options.apply(&mut patch);
        patch
    }
}

/// `PATCH /cvms/{id}/docker-compose` and `…/pre-launch-script` in their JSON forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextUpdate {
    /// The text.
    pub text: String,
    /// The hash being confirmed, in the second phase.
    pub compose_hash: Option<ComposeHash>,
    /// What proves its registration, in the second phase.
    pub transaction_hash: Option<TxProof>,
    /// How the update is done.
    pub options: UpdateOptions,
}

impl TextUpdate {
    /// Reads a body whose text is in `field`.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>, field: &str) -> Read<Self> {
        let mut body = Reader::new(map);
        if body.find(&[field]).is_none() {
            body.missing(field, "the new text");
        }
        let text = body.string(&[field]);
        let compose_hash = body.parsed_unless_empty(&["compose_hash", "composeHash"]);
        let transaction_hash = body.parsed(&["transaction_hash", "transactionHash"]);
        let options = UpdateOptions::read(&mut body);
        body.finish_with(text.map(|text| Self { text, compose_hash, transaction_hash, options }))
    }
}

/// `PATCH /cvms/{id}/resources`: a new size. At least one of its fields is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResourcesUpdate {
    /// Virtual processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// Memory, in MB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u32>,
    /// Disk, in GB. It can only grow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<u32>,
    /// A named size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// The caller knows that the machine restarts. It does so anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_restart: Option<bool>,
    /// How the update is done.
    #[serde(flatten)]
    pub options: UpdateOptions,
}

impl ResourcesUpdate {
    /// Reads a body. Identifiers in it, `name` among them, are skipped: one client puts them there.
    ///
    /// # Errors
    /// Every field that is wrong, or none given.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let update = Self {
            vcpu: body.size("vcpu", CvmPatch::MIN_VCPU),
            memory: body.size("memory", CvmPatch::MIN_MEMORY),
            disk_size: body.size("disk_size", CvmPatch::MIN_DISK_SIZE),
            instance_type: body.non_empty(&["instance_type"]),
            allow_restart: body.bool(&["allow_restart"]),
            options: UpdateOptions::read(&mut body),
        };
        let fields = ["vcpu", "memory", "disk_size", "instance_type"];
        if body.find(&fields).is_none() && !update.options.force_restart {
            body.missing("vcpu", "at least one of vcpu, memory, disk_size and instance_type");
        }
        body.finish(update)
    }
}

impl From<ResourcesUpdate> for CvmPatch {
    fn from(body: ResourcesUpdate) -> Self {
        let mut patch = Self {
            vcpu: body.vcpu.into(),
            memory: body.memory.into(),
            disk_size: body.disk_size.into(),
            instance_type: body.instance_type.into(),
            allow_restart: body.allow_restart.into(),
            ..Self::default()
        };
        body.options.apply(&mut patch);
        patch
    }
}

/// `PATCH /cvms/{id}/visibility`: who may see what. Absent fields stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VisibilityUpdate {
    /// Anyone may read system information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_sysinfo: Option<bool>,
    /// Anyone may read the containers' logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_logs: Option<bool>,
    /// Anyone may read the measurements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_tcbinfo: Option<bool>,
    /// Shown in the public directory. No restart if this is all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listed: Option<bool>,
    /// How the update is done.
    #[serde(flatten)]
    pub options: UpdateOptions,
}

impl VisibilityUpdate {
    /// Reads a body.
    ///
    /// # Errors
    /// Every field that is wrong, or none given.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let update = Self {
            public_sysinfo: body.bool(&["public_sysinfo"]),
            public_logs: body.bool(&["public_logs"]),
            public_tcbinfo: body.bool(&["public_tcbinfo"]),
            listed: body.bool(&["listed"]),
            options: UpdateOptions::read(&mut body),
        };
        let fields = ["public_sysinfo", "public_logs", "public_tcbinfo", "listed"];
        if body.find(&fields).is_none() && !update.options.force_restart {
            body.missing("listed", "at least one of listed, public_logs, public_sysinfo and public_tcbinfo");
        }
        body.finish(update)
    }
}

impl From<VisibilityUpdate> for CvmPatch {
    fn from(body: VisibilityUpdate) -> Self {
        let mut patch = Self {
            public_sysinfo: body.public_sysinfo.into(),
            public_logs: body.public_logs.into(),
            public_tcbinfo: body.public_tcbinfo.into(),
            listed: body.listed.into(),
            ..Self::default()
        };
        body.options.apply(&mut patch);
        patch
    }
}

/// `PATCH /cvms/{id}/listed`: shown in the public directory or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListedUpdate {
    /// Shown.
    pub listed: bool,
}

impl ListedUpdate {
    /// Reads a body.
    ///
    /// # Errors
    /// Missing, or not a boolean.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        if body.find(&["listed"]).is_none() {
            body.missing("listed", "true or false");
        }
        let listed = body.bool(&["listed"]);
        body.finish_with(listed.map(|listed| Self { listed }))
    }
}

impl From<ListedUpdate> for CvmPatch {
    fn from(body: ListedUpdate) -> Self {
        Self { listed: body.listed.into(), ..Self::default() }
    }
}

/// `PATCH /cvms/{id}/name`: a new name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NameUpdate {
    /// The name.
    pub name: CvmName,
}

impl NameUpdate {
    /// Reads a body.
    ///
    /// # Errors
    /// Missing, or not a name.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let name = name(&mut body);
        body.finish_with(name.map(|name| Self { name }))
    }
}

impl From<NameUpdate> for CvmPatch {
    fn from(body: NameUpdate) -> Self {
        Self { name: body.name.into(), ..Self::default() }
    }
}

/// `PATCH /cvms/{id}/os-image`: another OS image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OsImageUpdate {
    /// The image, by name or slug (also `image`).
    #[serde(rename = "os_image_name")]
    pub image: String,
    /// How the update is done.
    #[serde(flatten)]
    pub options: UpdateOptions,
}

impl OsImageUpdate {
    /// Reads a body.
    ///
    /// # Errors
    /// Missing, empty or not a string.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let names = ["image", "os_image_name"];
        if body.find(&names).is_none() {
            body.missing("image", "the name or slug of an OS image");
        }
        let image = body.non_empty(&names);
        let options = UpdateOptions::read(&mut body);
        body.finish_with(image.map(|image| Self { image, options }))
    }
}

impl From<OsImageUpdate> for CvmPatch {
    fn from(body: OsImageUpdate) -> Self {
        let mut patch = Self { image: body.image.into(), ..Self::default() };
        body.options.apply(&mut patch);
        patch
    }
}

/// `PATCH /cvms/{id}/instance-id`: reads the instance id from the node again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceIdLookup {
    /// Replace one that is known already.
    #[cfg_attr(feature = "openapi", schema(required = false))]
    pub overwrite: bool,
    /// Look, but store nothing.
    #[cfg_attr(feature = "openapi", schema(required = false))]
    pub dry_run: bool,
}

impl InstanceIdLookup {
    /// Reads a body; an empty one is fine.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let lookup = Self {
            overwrite: body.bool(&["overwrite"]).unwrap_or_default(),
            dry_run: body.bool(&["dry_run"]).unwrap_or_default(),
        };
        body.finish(lookup)
    }
}

/// Most CVMs that one request about instance ids may concern.
pub const MAX_INSTANCE_IDS: usize = 500;

/// `PATCH /cvms/instance-ids`: reads instance ids from their nodes again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceIdsLookup {
    /// Which CVMs, by any identifier; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cvm_ids: Option<Vec<String>>,
    /// Only those that run.
    #[cfg_attr(feature = "openapi", schema(required = false))]
    pub running_only: bool,
    /// Only those whose instance id is not known.
    #[cfg_attr(feature = "openapi", schema(required = false))]
    pub missing_only: bool,
    /// Replace one that is known already.
    #[cfg_attr(feature = "openapi", schema(required = false))]
    pub overwrite: bool,
    /// At most so many, 1 to 500.
    #[cfg_attr(feature = "openapi", schema(required = false))]
    pub limit: u32,
    /// Look, but store nothing.
    #[cfg_attr(feature = "openapi", schema(required = false))]
    pub dry_run: bool,
}

impl Default for InstanceIdsLookup {
    fn default() -> Self {
        Self {
            cvm_ids: None,
            running_only: true,
            missing_only: true,
            overwrite: false,
            limit: 100,
            dry_run: false,
        }
    }
}

impl InstanceIdsLookup {
    /// Reads a body; an empty one is fine.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let default = Self::default();
        let lookup = Self {
            cvm_ids: body.strings(&["cvm_ids"]),
            running_only: body.bool(&["running_only"]).unwrap_or(default.running_only),
            missing_only: body.bool(&["missing_only"]).unwrap_or(default.missing_only),
            overwrite: body.bool(&["overwrite"]).unwrap_or(default.overwrite),
            limit: body.int(&["limit"], 1, MAX_INSTANCE_IDS as i64).unwrap_or(default.limit),
            dry_run: body.bool(&["dry_run"]).unwrap_or(default.dry_run),
        };
        body.finish(lookup)
    }
}

/// `POST /cvms/refresh-instance-ids`: gives CVMs new instance ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstanceIdsRefresh {
    /// Which CVMs, by any identifier: 1 to 500.
    pub ids: Vec<String>,
}

impl InstanceIdsRefresh {
    /// Reads a body.
    ///
    /// # Errors
    /// Missing, not a list of strings, empty or too long.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        if body.find(&["ids"]).is_none() {
            body.missing("ids", "a list of 1 to 500 CVM identifiers");
        }
        let ids = body.strings(&["ids"]);
        if let Some(ids) = &ids
            && !(1..=MAX_INSTANCE_IDS).contains(&ids.len())
        {
            let kind = if ids.is_empty() { "too_short" } else { "too_long" };
            body.note(
                "ids",
                kind,
                format!("must have 1 to {MAX_INSTANCE_IDS} entries, not {}", ids.len()),
                None,
            );
        }
        body.finish_with(ids.map(|ids| Self { ids }))
    }
}

/// `POST /cvms/{id}/commit-update`: runs an update that was only prepared. The token is all the permission it needs.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CommitUpdate {
    /// The one-time token. A secret.
    pub token: String,
    /// The prepared hash; the token knows it, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compose_hash: Option<ComposeHash>,
    /// What proves its registration.
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    pub transaction_hash: TxProof,
}

impl std::fmt::Debug for CommitUpdate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitUpdate")
            .field("compose_hash", &self.compose_hash)
            .field("transaction_hash", &self.transaction_hash)
            .finish_non_exhaustive()
    }
}

impl CommitUpdate {
    /// Reads a body; the names may be in camel case, and empty texts are absent.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        if body.find(&["token"]).is_none() {
            body.missing("token", "the commit token of the prepared update");
        }
        let token = body.non_empty(&["token"]);
        let compose_hash = body.parsed_unless_empty(&["compose_hash", "composeHash"]);
        let transaction_hash = body.parsed(&["transaction_hash", "transactionHash"]).unwrap_or_default();
        body.finish_with(token.map(|token| Self { token, compose_hash, transaction_hash }))
    }
}

/// `POST /cvms/{id}/replicas` and `POST /apps/{id}/instances`: another CVM of an app. All of it is optional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmReplicate {
    /// Its name; else that of the CVM it is like, and a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub name: Option<CvmName>,
    /// The node (also `teepod_id`); else that of the CVM it is like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<i64>,
    /// The sealed environment, in hex; else that of the CVM it is like.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub encrypted_env: Option<SealedEnv>,
    /// The revision of the app with this hash; else what the CVM it is like runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compose_hash: Option<ComposeHash>,
    /// The OS image, by name or slug.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os_image: Option<String>,
    /// Another docker-compose file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_compose_file: Option<String>,
    /// Another pre-launch script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_launch_script: Option<String>,
}

impl CvmReplicate {
    /// Reads a body.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let asked = Self {
            name: body.parsed_unless_empty(&["name"]),
            node_id: body.int(&["node_id", "teepod_id"], 0, i64::MAX),
            encrypted_env: body.parsed_unless_empty(&["encrypted_env"]),
            compose_hash: body.parsed_unless_empty(&["compose_hash"]),
            os_image: body.string(&["os_image", "image"]).filter(|text| !text.is_empty()),
            docker_compose_file: body.string(&["docker_compose_file"]).filter(|text| !text.is_empty()),
            pre_launch_script: body.string(&["pre_launch_script"]),
        };
        body.finish(asked)
    }
}

/// `POST /cvms/{id}/is-allowed` and `POST /apps/{id}/is-allowed`: what a contract is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AskAllowed {
    /// The hash; of a CVM the one in force unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compose_hash: Option<ComposeHash>,
    /// The device, by its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_id: Option<i64>,
    /// The device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<DeviceId>,
    /// The chain; has to be the app's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain_id: Option<u64>,
}

impl AskAllowed {
    /// Reads a body.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let asked = Self {
            compose_hash: body.parsed_unless_empty(&["compose_hash"]),
            node_id: body.int(&["node_id", "teepod_id"], 0, i64::MAX),
            device_id: body.parsed_unless_empty(&["device_id"]),
            chain_id: body.int::<i64>(&["chain_id"], 0, i64::MAX).map(i64::cast_unsigned),
        };
        body.finish(asked)
    }
}

/// `POST /approvals/{id}/commit`: commits what waits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApprovalCommit {
    /// What proves the registration; nothing: what the contract says counts.
    #[cfg_attr(feature = "openapi", schema(value_type = String, required = false))]
    pub transaction_hash: TxProof,
}

impl ApprovalCommit {
    /// Reads a body.
    ///
    /// # Errors
    /// Not a transaction hash.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let transaction_hash = body.parsed(&["transaction_hash", "transactionHash"]).unwrap_or_default();
        body.finish(Self { transaction_hash })
    }
}

/// `POST /approvals/{id}/auto-commit`: on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AutoCommit {
    /// On, unless it says `false`.
    #[cfg_attr(feature = "openapi", schema(required = false))]
    pub enabled: bool,
}

impl AutoCommit {
    /// Reads a body.
    ///
    /// # Errors
    /// Not a boolean.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let enabled = body.bool(&["enabled"]).unwrap_or(true);
        body.finish(Self { enabled })
    }
}

/// `POST /status/batch`: the state of many machines at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StatusBatch {
    /// Their UUIDs, in any spelling. The answer repeats the spelling.
    #[cfg_attr(feature = "openapi", schema(max_items = 1000))]
    pub vm_uuids: Vec<String>,
}

impl StatusBatch {
    /// Most machines in one request: as many as a list of all CVMs shows, since clients ask about a whole list at once.
    pub const MAX: usize = 1000;

    /// Reads a body.
    ///
    /// # Errors
    /// Missing, not a list of strings, or too long.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        if body.find(&["vm_uuids"]).is_none() {
            body.missing("vm_uuids", "a list of machine UUIDs");
        }
        let vm_uuids = body.strings(&["vm_uuids"]);
        if let Some(uuids) = &vm_uuids
            && uuids.len() > Self::MAX
        {
            let max = Self::MAX;
            body.note(
                "vm_uuids",
                "too_long",
                format!("must have at most {max} entries, not {}", uuids.len()),
                None,
            );
        }
        body.finish_with(vm_uuids.map(|vm_uuids| Self { vm_uuids }))
    }
}

/// `POST /cvms/{id}/restart`: whether the guest is asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Restart {
    /// Switch off without asking.
    #[cfg_attr(feature = "openapi", schema(required = false))]
    pub force: bool,
}

impl Restart {
    /// Reads a body; an empty one is fine.
    ///
    /// # Errors
    /// Not a boolean.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        let restart = Self { force: body.bool(&["force"]).unwrap_or_default() };
        body.finish(restart)
    }
}

/// `POST /cvms/{id}/rollback`: runs an earlier revision again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rollback {
    /// Its number.
    pub revision: u64,
    /// How the update is done.
    #[serde(flatten)]
    pub options: UpdateOptions,
}

impl Rollback {
    /// Reads a body.
    ///
    /// # Errors
    /// Missing, or not a number.
    pub fn from_json(map: &Map<String, Value>) -> Read<Self> {
        let mut body = Reader::new(map);
        if body.find(&["revision"]).is_none() {
            body.missing("revision", "the number of an earlier revision");
        }
        let revision = body.int(&["revision"], 1, i64::MAX);
        let options = UpdateOptions::read(&mut body);
        body.finish_with(revision.map(|revision| Self { revision, options }))
    }
}
