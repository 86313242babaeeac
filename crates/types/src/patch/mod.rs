//! Request bodies.
//!
//! Clients send `4.0` for 4, `1` for true, `null` for "not given" and fields that we do not know; all of this is read. What
//! is really wrong is refused with every field that is, and with what would be right. A body is read by its `from_json`;
//! `Serialize` is for clients and leaves out what is absent.

mod bodies;
mod reader;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

pub use bodies::*;
use reader::Reader;

use crate::compose::{ComposeDoc, Flag};
use crate::env::SealedEnv;
use crate::error::FieldError;
use crate::ids::{ComposeHash, CvmName, TxHash};

/// A field of a sparse body: not there, `null`, or a value.
///
/// On this wire `null` never means more than "not there", so the readers of this module make [`Sparse::Absent`] of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sparse<T> {
    /// The field is not there.
    #[default]
    Absent,
    /// The field is `null`.
    Null,
    /// The field has a value.
    Value(T),
}

impl<T> Sparse<T> {
    /// Not there. What `skip_serializing_if` asks.
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// There is a value.
    pub const fn is_value(&self) -> bool {
        matches!(self, Self::Value(_))
    }

    /// The value, if there is one.
    pub const fn get(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// The value, if there is one.
    pub fn into_option(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }
}

impl<T: Copy> Sparse<T> {
    /// The value, or `other` where there is none.
    pub fn or(&self, other: T) -> T {
        self.get().copied().unwrap_or(other)
    }
}

impl<T> From<T> for Sparse<T> {
    fn from(value: T) -> Self {
        Self::Value(value)
    }
}

impl<T> From<Option<T>> for Sparse<T> {
    /// `None` is absent.
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Absent, Self::Value)
    }
}

impl<T: Serialize> Serialize for Sparse<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(to)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Sparse<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(from)?.map_or(Self::Null, Self::Value))
    }
}

/// What happens to the machine if an update fails after the old configuration was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The old configuration is started again.
    #[default]
    PutBack,
    /// The machine stays as the failure left it.
    Hold,
}

impl FromStr for OnFailure {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "put_back" => Ok(Self::PutBack),
            "hold" => Ok(Self::Hold),
            _ => Err("must be `put_back` or `hold`"),
        }
    }
}

/// The GPUs a machine shall have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum GpuPatch {
    /// Any GPUs, by number.
    Count {
        /// How many. 0 removes all.
        count: u32,
        /// Only of this product.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        product_name: Option<String>,
    },
    /// GPUs by their slots.
    Slots {
        /// The slots.
        gpus: Vec<GpuSlot>,
        /// Whether these GPUs are attached, or all of the node's.
        attach_mode: AttachMode,
    },
}

/// A GPU by its place in the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GpuSlot {
    /// The slot, such as a PCI address.
    pub slot: String,
    /// The product expected there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product_id: Option<String>,
}

/// Which GPUs of a node are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// Those in the list.
    #[default]
    Listed,
    /// All of them.
    All,
}

impl FromStr for AttachMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "listed" => Ok(Self::Listed),
            "all" => Ok(Self::All),
            _ => Err("must be `listed` or `all`"),
        }
    }
}

impl GpuPatch {
    fn read(body: &mut Reader<'_>) -> Sparse<Self> {
        let Some((field, map)) = body.object(&["gpus"]) else {
            return Sparse::Absent;
        };
        body.within(&[&field], map, |gpus| {
            if gpus.find(&["gpus", "attach_mode"]).is_some() {
                return Self::read_slots(gpus);
            }
            if gpus.find(&["count"]).is_none() {
                gpus.missing("count", "the number of GPUs, or `gpus` with their slots");
            }
            let product_name = gpus.string(&["product_name"]);
            gpus.count(&["count"]).map(|count| Self::Count { count, product_name }).into()
        })
    }

    fn read_slots(gpus: &mut Reader<'_>) -> Sparse<Self> {
        let attach_mode = gpus.parsed(&["attach_mode"]).unwrap_or_default();
        let mut slots = Vec::new();
        match gpus.find(&["gpus"]) {
            None => {}
            Some((_, Value::Array(items))) => {
                for (index, item) in items.iter().enumerate() {
                    let index = index.to_string();
                    let Some(map) = item.as_object() else {
                        gpus.note("gpus", "list_type", "must be a list of objects with a `slot`", None);
                        return Sparse::Absent;
                    };
                    let slot = gpus.within(&["gpus", &index], map, |item| {
                        let slot = item.non_empty(&["slot"]);
                        if slot.is_none() && item.find(&["slot"]).is_none() {
                            item.missing("slot", "where the GPU is");
                        }
                        let product_id = item.string(&["product_id"]);
                        slot.map(|slot| GpuSlot { slot, product_id })
                    });
                    slots.extend(slot);
                }
            }
            Some((_, other)) => {
                gpus.note("gpus", "list_type", "must be a list of objects with a `slot`", Some(other));
            }
        }
        Sparse::Value(Self::Slots { gpus: slots, attach_mode })
    }
}

