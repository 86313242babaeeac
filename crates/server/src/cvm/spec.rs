//! The spec of a CVM: everything that one revision fixes.

use std::sync::Arc;

use casemate_types::compose::ComposeDoc;
use casemate_types::ids::{AppId, ComposeHash, InstanceId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The configuration of one revision. Immutable once stored; `name` and `listed` are not part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// What runs.
    pub compose: Compose,
    /// Environment variables as ciphertext; only the guest can open it.
    #[serde(with = "hex_bytes")]
    pub sealed_env: Option<Arc<[u8]>>,
    /// Free text handed to the guest as it is.
    pub user_config: Option<Arc<str>>,
    /// Number of virtual CPUs.
    pub vcpu: u32,
    /// Memory in MB (1024² bytes).
    pub memory_mb: u32,
    /// Disk in GB (1024³ bytes). Only ever grows.
    pub disk_gb: u32,
    /// Graphics cards.
    pub gpus: Gpus,
    /// Name of the OS image.
    pub image: String,
    /// What the instance id is derived from, together with the app id.
    #[serde(with = "hex::serde")]
    pub instance_seed: [u8; 20],
}

/// A compose document in the two forms that are kept, and its hash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compose {
    /// The document as received, as compact JSON: its strings come back byte for byte.
    pub document: Arc<str>,
    /// The text made from it once. It goes to the node as it is and is never made again.
    pub text: Arc<str>,
    /// SHA-256 of `text`.
    pub hash: ComposeHash,
}

impl Compose {
    /// Fixes the text and hash of `document`.
    pub fn new(document: &ComposeDoc) -> Self {
        let normalised = document.normalise();
        Self { document: document.to_json().into(), text: normalised.text.into(), hash: normalised.hash }
    }

    /// The document, parsed.
    pub fn parsed(&self) -> ComposeDoc {
        ComposeDoc::parse(&self.document).expect("only documents that parse are stored")
    }
}

/// Graphics cards of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpus {
    /// How many.
    pub count: u32,
    /// Which product, if that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
}

impl Spec {
    /// The instance id that this spec gives a machine of `app`.
    pub fn instance_id(&self, app: &AppId) -> InstanceId {
        InstanceId::derive(&self.instance_seed, app)
    }

    /// The resources that have to be free for it.
    pub fn booking(&self) -> Booking {
        Booking { vcpu: self.vcpu, memory_mb: self.memory_mb, disk_gb: self.disk_gb, gpus: self.gpus.count }
    }

    /// SHA-256 of the sealed environment.
    pub fn sealed_env_sha256(&self) -> Option<[u8; 32]> {
        self.sealed_env.as_deref().map(sha256)
    }

    /// SHA-256 of the user config.
    pub fn user_config_sha256(&self) -> Option<[u8; 32]> {
        self.user_config.as_deref().map(|text| sha256(text.as_bytes()))
    }
}

/// Room on a node, asked for or given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booking {
    /// Virtual CPUs.
    pub vcpu: u32,
    /// Memory in MB.
    pub memory_mb: u32,
    /// Disk in GB.
    pub disk_gb: u32,
    /// Graphics cards.
    pub gpus: u32,
}

impl Booking {
    /// Enough for either: what is booked while an update may still end both ways.
    pub fn max(self, other: Self) -> Self {
        Self {
            vcpu: self.vcpu.max(other.vcpu),
            memory_mb: self.memory_mb.max(other.memory_mb),
            disk_gb: self.disk_gb.max(other.disk_gb),
            gpus: self.gpus.max(other.gpus),
        }
    }
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Optional bytes as text with two hex digits for each.
pub(crate) mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<T: AsRef<[u8]>, S: Serializer>(
        bytes: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => to.serialize_some(&hex::encode(bytes)),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, T: TryFrom<Vec<u8>>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
        let bytes = hex::decode(text).map_err(de::Error::custom)?;
        let length = bytes.len();
        bytes.try_into().map(Some).map_err(|_| de::Error::invalid_length(length, &"another number of bytes"))
    }
}