/// What proves that a compose hash was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TxProof {
    /// No transaction is named: what the contract says counts.
    #[default]
    StateOnly,
    /// This transaction registered it.
    Tx(TxHash),
}

impl TxProof {
    /// What clients send when the hash was there already.
    pub const ALREADY_REGISTERED: &str = "already-registered";
}

impl FromStr for TxProof {
    type Err = &'static str;

    /// A transaction hash, `already-registered`, or nothing, which means the same.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.is_empty() || text.eq_ignore_ascii_case(Self::ALREADY_REGISTERED) {
            return Ok(Self::StateOnly);
        }
        text.parse()
            .map(Self::Tx)
            .map_err(|_| "must be a transaction hash (`0x` and 64 hex digits) or `already-registered`")
    }
}

impl fmt::Display for TxProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StateOnly => f.write_str(Self::ALREADY_REGISTERED),
            Self::Tx(hash) => write!(f, "0x{hash}"),
        }
    }
}

impl Serialize for TxProof {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// What a `PATCH /cvms/{id}` asks for besides changes: that the update is only prepared, or that it is confirmed.
///
/// Most clients say so in headers; these are the body's spellings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PatchControl {
    /// Do not apply; answer with a commit token where an approval is needed.
    pub prepare_only: bool,
    /// The compose hash being confirmed.
    pub compose_hash: Option<ComposeHash>,
    /// What proves its registration.
    pub transaction_hash: Option<TxProof>,
}

impl PatchControl {
    /// Reads the control fields of a body.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let mut body = Reader::new(map);
        let control = Self {
            prepare_only: body.bool(&["prepare_only", "prepareOnly"]).unwrap_or_default(),
            compose_hash: body.parsed_unless_empty(&["compose_hash", "composeHash"]),
            transaction_hash: body.parsed(&["transaction_hash", "transactionHash"]),
        };
        body.finish(control)
    }
}

/// The body of `PATCH /cvms/{id}`: only what is there changes, all of it at once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CvmPatch {
    /// The docker-compose file. Changes the compose hash.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub docker_compose_file: Sparse<String>,
    /// The script that runs before the containers start; an empty one removes it. Changes the compose hash.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub pre_launch_script: Sparse<String>,
    /// The environment variables that reach the app (also `env_keys`). Changes the compose hash.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
    pub allowed_envs: Sparse<Vec<String>>,
    /// Anyone may read the containers' logs. Changes the compose hash.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<bool>))]
    pub public_logs: Sparse<bool>,
    /// Anyone may read system information. Changes the compose hash.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<bool>))]
    pub public_sysinfo: Sparse<bool>,
    /// Anyone may read the measurements. Changes the compose hash.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<bool>))]
    pub public_tcbinfo: Sparse<bool>,
    /// The gateway forwards requests to the app. Changes the compose hash.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<bool>))]
    pub gateway_enabled: Sparse<bool>,
    /// The guest waits for a verified clock before it starts. Changes the compose hash.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<bool>))]
    pub secure_time: Sparse<bool>,
    /// The sealed environment, in hex. Replaces the old one completely.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub encrypted_env: Sparse<SealedEnv>,
    /// Text that the guest gets besides the document, not measured.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub user_config: Sparse<String>,
    /// The GPUs the machine shall have.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<GpuPatch>))]
    pub gpus: Sparse<GpuPatch>,
    /// Virtual processors.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>))]
    pub vcpu: Sparse<u32>,
    /// Memory, in MB.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>))]
    pub memory: Sparse<u32>,
    /// Disk, in GB. It can only grow.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>))]
    pub disk_size: Sparse<u32>,
    /// A named size, whose processors and memory the machine gets.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub instance_type: Sparse<String>,
    /// The caller knows that the machine restarts. It does so anyway.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<bool>))]
    pub allow_restart: Sparse<bool>,
    /// The OS image, by name or slug (also `os_image_name`).
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub image: Sparse<String>,
    /// How long the guest may take to shut down, in seconds: 10 to 1200.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u32>, minimum = 10, maximum = 1200))]
    pub shutdown_timeout: Sparse<u32>,
    /// Whether the machine is switched off when that time is over.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<bool>))]
    pub allow_force_stop: Sparse<bool>,
    /// Shown in the public directory. No restart.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<bool>))]
    pub listed: Sparse<bool>,
    /// A new name. No restart.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<CvmName>))]
    pub name: Sparse<CvmName>,
    /// What happens if the update fails.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<OnFailure>))]
    pub on_failure: Sparse<OnFailure>,
    /// Restart even if nothing changes.
    #[serde(skip_serializing_if = "Sparse::is_absent")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<bool>))]
    pub force_restart: Sparse<bool>,
}

impl CvmPatch {
    /// The flags of the document, as far as they can be changed alone.
    pub fn flags(&self) -> [(Flag, &Sparse<bool>); 5] {
        [
            (Flag::PublicLogs, &self.public_logs),
            (Flag::PublicSysinfo, &self.public_sysinfo),
            (Flag::PublicTcbinfo, &self.public_tcbinfo),
            (Flag::GatewayEnabled, &self.gateway_enabled),
            (Flag::SecureTime, &self.secure_time),
        ]
    }

    /// What it makes of a document. Server and clients have to agree on that to the last byte: the result is hashed.
    #[must_use]
    pub fn document(&self, mut document: ComposeDoc) -> ComposeDoc {
        if let Some(yaml) = self.docker_compose_file.get() {
            document.set_docker_compose_file(yaml);
        }
        if let Some(script) = self.pre_launch_script.get() {
            document.set_pre_launch_script(script);
        }
        if let Some(keys) = self.allowed_envs.get() {
            document.set_allowed_envs(keys.iter().map(String::as_str));
        }
        for (flag, wanted) in self.flags() {
            // A flag that has this value by default is left out: the hash stays what it is.
            if let Some(value) = wanted.get().copied().filter(|value| document.flag(flag) != *value) {
                document.set_flag(flag, value);
            }
        }
        document
    }

    /// Fewest virtual processors of a machine.
    pub const MIN_VCPU: u32 = 1;
    /// Least memory of a machine, in MB.
    pub const MIN_MEMORY: u32 = 512;
    /// Smallest disk of a machine, in GB.
    pub const MIN_DISK_SIZE: u32 = 1;
    /// Shortest graceful shutdown that may be asked for, in seconds.
    pub const MIN_SHUTDOWN_TIMEOUT: u32 = 10;
    /// Longest graceful shutdown that may be asked for, in seconds.
    pub const MAX_SHUTDOWN_TIMEOUT: u32 = 1200;

    /// Reads a body. Unknown fields are skipped, `null` is absent.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn from_json(map: &Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let mut body = Reader::new(map);
        let patch = Self {
            docker_compose_file: body.string(&["docker_compose_file"]).into(),
            pre_launch_script: body.string(&["pre_launch_script"]).into(),
            allowed_envs: body.strings_or_one(&["allowed_envs", "env_keys"]).into(),
            public_logs: body.bool(&["public_logs"]).into(),
            public_sysinfo: body.bool(&["public_sysinfo"]).into(),
            public_tcbinfo: body.bool(&["public_tcbinfo"]).into(),
            gateway_enabled: body.bool(&["gateway_enabled"]).into(),
            secure_time: body.bool(&["secure_time"]).into(),
            encrypted_env: body.parsed(&["encrypted_env"]).into(),
            user_config: body.string(&["user_config"]).into(),
            gpus: GpuPatch::read(&mut body),
            vcpu: body.size("vcpu", Self::MIN_VCPU).into(),
            memory: body.size("memory", Self::MIN_MEMORY).into(),
            disk_size: body.size("disk_size", Self::MIN_DISK_SIZE).into(),
            instance_type: body.non_empty(&["instance_type"]).into(),
            allow_restart: body.bool(&["allow_restart"]).into(),
            image: body.non_empty(&["image", "os_image_name"]).into(),
            shutdown_timeout: Self::read_shutdown_timeout(&mut body).into(),
            allow_force_stop: body.bool(&["allow_force_stop"]).into(),
            listed: body.bool(&["listed"]).into(),
            name: body.parsed(&["name"]).into(),
            on_failure: body.parsed(&["on_failure"]).into(),
            force_restart: body.bool(&["force_restart"]).into(),
        };
        body.finish(patch)
    }

    fn read_shutdown_timeout(body: &mut Reader<'_>) -> Option<u32> {
        let (min, max) = (Self::MIN_SHUTDOWN_TIMEOUT, Self::MAX_SHUTDOWN_TIMEOUT);
        body.int(&["shutdown_timeout"], min.into(), max.into())
    }

    /// No field is named at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests;
